"""``analyze coordinates``: the coordinate check, how the change of features in a few steps scales with the width.

Yang et al. 2022 (Tensor Programs V, arXiv 2203.03466, appendix D.1). Under a parametrisation whose best learning rate
is the same for every width, the size of features and logits, and how far a step moves them, do not depend on the width;
under others they grow or vanish as a power of it. Networks are initialised and trained for a few steps on one fixed
batch at the constant ``optim.lr``, at several widths and seeds; no run is needed. The size of a layer is the root mean
square of its features over images and units, and the slope of log2 size over log2 width is fitted.

In theory the exponents in S and C are multiples of 1/2, and S and C grow about as the square root of the width, so the
smallest exponent of the width is 1/4. A slope nearer to 0 than to 1/4 is therefore ``flat``, any other ``grows`` or
``vanishes``; a slope closer to the bound between them than its uncertainty over seeds is ``unclear``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mixersweep.analysis.intervals import LEVEL
from mixersweep.analysis.output import tracked
from mixersweep.analysis.subjects import settings_of
from mixersweep.config import Config
from mixersweep.config.schema import WidthScaled
from mixersweep.data.splits import open_splits
from mixersweep.errors import UserError
from mixersweep.models.branches import Features
from mixersweep.runs import Run
from mixersweep.seeds import derive
from mixersweep.training.learner import Learner
from mixersweep.training.parallel import World
from mixersweep.training.steps import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

STEPS, SEEDS, IMAGES, SIZES = (1, 2, 4, 8), 3, 64, (8, 16, 32, 64)
"""The defaults: the steps to measure after, the seeds, the images, and S = C where no shape is given."""

FLAT = 1 / 8
"""The largest slope that is flat: half the smallest exponent of theory."""

OVER = {"width": ("connections", "density", "channels", "tokens"), "density": ("width", "connections")}
"""The x axes and, where several networks share an x, the sizes to hold fixed: the first that gives curves is taken."""

DEFAULT = (
    ("model=s_mixer,rp_s_mixer", "model.skip_layer=always", "optim=sgd,adamw", "optim.lr_scaling=none,mup,mup_tied"),
    ("model=pk", "model.tied=false", "model.skip_layer=always", "optim=sgd,adamw", "optim.lr_scaling=none,mup"),
    ("model=sw_mlp", "match=mixer", "optim=sgd,adamw", "optim.lr_scaling=none,mup"),
)
"""The settings checked by default, with ``SMALL`` and ``SIZES``; each has the same layers at every width."""

SMALL = ("depth=2", "model.head=signed_groups", "model.readout_dimension=16", "augment=none")


NOT_MIXING = ("embedding", "logits")
"""The layers that do not mix."""


class Watched:
    """A context that records the features of a network's stem and branches, and its logits, by name."""

    def __init__(self, network: nn.Module) -> None:
        self._features = Features(network)
        self._stem = getattr(network, "embedding", None)
        self._kept: list[Tensor] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Watched:
        self._features.__enter__()
        if isinstance(self._stem, nn.Module):
            self._hooks = [self._stem.register_forward_hook(lambda _m, _i, out: self._kept.append(out.transpose(0, 1)))]
        return self

    def __exit__(self, *_: object) -> None:
        self._features.__exit__()
        for hook in self._hooks:
            hook.remove()

    def of(self, learner: Learner, images: Tensor) -> dict[str, Tensor]:
        """The features (B, features) of each layer on these images, in float64, from a forward pass in evaluation."""
        self._kept = []
        logits = learner.logits(images)
        learner.train()
        stem = {"embedding": self._kept[0].flatten(1)} if self._kept else {}
        found = {**stem, **self._features.kept(), "logits": logits}
        return {name: value.detach().double() for name, value in found.items()}


def check(run: Run, device: torch.device, images: Tensor, labels: Tensor, steps: Sequence[int]) -> list[Row]:
    """Measure the size of each layer's features at initialisation (step 0), and of their change after ``steps``."""
    learner = Learner(run, device, World(), getattr(run.config.model, "storage", "auto"))
    learner.train()
    rate, rows = run.config.optim.lr, []
    with Watched(learner.network) as watched:
        start = watched.of(learner, images)
        rows += [{"layer": name, "step": 0, "size": _rms(value)} for name, value in start.items()]
        for step in range(1, max(steps) + 1):
            seed = derive(run.config.seed, "coordinates", step)
            learner.step(Step(1, step - 1, step - 1, images, labels, len(images), rate, seed))
            if step in steps:
                now = watched.of(learner, images)
                rows += [{"layer": name, "step": step, "size": _rms(now[name] - start[name])} for name in start]
    return rows


def _rms(value: Tensor) -> float:
    return float(value.square().mean().sqrt())


def slope(x: Sequence[float], sizes: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Fit the slope of log2 size over log2 ``x``; returns it and half the width of its 95% interval.

    ``sizes`` has the sizes of all seeds at each x. The interval comes from the spread over seeds at equal x, not from
    deviations from a straight line. Both are None where a size is not positive and finite; the interval also for one
    seed.
    """
    from scipy.stats import t

    values = np.array(sizes, dtype=np.float64)
    if not np.all(np.isfinite(values) & (values > 0)):
        return None, None
    logs, at = np.log2(values), np.log2(np.array(x, dtype=np.float64))
    seeds = logs.shape[1]
    apart = at - at.mean()
    found = float(apart @ logs.mean(1) / (apart @ apart))
    if seeds < 2:
        return found, None
    error = math.sqrt(float(logs.var(1, ddof=1).mean()) / (seeds * float(apart @ apart)))
    return found, float(t.ppf((1 + LEVEL) / 2, len(at) * (seeds - 1))) * error


def verdict(found: float | None, tolerance: float | None) -> str:
    """Classify a slope as ``flat``, ``grows`` or ``vanishes``, or as ``unclear`` within ``tolerance`` of the bound.

    The verdict is ``none`` where there is no slope, since sizes are zero or not finite.
    """
    if found is None:
        return "none"
    clear = "flat" if abs(found) <= FLAT else "grows" if found > 0 else "vanishes"
    return clear if abs(abs(found) - FLAT) > (tolerance or 0.0) else "unclear"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Runs that differ only in the quantity on the x axis, with its values: ``points`` (x, run), in order of x."""

    family: str
    optimizer: str
    rule: str
    points: list[tuple[float, Run]]

    @property
    def name(self) -> Row:
        """The columns that identify the curve."""
        return {"family": self.family, "optimizer": self.optimizer, "rule": self.rule}


def curves(runs: Sequence[Run], over: str = "width") -> list[Curve]:
    """Group runs into curves; raises ``UserError`` where a group has one x value, or several networks at one."""
    settings = [settings_of(run.config) for run in runs]
    alike: dict[str, list[Run]] = {}
    for run, mine in zip(runs, settings, strict=True):
        alike.setdefault(str(sorted((key, str(value)) for key, value in mine.items())), []).append(run)
    found = []
    for group in alike.values():
        mine = settings_of(group[0].config)
        family, optimizer = (_label(mine, settings, part) for part in ("model", "optim"))
        optim = group[0].config.optim
        rule = optim.lr_scaling if isinstance(optim, WidthScaled) else "none"
        for fixed, some in _split_by_size(group, over, f"{family}, {optimizer}").items():
            points = sorted(((_size(run, over), run) for run in some), key=lambda point: point[0])
            found.append(Curve(" ".join([family, *fixed.split()]), optimizer, rule, points))
    return found


def _split_by_size(runs: list[Run], over: str, name: str) -> dict[str, list[Run]]:
    """Split runs that differ only in their sizes into curves along which another size, named by the key, is fixed."""
    xs = sorted(_size(run, over) for run in runs)
    if len(set(xs)) < 2:
        example = f"{over}={xs[0]:g},{4 * xs[0] if over == 'width' else xs[0] / 4:g}"
        raise UserError(f"{over}={xs[0]:g}: the only one of {name}; a slope needs several, e.g. {example}")
    if len(set(xs)) == len(xs):
        return {"": runs}
    for fixed in OVER[over]:
        found: dict[str, list[Run]] = {}
        for run in runs:
            value = getattr(run.architecture, fixed) or 0
            found.setdefault(f"{fixed}={float(value):{'.3g' if fixed == 'density' else '.12g'}}", []).append(run)
        if all(len({_size(run, over) for run in some}) == len(some) > 1 for some in found.values()):
            return found
    twice = next(x for x in xs if xs.count(x) > 1)
    raise UserError(
        f"{over}={twice:g}: {xs.count(twice)} networks of {name} have it, and with none of {', '.join(OVER[over])} "
        f"fixed they make curves over {over}; check them one curve at a time"
    )


def _size(run: Run, name: str) -> float:
    return float(getattr(run.architecture, name))


def _label(mine: Row, every: Sequence[Row], part: str) -> str:
    """The name of a family or optimiser, with its settings that differ among those of that name."""
    name = mine[f"{part}.name"]
    alike = [settings for settings in every if settings[f"{part}.name"] == name]

    def belongs(key: str) -> bool:
        if part == "optim":
            return key.startswith("optim.") and key != "optim.lr_scaling"
        return not key.startswith("optim.")

    varied = [key for key in mine if belongs(key) and len({str(settings.get(key)) for settings in alike}) > 1]
    words = [f"{key.removeprefix(f'{part}.')}={mine[key]}" for key in varied]
    if part == "model" and "tied" not in varied and mine.get("model.tied") is False:
        words.append("untied")
    return " ".join([str(name), *words])


def analyze(
    runs: Sequence[Run],
    device: torch.device,
    *,
    over: str = "width",
    steps: Sequence[int] = STEPS,
    seeds: int = SEEDS,
    images: int = IMAGES,
) -> tuple[dict[str, Any], list[Row]]:
    """Check all curves over several seeds; returns the document and its table.

    ``sizes`` of the document are by curve, x, seed, layer and step. ``layers``, the table, has a row for each layer of
    each curve: the slope of its size at initialisation, those of its change after each step, and the verdicts.
    """
    found = curves(runs, over)
    batches: dict[str, tuple[Tensor, Tensor]] = {}
    work = [(curve, x, run, seed) for curve in found for x, run in curve.points for seed in range(seeds)]
    sizes: list[Row] = []
    for curve, x, run, seed in tracked(work, "coordinates"):
        key = str((run.config.data, run.config.image_size))
        if key not in batches:
            batches[key] = _batch(run.config, images, device)
        config = dataclasses.replace(run.config, seed=run.config.seed + seed, compile=False)
        rows = check(dataclasses.replace(run, config=config), device, *batches[key], steps)
        sizes += [{**curve.name, over: x, "seed": config.seed, **row} for row in rows]
    table = [row for curve in found for row in _table(curve, sizes, over, steps)]
    about = {"over": over, "steps": list(steps), "seeds": seeds, "images": images, "flat": FLAT}
    return {**about, "layers": table, "sizes": [_plain(row) for row in sizes]}, table


def _plain(row: Row) -> Row:
    """Replace a size that is not finite, of a network that diverged, by None, which JSON has."""
    return {**row, "size": row["size"] if math.isfinite(row["size"]) else None}


def _batch(config: Config, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first training images without augmentation (n, channels, H, W), and their labels (n,)."""
    splits = open_splits(config, device)
    try:
        if len(splits.train) < count:
            raise UserError(f"--images {count}: the training set has {len(splits.train):,}")
        images, labels = next(iter(splits.train.batches(count, None, None)))
        return images, labels
    finally:
        splits.close()


def _table(curve: Curve, sizes: Sequence[Row], over: str, steps: Sequence[int]) -> Iterator[Row]:
    mine = [row for row in sizes if all(row[key] == value for key, value in curve.name.items())]
    xs = [x for x, _ in curve.points]
    for layer in dict.fromkeys(row["layer"] for row in mine):
        row: Row = {**curve.name, "layer": layer, "at": xs}
        for step in (0, *steps):
            values = [[r["size"] for r in mine if (r[over], r["layer"], r["step"]) == (x, layer, step)] for x in xs]
            found, tolerance = slope(xs, values)
            name = "start" if step == 0 else f"change_{step}"
            row |= {name: found, f"{name}_tolerance": tolerance, f"{name}_verdict": verdict(found, tolerance)}
            if step in (0, steps[-1]):
                means = [float(np.mean(value)) for value in (values[0], values[-1])]
                row[f"{name}_sizes"] = [mean if math.isfinite(mean) else None for mean in means]
        yield {**row, "verdict": row[f"change_{steps[-1]}_verdict"]}


def brief(document: Mapping[str, Any]) -> list[Row]:
    """Summarise each curve in a row: the steepest slope of a mixing layer and that of the logits, with verdicts.

    Both are given after the first and after the last step.
    """
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in document["layers"]:
        lines.setdefault((row["family"], row["optimizer"], row["rule"]), []).append(row)
    found = []
    for (family, optimizer, rule), rows in lines.items():
        line: Row = {"family": family, "optimizer": optimizer, "rule": rule}
        for step in sorted({document["steps"][0], document["steps"][-1]}):
            for what, some in (
                ("features", [row for row in rows if row["layer"] not in NOT_MIXING]),
                ("logits", rows[-1:]),
            ):
                worst = max(
                    some, key=lambda row: math.inf if row[f"change_{step}"] is None else abs(row[f"change_{step}"])
                )
                judged = worst[f"change_{step}_verdict"]
                number = worst[f"change_{step}"]
                line[f"{what} after {step}"] = judged if number is None else f"{number:+.2f} {judged}"
        found.append(line)
    return found


def draw(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw how far each layer's features and the logits move until the last step, a panel for each curve."""
    from mixersweep.figures import draw_panels

    rows, last = document["sizes"], document["steps"][-1]
    named = dict.fromkeys((row["optimizer"], row["rule"], row["family"]) for row in rows)
    families = list(dict.fromkeys(family for _, _, family in named))
    ways = list(dict.fromkeys((optimizer, rule) for optimizer, rule, _ in named))

    def panel(optimizer: str, rule: str, family: str) -> Any:
        name = {"optimizer": optimizer, "rule": rule, "family": family}
        mine = [row for row in rows if all(row[key] == value for key, value in name.items()) and row["step"] == last]
        (summary,) = [line for line in brief(document) if all(line[key] == value for key, value in name.items())]
        return lambda axes: _panel(axes, mine, document, f"{family}, {optimizer}, {rule}", summary)

    panels = [
        panel(*way, family) if (*way, family) in named else lambda axes: axes.set_axis_off()
        for way in ways
        for family in families
    ]
    title = f"Change of features after {last} step{'s' if last > 1 else ''}, rms; the band is the range of seeds"
    return draw_panels(out, "coordinates", title, panels, wide=3.1, high=2.7, columns=len(families))


def _panel(axes: Axes, rows: Sequence[Row], document: Mapping[str, Any], title: str, summary: Row) -> None:
    from matplotlib import colormaps

    from mixersweep.figures import INK, log_axis

    over, last = document["over"], document["steps"][-1]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    shades = colormaps["viridis"](np.linspace(0, 0.85, max(1, len(layers) - 1)))
    xs = sorted({row[over] for row in rows})
    for number, layer in enumerate(layers):
        logits = layer == "logits"
        colour = INK if logits else shades[number]
        values = [[row["size"] or np.nan for row in rows if (row["layer"], row[over]) == (layer, x)] for x in xs]
        label = "logits" if logits else "embedding" if layer == "embedding" else f"layer {number} of {len(layers) - 2}"
        axes.plot(xs, [np.mean(v) for v in values], color=colour, linestyle="--" if logits else "-", linewidth=1.6,
                  marker="o", markersize=3.5, label=label)  # fmt: skip
        axes.fill_between(xs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.12, linewidth=0)
    log_axis(axes, xs)
    log_axis(axes, [row["size"] for row in rows if row["size"]], "y")
    axes.set_xlabel("effective width m" if over == "width" else over)
    verdicts = "; ".join(f"{what} {summary[f'{what} after {last}']}" for what in ("features", "logits"))
    axes.set_title(f"{title}\n{verdicts}", fontsize=8, loc="left")
