"""The readout of D groups of units: its matrix written out, its statistics, several runs at once, on any device."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from mixersweep.layers import GroupReadout

SIZES = [(64, 64), (130, 64), (650, 64), (97, 16), (5, 1)]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def readout(units: int, dimension: int, *, signed: bool = True, seed: int = 0) -> GroupReadout:
    head = GroupReadout(units, 10, dimension, seeded(seed), signed=signed)
    head.initialize(seeded(seed + 1))
    with torch.no_grad():
        assert head.bias is not None
        head.bias.normal_(generator=seeded(seed + 2))
    return head


def gradients(out: Tensor, head: GroupReadout, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.square().sum(), [x, head.weight])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("units", "dimension"), SIZES)
def test_it_is_the_map_of_its_matrix_forward_and_backward(
    units: int, dimension: int, signed: bool, device: str
) -> None:
    head = readout(units, dimension, signed=signed).double().to(device)
    x = torch.randn(units, 7, dtype=torch.float64, generator=seeded(5)).to(device).requires_grad_()
    out = head(x, features_first=True)
    written_out = head.to_dense() @ x + head.dense_bias()[:, None]
    torch.testing.assert_close(out, written_out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head(x.t()), out.t(), rtol=1e-12, atol=1e-12)
    for fast, slow in zip(gradients(out, head, x), gradients(written_out, head, x), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)


@needs_gpu
def test_a_gpu_sums_as_the_cpu_does_and_the_same_every_time() -> None:
    head, x = readout(2580, 64), torch.randn(2580, 128, generator=seeded(5))
    expected = head(x, features_first=True)
    head, x = head.cuda(), x.cuda().requires_grad_()
    out = head(x, features_first=True)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)
    found = gradients(out, head, x)
    for _ in range(20):
        again = head(x, features_first=True)
        assert torch.equal(again, out)
        assert all(map(torch.equal, gradients(again, head, x), found))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("units", "dimension"), SIZES)
def test_each_unit_has_one_way_to_the_head_and_groups_are_of_one_size(units: int, dimension: int, signed: bool) -> None:
    head = readout(units, dimension, signed=signed)
    ways = head.features(torch.eye(units)).t()  # (units, D)
    assert ((ways != 0).sum(1) == 1).all()
    sizes = (ways != 0).sum(0)
    assert sizes.sum() == units
    assert sizes.max() - sizes.min() <= 1
    torch.testing.assert_close(ways.square().sum(0), torch.ones(dimension))
    assert (ways < 0).any() == (signed and units > 1)
    assert head.weights == 10 * dimension
    assert head.connections == int((head.to_dense() != 0).sum()) == 10 * units


def test_features_of_uncorrelated_units_have_the_variance_of_the_units() -> None:
    x = torch.randn(130, 20_000, generator=seeded(3))
    for signed in (False, True):
        spread = readout(130, 64, signed=signed).features(x).std(1)
        assert (spread - 1).abs().max() < 0.03, "6 standard errors"


def test_the_structure_is_the_generators_and_signs_leave_the_groups_as_they_are() -> None:
    plain, signed, other = (readout(130, 64, signed=s, seed=n) for s, n in ((False, 0), (True, 0), (True, 9)))
    assert torch.equal(plain.order, signed.order)
    assert torch.equal(plain.to_dense().abs(), signed.to_dense().abs())
    assert 40 < int((signed.signs < 0).sum()) < 90, "half of 130"
    assert not torch.equal(signed.order, other.order)
    assert set(signed.state_dict()) == {"weight", "bias"}, "structure is drawn anew, never stored"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("signed", [False, True])
def test_several_runs_at_once_each_with_groups_of_its_own(signed: bool, device: str) -> None:
    heads = [readout(130, 64, signed=signed, seed=10 * n).to(device) for n in range(3)]
    parameters, buffers = stack_module_state(heads)
    x = torch.randn(3, 130, 5, generator=seeded(5)).to(device)

    def loss(x: Tensor, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        state = {**parameters, **buffers}
        return functional_call(heads[0], state, (x,), {"features_first": True}).square().sum()

    found = vmap(grad(loss))(x, parameters, buffers)
    for head, own, by_vmap in zip(heads, x, found, strict=True):
        own = own.clone().requires_grad_()
        torch.testing.assert_close(by_vmap, gradients(head(own, features_first=True), head, own)[0])
