"""Heads that read unequal numbers of features are told of, and bar a difference of structures."""

import json
from pathlib import Path

import yaml

from mixersweep.report.build import build
from mixersweep.report.readouts import bars, readout_of
from mixersweep.runs import RunDirectory
from tests.report.sweeps import write_sweep

LATER = (
    "readout_dimension",
    "connections_real",
    "connections_real_target",
    "weights_real",
    "weights_real_target",
    "flops_target",
)
GROUPS = ["model.head=signed_groups"]


def level(model: str, width: int, seed: int) -> float:
    return 0.8


def compared(tmp_path: Path, *settings: str) -> tuple[list, list[str]]:
    """A pair of rows for each width, and what is told."""
    write_sweep(tmp_path, level, models=("s_mixer", "sw_mlp"), seeds=(0, 1), settings=settings)
    (main,) = build([tmp_path]).all_statistics
    rows = {(cell.cell[0], cell.cell[1]): cell.rows[0] for cell in main.cells}
    widths = dict.fromkeys(width for _, width in rows)
    return [(rows["s_mixer", width], rows["sw_mlp", width]) for width in widths], main.warnings


def test_unequal_pooled_heads_bar_a_difference_and_are_told_of(tmp_path: Path) -> None:
    joined, warnings = compared(tmp_path)
    assert [(readout_of(one), readout_of(other)) for one, other in joined] == [
        (("pool", 8), ("pool", 11)),
        (("pool", 16), ("pool", 14)),
        (("pool", 32), ("pool", 16)),
    ]
    assert bars(joined) == ["their heads read different numbers of features (32 and 16 at width 1,024)"]
    said = "heads read unequal numbers of features, which may decide by itself: s_mixer 8 to 32; sw_mlp 11 to 16"
    assert said in warnings


def test_equal_groups_bar_nothing(tmp_path: Path) -> None:
    joined, warnings = compared(tmp_path, *GROUPS)
    assert {readout_of(row) for pair in joined for row in pair} == {("signed_groups", 64)}
    assert bars(joined) == []
    assert not [text for text in warnings if "features" in text]


def test_runs_with_heads_of_another_kind_or_size_are_in_no_comparison_together(tmp_path: Path) -> None:
    for settings in ([], GROUPS, [*GROUPS, "model.readout_dimension=32"]):
        write_sweep(tmp_path, level, models=("s_mixer", "sw_mlp"), seeds=(0, 1), settings=settings)
    found = build([tmp_path]).all_statistics
    heads = {(one.comparison.fixed["model.head"], one.comparison.fixed["model.readout_dimension"]) for one in found}
    assert heads == {("pool", 64), ("signed_groups", 64), ("signed_groups", 32)}


def test_a_rank_below_the_features_is_told(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path, level, models=("s_mixer", "sw_mlp"), seeds=(0, 1))
    for path in paths.values():
        record = json.loads((path / "result.json").read_text())
        record["readout_rank"] = record["readout_dimension"] - 1
        (path / "result.json").write_text(json.dumps(record))
    warnings = build([tmp_path]).all_statistics[0].warnings
    assert any("s_mixer 8 to 32 (of rank 7 at the start); sw_mlp 11 to 16 (of rank 10" in text for text in warnings)


def test_runs_from_before_it_was_recorded_have_what_their_heads_read(tmp_path: Path) -> None:
    """A frozen run without the setting and without the size opens, and its record says both."""
    (path, *_) = write_sweep(tmp_path, level, models=("sw_mlp",), widths=(1024,), seeds=(0,)).values()
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
