"""Draw docs/pictures/structures.svg: effective weight matrices of the families at one number of connections.

    .venv/bin/python scripts/draw_structures.py docs/pictures/structures.svg

729 connections are a dense layer of width 27, or a mixing layer of width 81 with S = C = 9. Every pattern is the
``to_dense()`` of the program's own layer.
"""

import sys
from pathlib import Path

import torch

from mixersweep.figures.frame import frame, save
from mixersweep.layers import Commutation, Dense, PermutedKronecker, RandomPermutation, SparseWeights, draw_mask

S = C = 9
CONNECTIONS, WIDTH = 729, S * C


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LAYERS = {
    "mlp\ndense": Dense(27, 27),
    "s_mixer\ntoken mixing": PermutedKronecker(C, S, S, before=Commutation(S, C), after=Commutation(C, S)),
    "s_mixer\nchannel mixing": PermutedKronecker(S, C, C),
    "rp_s_mixer\nrandom permutations": PermutedKronecker(
        C, S, S, before=RandomPermutation(WIDTH, seeded(1)), after=RandomPermutation(WIDTH, seeded(2))
    ),
    "sw_mlp\nunstructured": SparseWeights(WIDTH, WIDTH, draw_mask(WIDTH, WIDTH, CONNECTIONS, "exact", seeded(3))),
}


def main(path: Path) -> None:
    with frame("mixersweep", 9.6, 2.5) as figure:
        panels = figure.subplots(1, len(LAYERS))
        for panel, (title, layer) in zip(panels, LAYERS.items(), strict=True):
            layer.initialize(seeded(4))
            matrix = layer.to_dense().detach()
            assert int((matrix != 0).sum()) == layer.connections == CONNECTIONS
            limit = float(matrix.abs().max())
            shown = torch.where(matrix == 0, torch.nan, matrix)  # zeros stay paper
            margin = (WIDTH - layer.in_width) / 2
            low, high, edge = -0.5 - margin, layer.in_width - 0.5 + margin, layer.in_width - 0.5
            panel.imshow(shown, cmap="viridis", vmin=-limit, vmax=limit, interpolation="nearest")
            panel.plot([-0.5, edge, edge, -0.5, -0.5], [-0.5, -0.5, edge, edge, -0.5], color="0.4", linewidth=0.7)
            panel.set(xlim=(low, high), ylim=(high, low), xticks=[], yticks=[])
            panel.set_title(title, fontsize=9.6)
            panel.set_xlabel(f"m = {layer.in_width},  density {layer.connections / layer.in_width**2:.2g}", fontsize=8)
            panel.spines[:].set_visible(False)
        save(figure, "Effective weight matrices at one number of connections", [path])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
