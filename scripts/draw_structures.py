"""Draw docs/pictures/structures.svg: effective weight matrices of the families at one number of connections.

    .venv/bin/python scripts/draw_structures.py docs/pictures/structures.svg

729 connections are a dense layer of width 27, or a mixing layer of width 81 with S = C = 9. Every pattern is the
``to_dense()`` of the program's own layer.
"""

import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

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


def main() -> None:
    plt.rcParams.update({"font.family": "sans-serif", "font.size": 8, "svg.hashsalt": "mixersweep"})
    figure, panels = plt.subplots(1, len(LAYERS), figsize=(9.6, 2.5))
    for panel, (title, layer) in zip(panels, LAYERS.items(), strict=True):
        layer.initialize(seeded(4))
        matrix = layer.to_dense().detach()
        assert int((matrix != 0).sum()) == layer.connections == CONNECTIONS
        limit = float(matrix.abs().max())
        shown = torch.where(matrix == 0, torch.nan, matrix)  # zeros stay paper
        low, high = -0.5 - (WIDTH - layer.in_width) / 2, layer.in_width - 0.5 + (WIDTH - layer.in_width) / 2
        panel.imshow(shown, cmap="viridis", vmin=-limit, vmax=limit, interpolation="nearest")
        edge = layer.in_width - 0.5
        panel.plot([-0.5, edge, edge, -0.5, -0.5], [-0.5, -0.5, edge, edge, -0.5], color="0.4", linewidth=0.7)
        panel.set(xlim=(low, high), ylim=(high, low), title=title)
        panel.set_xlabel(f"m = {layer.in_width},  density {layer.connections / layer.in_width**2:.2g}")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
    figure.tight_layout(pad=0.6)
    figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
