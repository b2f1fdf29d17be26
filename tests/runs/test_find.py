"""Runs by path or name, and where they are without a setting."""

from pathlib import Path

import pytest

from mixersweep.compose import config_of
from mixersweep.data import listing
from mixersweep.errors import UserError
from mixersweep.paths import data_dir, runs_dir
from mixersweep.runs.find import find, find_all

NAMES = ("mixer-w36-s0-aa11", "mixer-w36-s1-bb22", "s_mixer-w36-s0-cc33", "s_mixer-w36-s0-cc33-old")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of runs that is the default one."""
    for name in (*NAMES, ".sweeps/mixer-w36-s0-aa"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    (tmp_path / "mine" / "mixer-w36-s0-aa11.lock").write_text("")
    monkeypatch.setenv("MIXERSWEEP_RUNS", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("bb22", 1),
        ("w36-s1", 1),
        ("mixer-w36-s0", 0),  # it stands in two more, but begins this one
        ("s_mixer-w36-s0-cc33", 2),  # which begins another
        ("old", 3),
    ],
)
def test_a_part_of_a_name_will_do_where_it_is_of_one_run(runs: Path, named: str, found: int) -> None:
    assert find(named) == runs / NAMES[found]
    assert find_all([named, runs]) == [runs / NAMES[found], runs]


def test_a_path_comes_before_a_name_and_no_name_is_the_default(runs: Path) -> None:
    Path("bb22").mkdir()
    assert find("bb22") == Path("bb22") and find(Path("mine")) == Path("mine")
    assert find_all([]) == [runs]
    assert find("aa", Path("mine")) == Path("mine") / NAMES[0]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("w36", r"w36: 4 runs in .*mine have this in their name \(mixer-w36-s0-aa11, .*\); say more of it"),
        ("nowhere", r"nowhere: no such directory, and no run of this name in .*mine \(also MIXERSWEEP_RUNS\)"),
        ("mine/bb22", "mine/bb22: no such directory; name a directory of runs, or a run in .*mine"),
    ],
)
def test_what_is_of_none_or_of_several_is_refused(runs: Path, named: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(named)


@pytest.mark.parametrize("place", [None, "elsewhere"])
def test_settings_and_verbs_agree_on_where_things_are(place: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MIXERSWEEP_RUNS", "MIXERSWEEP_DATA"):
        if place is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, place)
    config = config_of([])
    assert Path(config.runs_dir) == runs_dir() and Path(config.data_dir).expanduser() == data_dir()
    assert listing(Path(config.data_dir)) == listing(data_dir())
