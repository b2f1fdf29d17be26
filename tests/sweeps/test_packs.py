"""Packs of a sweep: which runs go together, how large packs are, and what of it the plan tells."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mixersweep.compose import config_of
from mixersweep.kinds import Auto, Count
from mixersweep.runs import Run, RunDirectory, solve
from mixersweep.sweeps import packs as module
from mixersweep.sweeps.expand import expand
from mixersweep.sweeps.memory import memory_bytes
from mixersweep.sweeps.packs import MEMORY_FRACTION, MOST_RUNS, count_in_words, form_packs, pack_jobs
from mixersweep.sweeps.plan import plan, plan_packs, totals
from tests.runs.synthetic import record_of, seeded, write_run

SMALL = ("connections=1000", "depth=1")


def run_of(*overrides: str) -> Run:
    return solve(config_of([*SMALL, *overrides]))


def many(count: int, *overrides: str) -> list[Run]:
    first = run_of(*overrides)
    return [seeded(first, seed) for seed in range(count)]


def sizes(
    runs: Sequence[Run], pack: Count | Auto = "auto", *, on_gpu: bool = True, at_once: int = 1, packs_per_gpu: int = 1
) -> list[int]:
    packs = form_packs(dict(enumerate(runs)), pack, on_gpu=on_gpu, at_once=at_once, packs_per_gpu=packs_per_gpu)
    assert sorted(key for part in packs for key in part) == list(range(len(runs)))
    return [len(part) for part in packs]


def card(folder: Path, monkeypatch: pytest.MonkeyPatch, *megabytes: int) -> None:
    """GPUs of so much memory, as far as their driver's tool goes."""
    folder.mkdir()
    tool = folder / "nvidia-smi"
    listed = "\n".join(f"GPU {i}: a card" for i in range(len(megabytes)))
    memory = "\n".join(map(str, megabytes))
    tool.write_text(f"#!/bin/sh\ncase $1 in -L) echo '{listed}';; *) echo '{memory}';; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


# --- how packs are formed ----------------------------------------------------------------------------------------


def test_packs_of_a_program_are_as_even_as_can_be() -> None:
    assert sizes(many(2 * MOST_RUNS + 2)) == [44, 43, 43]
    assert sizes(many(10), 4) == [4, 3, 3]
    assert sizes(many(10), 1) == [1] * 10


def test_each_place_has_a_pack_where_there_are_runs_enough() -> None:
    assert sizes(many(10), at_once=3) == [4, 3, 3]
    assert sizes(many(3), at_once=8) == [1, 1, 1]
    some = [*many(9), *many(2, "batch_size=64")]
    assert sorted(sizes(some, at_once=4)) == [2, 3, 3, 3]  # the large program is shared out
    assert sorted(sizes([run_of("optim=beta_lasso"), *many(3)], at_once=2)) == [1, 3]
    assert sorted(sizes([run_of("optim=beta_lasso"), *many(4)], at_once=3)) == [1, 2, 2]


def test_runs_are_together_where_they_share_a_program() -> None:
    runs = [*many(2), *many(2, "optim.lr=0.3"), *many(2, "epochs=3"), *many(2, "optim=adamw"), run_of("seed=9")]
    packs = form_packs(dict(enumerate(runs)), "auto", on_gpu=True)
    assert sorted(packs) == [(0, 1, 2, 3, 8), (4, 5), (6, 7)]


def test_the_most_work_comes_first() -> None:
    short, long, wide = many(2, "epochs=2"), many(2, "epochs=200"), many(2, "connections=20000", "epochs=2")
    packs = form_packs(dict(enumerate([*short, *wide, *long])), "auto", on_gpu=True)
    assert packs == [(4, 5), (2, 3), (0, 1)]
    assert form_packs(dict(enumerate([*short, *many(1, "epochs=3")])), "auto", on_gpu=True)[0] == (0, 1)  # in sum


def test_what_cannot_be_packed_or_shall_not_be_is_alone() -> None:
    assert sizes(many(3, "precision=fp16")) == [1, 1, 1]
    assert sizes(many(3, "engine=eager")) == [1, 1, 1]
    assert sizes(many(3, "device=cpu")) == [1, 1, 1]  # a CPU's, whatever GPU is there
    assert sizes(many(3), 8, on_gpu=False) == [1, 1, 1]
    assert sizes(many(3, "engine=packed"), on_gpu=False) == [3]
    assert sizes(many(5, "engine=packed"), 2, on_gpu=False) == [2, 2, 1]


def test_a_pack_is_no_larger_than_the_smallest_card_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = many(60)
    need = memory_bytes(runs[0].config, runs[0].architecture)
    megabytes = round(10.5 * need / MEMORY_FRACTION / 2**20)
    card(tmp_path / "bin", monkeypatch, 80_000, megabytes)
    assert sizes(runs) == [10] * 6
    assert sizes(runs, packs_per_gpu=2) == [5] * 12
    assert sizes(runs, 60) == [60]  # who asks for more, gets it
    assert sizes(many(3, "batch_size=8192")) == [1, 1, 1]


def completed(folder: Path, run: Run, **record: float) -> None:
    """A run that a GPU has trained."""
    path = write_run(folder / "runs", run) / "result.json"
    environment = {"device_kind": "NVIDIA H100", "engine": "packed"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **record, "environment": environment}))


def test_what_an_earlier_pack_took_goes_before_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"runs_dir={tmp_path / 'runs'}"
    runs = many(60, place)
    card(tmp_path / "bin", monkeypatch, 1000)
    assert sizes(runs) == [60]
    a_run = MEMORY_FRACTION * 1000 * 2**20 / 12.5  # so that twelve fit
    smaller = {"pack_size": 2, "peak_memory_bytes": 2 * 3 * a_run}  # of which more was the same for all
    completed(tmp_path, seeded(runs[0], 100), **smaller)
    completed(tmp_path, seeded(runs[0], 101), pack_size=8, peak_memory_bytes=8 * a_run)
    completed(tmp_path, seeded(run_of(place, "batch_size=64"), 102), pack_size=64, peak_memory_bytes=1)  # no such run
    assert sizes(runs) == [12] * 5


def test_what_the_drivers_tool_cannot_say_is_taken_to_be_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(tmp_path / "bin", monkeypatch, 0)
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho '[N/A]'\n")
    assert module._gpu_memory() == module.UNKNOWN_MEMORY
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert module._gpu_memory() == module.UNKNOWN_MEMORY


# --- run directories ---------------------------------------------------------------------------------------------


def frozen(folder: Path, runs: Sequence[Run]) -> list[Path]:
    paths = []
    for run in runs:
        directory = RunDirectory.create(run, folder)
        directory.freeze()
        paths.append(directory.path)
    return paths


def test_a_broken_directory_is_a_pack_of_its_own(tmp_path: Path) -> None:
    jobs = frozen(tmp_path, many(4, "engine=packed"))
    (jobs[0] / "config.yaml").write_text("schema_version: 1\n")
    packs = pack_jobs(jobs, "auto", on_gpu=False)
    assert packs == [tuple(jobs[1:]), (jobs[0],)]
    assert count_in_words(packs) == "4 runs in 2 packs"


def test_where_nothing_packs_the_order_stays(tmp_path: Path) -> None:
    jobs = frozen(tmp_path, [run_of("epochs=2"), run_of("epochs=200"), run_of("epochs=2", "seed=1")])
    alone = [(job,) for job in jobs]
    assert pack_jobs(jobs, "auto", on_gpu=False) == alone
    assert pack_jobs(jobs, 1, on_gpu=True) == alone
    assert pack_jobs([], "auto", on_gpu=True) == []
    assert count_in_words(alone) == "3 runs"
    assert pack_jobs(jobs, "auto", on_gpu=True) == [(jobs[1],), (jobs[0], jobs[2])]


# --- the plan ----------------------------------------------------------------------------------------------------


def told(runs_dir: Path, *overrides: str, multirun: bool = True) -> str | None:
    expansion = expand([*SMALL, *overrides, f"runs_dir={runs_dir}"], multirun=multirun)
    packs = plan_packs(expansion, plan(expansion))
    return None if packs is None else str(packs)


def test_the_plan_tells_packs_and_why_runs_are_in_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card(tmp_path / "bin", monkeypatch, 80_000)
    some = ["model=s_mixer", "seed=range(70)"]
    assert told(tmp_path, *some) == "packs: 70 runs in 2 packs of up to 35"
    assert told(tmp_path, *some, "hydra.launcher.runs_per_gpu=4") == "packs: 70 runs in 4 packs of up to 18"
    assert told(tmp_path, "seed=0,1,2", "augment.mixup=0,0.2") == (
        "packs: 3 runs in 1 pack of up to 3; 3 runs train by themselves (augment.mixup=0.2 trains by itself)"
    )
    assert told(tmp_path, "seed=0,1", "epochs=2,3", "model=s_mixer,sw_mlp", "precision=fp16") == (
        "packs: none; 8 runs train by themselves (precision=fp16 trains by itself)"
    )
    assert told(tmp_path, "epochs=2,3", "accumulation=1") == (
        "packs: none; 2 runs train by themselves (no other is of its program)"
    )
    assert told(tmp_path, "optim=sgd,beta_lasso", "epochs=2,3") == (
        "packs: none; 4 runs train by themselves (2: no other is of its program; 2: optim=beta_lasso trains by itself)"
    )
    assert told(tmp_path, *some, "hydra.launcher.pack=1") is None
    assert told(tmp_path, *some, "hydra.launcher.gpus=0") is None
    assert told(tmp_path, *some, "device=cpu") is None
    assert told(tmp_path, multirun=False) is None


def test_without_a_gpu_the_plan_tells_of_packs_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    some = ["seed=range(6)", "hydra.launcher.jobs=2"]
    assert told(tmp_path, *some) is None
    assert told(tmp_path, *some, "engine=packed") == "packs: 6 runs in 2 packs of up to 3"
    assert told(tmp_path, *some, "engine=packed", "hydra.launcher.pack=2") == "packs: 6 runs in 3 packs of up to 2"
    assert told(tmp_path, *some, "hydra.launcher.pack=2") == (
        "packs: none; 6 runs train by themselves (engine=auto trains by itself on a CPU)"
    )


def test_packs_on_a_cluster_are_those_of_the_gpus_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    slurm, ray = ["seed=range(6)", "hydra/launcher=slurm"], ["seed=range(6)", "hydra/launcher=ray"]
    assert told(tmp_path, *slurm) == "packs: 6 runs in 1 pack of up to 6"
    assert told(tmp_path, *slurm, "hydra.launcher.gpus=0") is None
    assert told(tmp_path, *slurm, "device=cpu") is None
    assert told(tmp_path, *ray) is None
    assert told(tmp_path, *ray, "hydra.launcher.gpus_per_run=0.5") == "packs: 6 runs in 1 pack of up to 6"


def test_runs_that_wait_for_a_search_are_packed_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card(tmp_path / "bin", monkeypatch, 80_000)
    search = "sweep.search={lr:[0.1,0.3],seeds:[100,101]}"
    assert told(tmp_path, "model=s_mixer", "seed=range(5)", search) == "packs: 9 runs in 2 packs of up to 5"


def test_time_left_is_that_of_packs_once_a_pack_has_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card(tmp_path / "bin", monkeypatch, 80_000, 80_000)
    asked = ["model=s_mixer", "seed=range(41)"]

    def last() -> str:
        expansion = expand([*SMALL, *asked, f"runs_dir={tmp_path}"], multirun=True)
        rows = plan(expansion)
        return totals(rows, 2, plan_packs(expansion, rows))[-1]

    assert last() == "plan --measure times what no completed run tells of"
    first = run_of("model=s_mixer")
    directory = write_run(tmp_path, first, seconds=60.0)
    assert last() == "time left: 40 min run by run, less in packs; how much less, the first that is completed tells"
    record = record_of(first, 0.8, seconds=60.0) | {"pack_size": 20}
    RunDirectory.open(directory).write_result(record)
    assert last() == "time left: 2 min in packs, one after another, 60 s with 2 at once"


def test_forming_packs_needs_no_torch() -> None:
    code = "import sys, mixersweep.sweeps.plan, mixersweep.sweeps.packs; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
