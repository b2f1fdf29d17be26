"""``analyze effective``: patterns and sizes of effective weight matrices (Hayase & Karakida 2024, Fig. S.9).

Every matrix is written as a scipy sparse ``.npz``, with the weights at the end of training, or at initialisation where
a run is not completed. The figure shows by colour which weights are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from torch import nn

from mixersweep.analysis.output import tracked
from mixersweep.analysis.subjects import mixing_maps
from mixersweep.layers import HashedWeights, PermutedKronecker, SparseMap, SparseWeights
from mixersweep.layers.effective import DENSE_SIDE, singular_values, to_sparse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

LARGEST = 1024
"""The largest side of a matrix that is drawn; of larger ones, the upper left corner is drawn."""

MOST_PANELS = 8


def analyze(networks: Mapping[str, nn.Module], out: Path | None = None) -> tuple[dict[str, Any], list[Row]]:
    """Count connections, fan-in and rank of each effective matrix of named networks, one row each.

    With ``out``, each matrix is written to ``out/name/layer.npz``. Returns the document and the rows.
    """
    rows: list[Row] = []
    for name, network in tracked(list(networks.items()), "effective"):
        folder = None if out is None else out / name
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        for layer, weights in mixing_maps(network).items():
            matrix = to_sparse(weights)
            if folder is not None:
                sp.save_npz(folder / f"{layer}.npz", matrix)
            fan_in = np.diff(matrix.indptr)
            rows.append(
                {
                    "network": name,
                    "layer": layer,
                    "rows": matrix.shape[0],
                    "columns": matrix.shape[1],
                    "connections": int(matrix.nnz),
                    "density": matrix.nnz / (matrix.shape[0] * matrix.shape[1]),
                    "rank": rank(weights),
                    "parameters": weights.weights,
                    "shared": matrix.nnz / max(1, weights.weights),
                    "fan_in": [int(fan_in.min()), int(fan_in.max())],
                    "file": None if folder is None else f"{name}/{layer}.npz",
                }
            )
    return {"layers": rows}, rows


def rank(layer: SparseMap) -> int | None:
    """The numerical rank of the effective matrix; None where a sparse map is too large for a decomposition."""
    if isinstance(layer, SparseWeights) and min(layer.in_width, layer.out_width) > 4 * DENSE_SIDE:
        return None
    values = singular_values(layer)
    limit = values[0] * max(layer.in_width, layer.out_width) * np.finfo(np.float32).eps
    return int((values > limit).sum())


def draw(networks: Mapping[str, nn.Module], out: Path) -> list[Path]:
    """Draw two matrices of each network, of token and channel mixing where it has these; returns the paths."""
    from mixersweep.figures import draw_panels

    panels: list[Any] = []
    for name, network in networks.items():
        panels += [_panel(f"{name}\n{layer}", weights) for layer, weights in _shown(network)]
    title = "Effective weight matrices; equal colours are equal (shared) weights"
    return draw_panels(out, "effective", title, panels[:MOST_PANELS], wide=4.6, high=4.6, columns=4)


def _shown(network: nn.Module) -> list[tuple[str, SparseMap]]:
    """The first two square maps, which skips a map from patches to tokens; else the first two maps."""
    maps = list(mixing_maps(network).items())
    square = [(name, layer) for name, layer in maps if layer.in_width == layer.out_width]
    chosen = square if len(square) >= 2 else maps
    return sorted(chosen[:2], key=lambda one: "channel" in one[0])


def _panel(title: str, layer: SparseMap) -> Any:
    def panel(axes: Axes) -> None:
        matrix, weight_ids = to_sparse(layer), shared_weights(layer)
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        inside = (rows < LARGEST) & (matrix.indices < LARGEST)
        axes.grid(False)
        side = min(max(matrix.shape), LARGEST)
        size = max(0.15, min(40.0, (190 / side) ** 2))
        axes.scatter(matrix.indices[inside], rows[inside], s=size, c=weight_ids[inside] % 997 / 997, cmap="turbo",
                     marker="s", linewidths=0, rasterized=True)  # fmt: skip
        axes.set_xlim(-0.5, min(matrix.shape[1], LARGEST) - 0.5)
        axes.set_ylim(min(matrix.shape[0], LARGEST) - 0.5, -0.5)
        axes.set_aspect("equal")
        cut = f", upper left {LARGEST:,}" if max(matrix.shape) > LARGEST else ""
        p = matrix.nnz / (matrix.shape[0] * matrix.shape[1])
        axes.set_title(f"{title}\nΩ = {matrix.nnz:,}, p = {p:.3g}{cut}", fontsize=8, loc="left")

    return panel


def shared_weights(layer: SparseMap) -> NDArray[np.int64]:
    """An integer for each entry of ``to_sparse``, in its order, that is equal for entries of the same weight.

    The integers are scattered, so that neighbouring weights get different colours.
    """
    if isinstance(layer, PermutedKronecker):
        numbered = PermutedKronecker(
            layer.blocks,
            layer.in_size,
            layer.out_size,
            tied=layer.tied,
            bias=False,
            before=layer.before,
            after=layer.after,
        )
        import torch

        with torch.no_grad():
            numbered.weight.copy_(torch.arange(numbered.weight.numel()).view_as(numbered.weight))
        found = to_sparse(numbered).data.astype(np.int64)
    elif isinstance(layer, HashedWeights):
        found = layer.weight_of().cpu().numpy()
    else:
        found = np.arange(to_sparse(layer).nnz, dtype=np.int64)
    scattered: NDArray[np.int64] = found * 7919 % 1_000_003
    return scattered


def names_of(labels: Sequence[str]) -> list[str]:
    """Make distinct file names from labels."""
    found: list[str] = []
    for label in labels:
        name = "".join(c if c.isalnum() or c in "._-=" else "-" for c in label).strip("-") or "network"
        number = 2
        while name in found:
            name = f"{name.rpartition('~')[0] or name}~{number}"
            number += 1
        found.append(name)
    return found
