"""``analyze landscape``: loss under perturbed weights at the end of training, against width, as a measure of sharpness.

A perturbation of relative size ε adds to the weights of each layer a random direction of ε times their norm, per layer
or, after Li et al. 2018, per filter. The same directions serve every ε. Only mixing layers are perturbed, since stem
and head differ in size between families. Where weights are shared, so is the perturbation, so that it has the same
relative size in the effective matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mixersweep.analysis.intervals import over_seeds
from mixersweep.analysis.output import tracked
from mixersweep.analysis.subjects import Subject, groups, mixing_maps
from mixersweep.data.splits import open_splits
from mixersweep.layers import SparseMap, SparseWeights
from mixersweep.seeds import derive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
EPSILONS = (0.03, 0.1, 0.2, 0.4)
SHOWN = 0.2
"""The ε of the panels over widths."""

BATCH = 500


def direction(layer: SparseMap, seed: int, normalise: Literal["layer", "filter"] = "layer") -> Tensor:
    """Draw a random direction with the norm of the layer's weights, or with ``filter`` the norm of each of their rows.

    The rows are those of the stored weights, for sparse weights those of the matrix. Shape and dtype are the weights'.
    """
    weight = layer.weight.detach()
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).to(weight)
    if normalise == "layer":
        return torch.mul(drawn, weight.norm() / drawn.norm().clamp(min=1e-30))
    if isinstance(layer, SparseWeights):
        rows = layer.row_of.long()
        sums = torch.zeros(2, layer.out_width, dtype=weight.dtype, device=weight.device)
        sums[0].index_add_(0, rows, weight**2)
        sums[1].index_add_(0, rows, drawn**2)
        return torch.mul(drawn, (sums[0] / sums[1].clamp(min=1e-30)).sqrt()[rows])
    return torch.mul(drawn, weight.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True).clamp(min=1e-30))


@contextmanager
def perturbed(layers: Mapping[str, SparseMap], directions: Mapping[str, Tensor], epsilon: float) -> Iterator[None]:
    """Add ``epsilon`` times the directions to these layers' weights inside the block; then restore them exactly."""
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.add_(directions[name], alpha=epsilon)
        yield
    finally:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(before[name])


@torch.no_grad()
def loss(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The mean cross-entropy of a network in evaluation mode, in nats."""
    total = 0.0
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        total += float(F.cross_entropy(network(x).float(), y, reduction="sum"))
    return total / len(images)


def analyze(
    subjects: Sequence[Subject],
    device: torch.device,
    *,
    draws: int = 4,
    images: int = 2000,
    by_layer: bool = False,
    epsilons: Sequence[float] = EPSILONS,
) -> tuple[dict[str, Any], list[Row]]:
    """Measure the losses under perturbed weights; returns the document and its table.

    ``rows`` of the document are mean losses over ``draws`` directions for each run, layer and ε (layer ``all`` perturbs
    all at once); ``groups``, the table, are means over seeds of the losses and their rise, with intervals. ``images``
    is the number of images of each split.
    """
    label_of = {id(run): label for label, runs in groups(subjects).items() for run in runs}
    rows: list[Row] = []
    for subject in tracked(subjects, "landscape"):
        network = subject.network(None, device)
        layers = mixing_maps(network)
        sets = {split: _first_images(subject, split, images, device) for split in ("train", "test")}
        unperturbed = {split: loss(network, *some) for split, some in sets.items()}
        chosen = {"all": layers, **({name: {name: layer} for name, layer in layers.items()} if by_layer else {})}
        for which, some_layers in chosen.items():
            risen: dict[float, dict[str, list[float]]] = {e: {"train": [], "test": []} for e in epsilons}
            for draw_number in range(draws):
                directions = {
                    name: direction(layer, derive(0, "landscape", draw_number, name))
                    for name, layer in some_layers.items()
                }
                for epsilon in epsilons:
                    with perturbed(some_layers, directions, epsilon):
                        for split, some in sets.items():
                            risen[epsilon][split].append(loss(network, *some))
            for epsilon in (0.0, *epsilons):
                losses = {s: unperturbed[s] if not epsilon else float(np.mean(risen[epsilon][s])) for s in sets}
                rows.append(
                    {
                        "run": subject.name,
                        "group": label_of[id(subject)],
                        "model": subject.config.model.name,
                        "width": subject.directory.run.architecture.width,
                        "seed": subject.seed,
                        "layer": which,
                        "epsilon": epsilon,
                        "train_loss": losses["train"],
                        "test_loss": losses["test"],
                        "train_rise": losses["train"] - unperturbed["train"],
                        "test_rise": losses["test"] - unperturbed["test"],
                        "test_spread": float(np.std(risen[epsilon]["test"])) if epsilon else 0.0,
                    }
                )
    table = _table(rows)
    return {"rows": rows, "groups": table, "draws": draws, "images": images}, table


def _first_images(subject: Subject, split: str, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first ``count`` images of a split without augmentation (n, channels, H, W), and their labels (n,)."""
    splits = open_splits(subject.config, device)
    try:
        x: list[Tensor] = []
        y: list[Tensor] = []
        for images, labels in getattr(splits, split).batches(BATCH, None, None):
            x.append(images)
            y.append(labels)
            if sum(map(len, y)) >= count:
                break
        return torch.cat(x)[:count], torch.cat(y)[:count]
    finally:
        splits.close()


def _table(rows: Sequence[Row]) -> list[Row]:
    found: list[Row] = []
    for group, layer, epsilon in dict.fromkeys((row["group"], row["layer"], row["epsilon"]) for row in rows):
        inside = [row for row in rows if (row["group"], row["layer"], row["epsilon"]) == (group, layer, epsilon)]
        line: Row = {"group": group, "model": inside[0]["model"], "width": inside[0]["width"], "layer": layer}
        line |= {"epsilon": epsilon, "runs": len(inside)}
        for key in ("train_loss", "test_loss", "train_rise", "test_rise"):
            values = [row[key] for row in inside]
            line[key] = float(np.mean(values))
            line[f"{key}_interval"] = over_seeds(values)
        found.append(line)
    return found


def draw(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw test loss over ε at each model's widest, and the rise of both losses over widths at one ε."""
    from mixersweep.figures import band, draw_panels, log_axis, looks_of

    rows = [row for row in document["groups"] if row["layer"] == "all"]
    looks = looks_of([row["model"] for row in rows])
    epsilons = sorted({row["epsilon"] for row in rows if row["epsilon"]})
    at = min(epsilons, key=lambda epsilon: abs(epsilon - SHOWN))

    def bounds(some: Sequence[Row], key: str) -> tuple[Any, Any]:
        intervals = [row[f"{key}_interval"] for row in some]
        return tuple([None if i is None else i[side] for i in intervals] for side in (0, 1))  # type: ignore[return-value]

    def widths(key: str, label: str) -> Any:
        def panel(axes: Axes) -> None:
            for model in looks:
                some = [row for row in rows if row["model"] == model and row["epsilon"] == at]
                some.sort(key=lambda row: int(row["width"]))
                x = [row["width"] for row in some]
                band(axes, x, [row[key] for row in some], *bounds(some, key), looks[model], model)
            log_axis(axes, [row["width"] for row in rows])
            axes.set_xlabel("effective width m")
            axes.set_ylabel(label)
            axes.set_title(f"weights perturbed by ε = {at:g}", fontsize=9, loc="left")

        return panel

    def over_epsilon(axes: Axes) -> None:
        for model in looks:
            widest = max((row for row in rows if row["model"] == model), key=lambda row: int(row["width"]))["group"]
            some = sorted((row for row in rows if row["group"] == widest), key=lambda row: float(row["epsilon"]))
            x = [row["epsilon"] for row in some]
            band(axes, x, [row["test_loss"] for row in some], *bounds(some, "test_loss"), looks[model], model)
        axes.set_xlabel("relative size ε of the perturbation")
        axes.set_ylabel("test loss in nats")
        axes.set_title("the widest of each model", fontsize=9, loc="left")

    panels = [over_epsilon, widths("train_rise", "rise of the training loss in nats")]
    panels.append(widths("test_rise", "rise of the test loss in nats"))
    return draw_panels(out, "landscape", "Loss under perturbed mixing weights", panels)
