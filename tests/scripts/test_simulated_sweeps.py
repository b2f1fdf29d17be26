"""The study of simulated sweeps, as a script and on shares that are known."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.studies.simulated_sweeps import EFFECTS, WITH_EFFECT, WITHOUT_EFFECT, Share

ROOT = Path(__file__).parents[2]


def test_a_share_has_the_interval_of_the_binomial_distribution() -> None:
    share = Share()
    for hit in (True, *[False] * 9):
        share.add(hit)
    assert share.value == 0.1
    # Clopper & Pearson 1934 for 1 of 10, from quantiles of the beta distribution
    assert share.interval == pytest.approx((0.002529, 0.445016), abs=1e-6)


@pytest.mark.slow
def test_the_study_writes_a_row_for_each_setting_and_a_figure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.studies.simulated_sweeps", "--sweeps", "2", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((tmp_path / "simulated_sweeps.json").read_text())["rows"]
    assert [row["truth"] for row in rows].count("no effect") == len(WITHOUT_EFFECT)
    assert [row["truth"] for row in rows].count("an effect") == len(WITH_EFFECT) * len(EFFECTS)
    # three points are found whatever sets runs apart, nothing is found where nothing is
    assert all(row["pairs claimed"] == 1 for row in rows if row.get("points") == 3 and row["seeds"] == 5)
    assert all(row["with a false claim"] == 0 for row in rows if row["truth"] == "no effect")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".csv", ".md", ".svg", ".png"}
