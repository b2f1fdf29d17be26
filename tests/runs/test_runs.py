"""Run directories: what makes an experiment, who holds it, what survives a crash."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixersweep.compose import config_of
from mixersweep.errors import RunDiverged, RunHeld, RunStopped, UserError
from mixersweep.runs import (
    VOLATILE,
    Origin,
    RunDirectory,
    Status,
    completed_record,
    fingerprint,
    hold,
    planned_record,
    read_status,
    same_experiment_same_numbers,
    set_status,
    solve,
    status,
)
from mixersweep.runs.experiment import experiment, flatten, numbers_version_of
from mixersweep.runs.files import open_atomic, read_json, write_json
from mixersweep.runs.state import State
from mixersweep.runs.status import this_host

FROZEN = Path(__file__).with_name("fingerprints.json")


def run_of(*overrides: str):
    return solve(config_of(list(overrides)), Origin(overrides=list(overrides)))


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(run_of(), tmp_path)


# --- the fingerprint ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", json.loads(FROZEN.read_text()), ids=lambda case: " ".join(case["overrides"]))
def test_fingerprints_never_change_without_a_new_numbers_version(case: dict) -> None:
    """Old runs stay found: a setting added later is left out while it has its neutral value."""
    assert run_of(*case["overrides"]).fingerprint == case["fingerprint"]


def test_the_frozen_list_is_as_long_as_promised() -> None:
    assert len(json.loads(FROZEN.read_text())) == 20


@pytest.mark.parametrize(
    "override",
    ["device=cpu", "threads=7", "tracking=none", "runs_dir=elsewhere", "data_dir=elsewhere", "tracking.project=x"],
)
def test_where_and_how_a_run_runs_is_no_part_of_the_experiment(override: str) -> None:
    assert run_of(override).fingerprint == run_of().fingerprint


def test_the_storage_of_sparse_weights_is_no_part_of_the_experiment() -> None:
    assert run_of("model=sw_mlp", "model.storage=dense").fingerprint == run_of("model=sw_mlp").fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["width=1024"], []),
        (["tokens=32", "channels=32"], ["connections=2**15"]),
        (["density=0.03125"], []),
        (["connections=2**18", "width=3617"], ["connections=2**18", "width=3616"]),
        (["model=sw_mlp", "match=mixer", "width=1024"], ["model=sw_mlp"]),
        (["branch=wide"], []),
        (["model=mixer", "model.token_expansion=2"], ["model=mixer"]),
        (["augment=none", "data.flip=false"], ["augment=none"]),
    ],
)
def test_how_a_network_was_asked_for_is_no_part_of_the_experiment(one: list[str], other: list[str]) -> None:
    assert run_of(*one).fingerprint == run_of(*other).fingerprint


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model=s_mixer",
        "width=900",
        "depth=3",
        "epochs=31",
        "batch_size=64",
        "optim.lr=0.05",
        "optim.weight_decay=0",
        "augment=none",
        "data=fashion_mnist",
        "patch_size=8",
        "validation=0.2",
        "seeds.order=3",
        "seeds.structure=0",
        "model.norm_eps=1e-6",
        "model.head=linear",
        "optim=adamw",
        "model.tied=false",
    ],
)
def test_whatever_changes_the_numbers_is_part_of_the_experiment(override: str) -> None:
    assert run_of(override).fingerprint != run_of().fingerprint


def test_a_numbers_version_makes_other_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    monkeypatch.setattr(sys.modules["mixersweep.runs.experiment"], "NUMBERS_VERSION", 10**6)
    assert fingerprint(run.config, run.architecture) != run.fingerprint


def test_a_setting_at_its_neutral_value_is_left_out() -> None:
    """Each that the schema has: a run that was frozen before it is the same experiment."""
    run = run_of()
    stored = json.loads(json.dumps(dataclasses.asdict(run.config)))
    whole = experiment(stored)
    assert whole.content == experiment(run.config).content
    left_out = [name for name in whole.flat if name not in flat_names(whole.content)]
    assert len(left_out) >= 20
    for name in left_out:
        *groups, last = name.split(".")
        inner = stored
        for group in groups:
            inner = inner[group]
        del inner[last]
    older = experiment(stored)
    assert older == whole
    assert numbers_version_of(older, {"architecture": vars(run.architecture), "fingerprint": run.fingerprint}) == 1


def flat_names(content: dict[str, Any]) -> set[str]:
    return {name for name, _ in flatten(content)}


# --- the directory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["connections=2**18", "width=3616"],
        ["model=sw_mlp", "width=2000"],
        ["model=sw_mlp", "model.hidden=true", "expansion=1.7"],
        ["model=mlp"],
        ["model=mixer", "model.token_expansion=0.5"],
        ["model=mixer", "expansion=auto", "tokens=20", "channels=30", "connections=20000"],
        ["model=mixer", "expansion=1.1", "tokens=3", "channels=5"],  # connections are a half
        ["model=rp_s_mixer", "model.random_blocks=[0,2]"],
        ["optim=adamw", "tracking=none"],
    ],
    ids=" ".join,
)
def test_a_frozen_run_reads_back_as_it_was(tmp_path: Path, overrides: list[str]) -> None:
    run = run_of(*overrides)
    made = RunDirectory.create(run, tmp_path)
    assert RunDirectory.open(made.path).run == run
    assert made.path.name == run.name
    assert made.path.name.endswith(f"-s0-{run.fingerprint[:16]}")


def test_a_solved_config_solves_to_itself(tmp_path: Path) -> None:
    """The frozen settings mean the same network when somebody asks for them again."""
    for overrides in ([], ["model=sw_mlp"], ["model=mlp"], ["connections=2**18", "width=3616"], ["model=mixer"]):
        run = run_of(*overrides)
        assert solve(run.config).fingerprint == run.fingerprint


def test_a_directory_appears_whole_and_is_found_again(tmp_path: Path) -> None:
    first = RunDirectory.create(run_of(), tmp_path)
    identity = read_json(first.path / "tracking.json")["id"]
    again = RunDirectory.create(run_of("device=cpu"), tmp_path)
    assert again.path == first.path
    assert again.run.config.device == "cpu"
    assert read_json(first.path / "tracking.json")["id"] == identity
    assert identity.startswith(first.run.fingerprint[:16] + "-")
    assert len(identity) == 21
    names = ["config.yaml", "planned.json", "status.json", "tracking.json"]
    assert sorted(p.name for p in first.path.iterdir()) == names
    assert [p.name for p in tmp_path.iterdir()] == [first.path.name]
    assert first.status().state == "planned"


def test_many_processes_may_make_the_same_directory_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from mixersweep.compose import config_of; from mixersweep.runs import *; from pathlib import Path;"
        "r = RunDirectory.create(solve(config_of([])), Path(sys.argv[1]));"
        "print((r.path / 'tracking.json').read_text())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    ids = {process.communicate()[0] for process in started}
    assert len(ids) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_a_run_directory_is_refused_by_name(tmp_path: Path, directory: RunDirectory) -> None:
    with pytest.raises(UserError, match=r"nowhere: no run directory, it has no config\.yaml"):
        RunDirectory.open(tmp_path / "nowhere")
    config = directory.path / "config.yaml"
    whole = config.read_text()
    for broken, message in [
        ("{", "cannot be read"),
        ("- a list", "not of schema_version 1"),
        (whole.replace("schema_version: 1", "schema_version: 99"), "not of schema_version 1"),
        (whole.replace("  depth: 4\n", "", 1), "depth: missing"),
        (whole.replace("  seed: 0\n", "  seed: 1\n"), "changed by hand"),
        (whole.replace("mixing_layers:", "mixing_layer:"), "incomplete"),
    ]:
        assert broken != whole
        config.write_text(broken)
        with pytest.raises(UserError, match=message):
            RunDirectory.open(directory.path)


def test_another_experiment_under_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    RunDirectory.create(run, tmp_path)
    other = dataclasses.replace(run, fingerprint=run.fingerprint[:16] + "0" * 48)
    with pytest.raises(UserError, match="holds another experiment"):
        RunDirectory.create(other, tmp_path)


def test_a_runs_dir_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"runs_dir=.*cannot be written"):
        RunDirectory.create(run_of(), tmp_path / "file")


def test_something_else_in_its_place_is_refused_by_name(tmp_path: Path) -> None:
    run = run_of()
    (tmp_path / run.name).mkdir()
    (tmp_path / run.name / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="move away what is there"):
        RunDirectory.create(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


# --- files -------------------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(RuntimeError), open_atomic(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "before"
    with open_atomic(path) as file:
        file.write(b"after")
    assert path.read_text() == "after"
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert read_json(tmp_path / "none") is None


def test_rows_are_appended_and_a_torn_line_is_no_row(directory: RunDirectory) -> None:
    assert directory.rows() == []
    rows = [{"epoch": 1, "test_accuracy": 0.5}, {"epoch": 2, "test_accuracy": 0.6}]
    for row in rows:
        directory.append_row(row)
    metrics = directory.path / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"epoch": 3, "test_acc')
    assert directory.rows() == rows
    directory.restore_rows(rows)
    assert metrics.read_text().count("\n") == 2
    before = metrics.stat().st_mtime_ns
    directory.restore_rows(rows)  # nothing to mend
    assert metrics.stat().st_mtime_ns == before


# --- holding -----------------------------------------------------------------------------------------------------


def test_a_run_that_ends_well_is_completed(directory: RunDirectory) -> None:
    with hold(directory.path) as held:
        held.check()
        status_now = directory.status()
        assert (status_now.state, status_now.pid, status_now.host) == ("running", os.getpid(), this_host())
        assert status_now.shown == "running"
    assert directory.status().state == "completed"
    assert directory.result() is None  # no record was written in this test
    directory.write_result({"a": 1})
    assert directory.result() == {"a": 1}


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (RunStopped("interrupted by SIGINT", 130), "interrupted", "interrupted by SIGINT"),
        (RunStopped("preempted by SIGTERM", 75), "preempted", "preempted by SIGTERM"),
        (KeyboardInterrupt(), "interrupted", "interrupted by a second SIGINT"),
        (RunDiverged("train_loss is nan"), "diverged", "train_loss is nan"),
        (ValueError("a bug"), "failed", "ValueError: a bug"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_a_run_ends_is_its_state(directory: RunDirectory, error: BaseException, state: str, text: str) -> None:
    with pytest.raises(type(error)), hold(directory.path):
        raise error
    assert (directory.status().state, directory.status().error) == (state, text)
    assert directory.result() is None


def test_a_live_holder_is_named_and_a_dead_one_is_replaced(directory: RunDirectory) -> None:
    code = "import sys, time; from pathlib import Path; from mixersweep.runs import hold\n"
    code += "with hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(directory.path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(RunHeld, match=f"held by pid {other.pid} on .* since 20"), hold(directory.path):
            pass
        assert directory.status().shown == "running"
        other.kill()
    assert directory.status().shown == "lost"
    with hold(directory.path):
        assert directory.status().pid == os.getpid()


def test_a_holder_on_another_host_lives_as_long_as_its_heartbeat(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "BEAT_EVERY", 0.05)
    now = time.time()
    elsewhere = Status(State.RUNNING, "far/away", 1, 0.0, since=now, heartbeat=now)
    set_status(directory.path, elsewhere)
    with pytest.raises(RunHeld, match="on far since"), hold(directory.path):
        pass
    silent = dataclasses.replace(elsewhere, pid=2, heartbeat=now - status.DEAD_AFTER - 1)
    set_status(directory.path, silent)
    assert read_status(directory.path).shown == "lost"
    with hold(directory.path):
        pass
    assert directory.status().state == "completed"


def test_a_pid_that_was_given_to_another_process_is_not_the_holder(directory: RunDirectory) -> None:
    reused = Status(State.RUNNING, this_host(), os.getpid(), 1.0, since=0, heartbeat=time.time())
    set_status(directory.path, reused)
    assert not reused.is_alive
    with hold(directory.path):
        pass


def test_the_heart_beats_and_a_run_taken_over_notices(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "BEAT_EVERY", 0.05)
    with pytest.raises(RunHeld, match="taken over by pid 7 on far"), hold(directory.path) as held:
        first = directory.status().heartbeat
        deadline = time.time() + 10
        while directory.status().heartbeat == first:
            assert time.time() < deadline
            time.sleep(0.02)
        held.check()
        thief = Status(State.RUNNING, "far/away", 7, 0.0, since=time.time(), heartbeat=time.time())
        set_status(directory.path, thief)
        while time.time() < deadline:
            held.check()
            time.sleep(0.02)
    assert read_status(directory.path) == thief  # and leaves the new holder's status alone


def test_a_host_without_process_namespaces_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> str:
        raise OSError(path)

    monkeypatch.setattr(os, "readlink", missing)
    assert this_host().endswith("/")


# --- the record --------------------------------------------------------------------------------------------------

CONTRACT = (
    "schema_version fingerprint name model dataset seed experiment sweep overrides width width_target hidden_width "
    "tokens channels expansion depth mixing_layers connections connections_target connections_counted "
    "total_connections weights weights_target density parameters stem_parameters mixing_parameters head_parameters "
    "skip_parameters skip_connections flops_per_image readout_dimension "
    "connections_real connections_real_target weights_real weights_real_target flops_target "
    "epochs best_epoch train_loss train_accuracy validation_loss validation_accuracy "
    "test_loss test_accuracy best_validation_test_accuracy ema_validation_loss ema_validation_accuracy ema_test_loss "
    "ema_test_accuracy connections_drawn readout_rank pack_size images_per_second seconds peak_memory_bytes started "
    "finished environment versions git_commit"
).split()


def test_the_record_has_exactly_the_promised_keys_in_order() -> None:
    run = run_of()
    known = planned_record(run)
    measured = dict.fromkeys(key for key in CONTRACT if key not in known)
    record = completed_record(run, measured)
    assert list(record) == CONTRACT
    assert (record["width"], record["tokens"], record["connections"]) == (1024, 32, 32768)
    with pytest.raises(AssertionError):
        completed_record(run, {})


def test_two_records_are_equal_when_they_agree_in_what_the_experiment_decides() -> None:
    one = dict.fromkeys(CONTRACT, 0)
    assert same_experiment_same_numbers(one, {**one, **dict.fromkeys(VOLATILE, 1)})
    assert not same_experiment_same_numbers(one, {**one, "test_loss": 1e-9})


def test_the_config_file_is_plain_yaml_for_people(directory: RunDirectory) -> None:
    stored = yaml.safe_load((directory.path / "config.yaml").read_text())
    assert list(stored) == ["schema_version", "name", "fingerprint", "origin", "config", "architecture"]
    assert stored["config"]["width"] == 1024
    assert stored["architecture"]["tokens"] == 32
