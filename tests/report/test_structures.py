"""Accuracy by structure, beside the time of a step: which runs are in which group and row, and what is drawn."""

import json
import math
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest
from matplotlib.axes import Axes

from mixersweep.compose import config_of
from mixersweep.report import build
from mixersweep.report.axes import y_axis
from mixersweep.report.canvas import Figure
from mixersweep.report.recipe import comparisons
from mixersweep.report.statistics import statistics
from mixersweep.report.structures import FEWEST, GROUPS, draw_structures, exponents
from mixersweep.report.table import collect
from mixersweep.runs import Origin, solve
from tests.report.sweeps import images, write_sweep, write_trained
from tests.runs.synthetic import seeded

BUDGET = ["connections=4096", "model.head=signed_groups", "optim.lr=0.1"]
STRUCTURES = {  # settings, and the true accuracy: the groups from above, in each the best first
    "sw_mlp mask=block": (["model=sw_mlp", "model.mask=block", "width=256"], 0.9),
    "mlp": (["model=mlp"], 0.8),
    "sw_mlp mask=exact": (["model=sw_mlp", "width=256"], 0.6),
    "s_mixer": (["model=s_mixer", "width=256"], 0.7),
    "hashed": (["model=hashed", "model.sharing=16", "width=256"], 0.5),
    "low_rank": (["model=low_rank", "width=455"], 0.95),
}
WIDER = ["model=sw_mlp", "model.mask=block", "width=512"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six structures with 4,096 connections, one of them at a second width, three seeds each."""
    folder, labels = tmp_path_factory.mktemp("structures"), images(0)
    for asked, accuracy in [*STRUCTURES.values(), (WIDER, 0.4)]:
        first = solve(config_of([*asked, *BUDGET]), Origin(sweep="structures", overrides=asked))
        for seed in range(3):
            correct = np.arange(len(labels)) < round((accuracy + 0.01 * seed) * len(labels))
            path = write_trained(folder, seeded(first, seed), correct, labels)
            record = json.loads((path / "result.json").read_text())
            record["images_per_second"] = 128_000 / (1 + first.architecture.width / 256 + 3 * seed)
            (path / "result.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def drawn(runs: Path) -> Figure:
    found = statistics(comparisons(collect([runs]).completed))
    assert len(found) == 1
    return draw_structures(found[0], y_axis("accuracy"), "structure_vs_accuracy", None)


def at(axes: Axes, marker: str = "o", size: float = 5.5) -> dict[float, float]:
    """The value drawn at each height, of the large markers."""
    lines = [line for line in axes.lines if line.get_marker() == marker and line.get_markersize() == size]
    return {line.get_ydata()[0]: line.get_xdata()[0] for line in lines}  # type: ignore[index]


def names(axes: Axes) -> dict[float, str]:
    """What is written beside the axes at each height, right-aligned: headings and structures."""
    return {text.xy[1]: text.get_text() for text in axes.texts if text.get_ha() == "right"}  # type: ignore[attr-defined]


def test_rows_stand_in_their_groups_the_best_first_and_widths_together(drawn: Figure) -> None:
    left, _ = drawn.drawing.axes
    written = names(left)
    of_groups = [GROUPS[False, True][0], *list(STRUCTURES)[:3]]
    of_groups += [GROUPS[True, True][0], *list(STRUCTURES)[3:5], GROUPS[False, False][0], "low_rank"]
    assert [written[height] for height in sorted(written)] == of_groups
    ticks = dict(zip(left.get_yticks(), [label.get_text() for label in left.get_yticklabels()], strict=True))
    block, dense = (height for height, name in written.items() if name in ("sw_mlp mask=block", "mlp"))
    assert (ticks[block], ticks[block + 1], ticks[dense]) == ("m = 256", "512", "64")
    assert dense == block + 2
    assert sorted(ticks) == sorted(at(left))


def test_values_are_means_over_seeds_with_their_intervals(drawn: Figure) -> None:
    left, _ = drawn.drawing.axes
    values = at(left)
    for height, name in names(left).items():
        if name in STRUCTURES:
            seeds = [100 * round((STRUCTURES[name][1] + 0.01 * seed) * 400) / 400 for seed in range(3)]
            assert values[height] == pytest.approx(mean(seeds))
    bars = [line for line in left.lines if len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    half = 4.302652729911275 * 1 / math.sqrt(3)  # Student's t of two degrees of freedom; seeds are one point apart
    assert len(bars) == len(values)
    assert all(np.ptp(bar.get_xdata()) == pytest.approx(2 * half) for bar in bars)


def test_times_are_medians_of_the_records_by_the_batch(drawn: Figure) -> None:
    left, right = drawn.drawing.axes
    times, written = at(right), names(left)
    for height, width in (
        (h, 64 if name == "mlp" else 256) for h, name in written.items() if name in ("mlp", "s_mixer")
    ):
        assert times[height] == pytest.approx(median(1 + width / 256 + 3 * seed for seed in range(3)))
    assert "on cpu" in drawn.caption and "of whole packs" not in drawn.caption


def test_exponents_are_those_of_multiply_adds_for_each_weight_and_of_the_rank(runs: Path) -> None:
    rows = {row["model"]: row for row in collect([runs]).completed}
    assert exponents(rows["hashed"]) == pytest.approx((math.log(16, 256), 1))
    assert exponents(rows["s_mixer"]) == pytest.approx((0.5, 1))  # 16 x 16: each weight acts 16 times, the root of 256
    assert exponents(rows["mlp"]) == (0, 1)
    assert exponents(rows["low_rank"]) == pytest.approx((0, math.log(4, rows["low_rank"]["width"])))


def test_a_report_of_many_structures_has_the_figure_and_one_of_few_has_not(runs: Path, tmp_path: Path) -> None:
    assert len(STRUCTURES) >= FEWEST
    report = build([runs], out=tmp_path / "many")
    assert list(report.figures)[1] == "structure_vs_accuracy"
    assert report.figures["structure_vs_accuracy"]["png"].read_bytes().startswith(b"\x89PNG")
    assert 'id="structure_vs_accuracy"' in (tmp_path / "many" / "report.html").read_text()
    write_sweep(tmp_path / "few", lambda *_: 0.7, seeds=(0, 1))
    few = build([tmp_path / "few"], out=tmp_path / "out")
    assert "structure_vs_accuracy" not in {**few.figures, **few.left_out}
