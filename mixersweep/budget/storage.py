"""Choose how sparse weights are multiplied, as nonzeros or as a dense matrix (``model.storage=auto``)."""

from __future__ import annotations


def sparse_is_faster(in_width: int, out_width: int, connections: int, batch_size: int, device_kind: str) -> bool:
    """Whether sums over the nonzeros are faster than scattering them into a matrix and multiplying by that.

    On a CPU this compares nanoseconds of forward and both gradients, fitted to ``bench layers --all`` (2 cores, fp32,
    widths 256 and 1,024, batches of 32 to 512; kernels of our own against oneDNN's product). On a GPU it is an untested
    guess: fewer than one entry in twenty, where cuSPARSE is usually said to catch up with the dense product.
    ``bench layers --all`` measures both there; ``model.storage=sparse|dense`` overrides the choice.
    """
    entries = in_width * out_width
    if device_kind != "cpu":
        return connections < 0.05 * entries
    sparse = connections * (2.5 + 0.06 * batch_size)
    dense = entries * (1.3 + 0.017 * batch_size) + connections * 3.5
    return sparse < dense
