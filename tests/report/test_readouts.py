"""Heads that read different numbers of features are named in a caveat, and bar claims that they may explain."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from mixersweep.report.answer import answer
from mixersweep.report.build import build
from mixersweep.report.readouts import readout_of, reasons_to_bar_pair, reasons_to_bar_trend
from mixersweep.report.sheets import sheets
from mixersweep.report.statistics import Statistics
from mixersweep.runs import RunDirectory
from tests.report.sweeps import write_search, write_sweep

LATER = (
    "readout_dimension",
    "connections_real",
    "connections_real_target",
    "weights_real",
    "weights_real_target",
    "flops_target",
)
GROUPS = ["model.head=signed_groups"]
POOL = ["model.head=pool"]
REMEDY = "model.head=signed_groups, which reads 64 features of every network)"


def level(model: str, width: int, seed: int) -> float:
    """Differences and trends that would be shown."""
    return 0.5 + 0.2 * (model == "s_mixer") + 0.4 * np.log2(width / 900)


def compared(tmp_path: Path, *settings: str, ranks: Mapping[str, int] | None = None) -> Statistics:
    """Two models whose rates were searched; ``ranks`` are those of what their heads read."""
    paths = write_sweep(tmp_path, level, models=("s_mixer", "sw_mlp"), seeds=(0, 1, 2), settings=settings)
    write_search(tmp_path, models=("s_mixer", "sw_mlp"), settings=settings)
    for (model, *_), path in paths.items() if ranks else ():
        record = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps(record | {"readout_rank": ranks[model]}))
    (main,) = build([tmp_path]).all_statistics
    return main


def test_unequal_pooled_heads_bar_every_claim_and_are_told_of(tmp_path: Path) -> None:
    main = compared(tmp_path, *POOL)
    read = {cell.cell[:2]: readout_of(cell.rows) for cell in main.cells}
    assert read["s_mixer", 1024] == ("pool", 32, None)
    assert read["sw_mlp", 1024] == ("pool", 16, None)
    (pair,) = main.pairs
    why = f"the readouts differ: 32 features against 16 features at width 1,024 (train both with {REMEDY}"
    assert pair.barred == pair.against
    assert [str(reason) for reason in pair.against] == [why]
    said = answer(main)
    assert said.structure.lines == ["s_mixer and sw_mlp: not claimed, the readouts differ"]
    assert said.rest[2] == f"not claimed for s_mixer and sw_mlp: {why}"
    assert {trend.variant: [str(reason) for reason in trend.barred] for trend in main.trends} == {
        model: [f"the readouts differ along the width: {read} at 1,024 (train all with {REMEDY}"]
        for model, read in (
            ("s_mixer", "8 features at 696 against 32 features"),
            ("sw_mlp", "11 features at 696 against 16 features"),
        )
    }
    assert main.claims == 0
    said = (
        "the heads read different numbers of features, which alone may explain a difference: s_mixer 8 to 32; "
        "sw_mlp 11 to 16"
    )
    assert said in main.warnings
    sheet = next(sheet for sheet in sheets(main) if sheet.name == "pairs")
    assert sheet.rows[0]["verdict"] == f"not claimed: {why}"


def test_equal_groups_bar_nothing(tmp_path: Path) -> None:
    main = compared(tmp_path, *GROUPS, ranks={"s_mixer": 64, "sw_mlp": 64})
    assert {readout_of(cell.rows) for cell in main.cells} == {("signed_groups", 64, 64)}
    assert all(claim.is_decided for claim in (*main.pairs, *main.trends))
    assert not [text for text in main.warnings if "features" in text]


def test_equal_numbers_of_features_of_unequal_rank_bar_a_difference(tmp_path: Path) -> None:
    main = compared(tmp_path, *GROUPS, ranks={"s_mixer": 64, "sw_mlp": 9})
    (pair,) = main.pairs
    assert [str(reason) for reason in pair.barred] == [
        "the readouts differ: 64 features of rank 64 against 64 features of rank 9 at width 696 "
        "(train both with a smaller model.readout_dimension)"
    ]
    assert all(trend.is_decided for trend in main.trends)


def test_heads_that_are_layers_of_the_budget_bar_nothing() -> None:
    """Networks of layers of unequal sizes count the head among them, whatever it reads."""
    narrow = [{"width": 80, "readout_dimension": 80, "readout_rank": 60}]
    wide = [{"width": 640, "readout_dimension": 640, "readout_rank": 255}]
    assert readout_of(narrow) is None
    assert reasons_to_bar_pair([(narrow, wide)]) == reasons_to_bar_trend([narrow, wide]) == []


def test_runs_with_heads_of_another_kind_or_size_are_in_no_comparison_together(tmp_path: Path) -> None:
    for settings in (POOL, GROUPS, [*GROUPS, "model.readout_dimension=32"]):
        write_sweep(tmp_path, level, models=("s_mixer", "sw_mlp"), seeds=(0, 1), settings=settings)
    found = build([tmp_path]).all_statistics
    heads = {(one.comparison.fixed["model.head"], one.comparison.fixed["model.readout_dimension"]) for one in found}
    assert heads == {("pool", 64), ("signed_groups", 64), ("signed_groups", 32)}


def test_a_rank_below_the_features_is_told(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path, level, models=("s_mixer", "sw_mlp"), seeds=(0, 1), settings=POOL)
    for path in paths.values():
        record = json.loads((path / "result.json").read_text())
        record["readout_rank"] = record["readout_dimension"] - 1
        (path / "result.json").write_text(json.dumps(record))
    warnings = build([tmp_path]).all_statistics[0].warnings
    assert any(
        "s_mixer 8 to 32 (of rank 7 at initialisation); sw_mlp 11 to 16 (of rank 10" in text for text in warnings
    )


def test_runs_from_before_it_was_recorded_have_what_their_heads_read(tmp_path: Path) -> None:
    """A frozen run without the setting and without the size opens, and its record says both."""
    one = {"models": ("sw_mlp",), "widths": (1024,), "seeds": (0,), "settings": POOL}
    (path, *_) = write_sweep(tmp_path, level, **one).values()
    whole = RunDirectory.open(path).run
    for name in ("config.yaml", "planned.json"):
        stored = yaml.safe_load((path / name).read_text())
        for later in LATER:
            del stored["architecture"][later]
        del stored["config"]["model"]["readout_dimension"], stored["config"]["count"], stored["config"]["flops"]
        (path / name).write_text(yaml.safe_dump(stored) if name.endswith("yaml") else json.dumps(stored))
    record = json.loads((path / "result.json").read_text())
    for later in (*LATER, "readout_rank"):
        del record[later]
    (path / "result.json").write_text(json.dumps(record))
    assert RunDirectory.open(path).run == whole
    (row,) = build([tmp_path]).table.rows
    assert (row["readout_dimension"], row["readout_rank"]) == (16, None)
    assert (row["connections_real"], row["weights_real"]) == (32768, 32768)
