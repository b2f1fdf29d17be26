"""Several processes train one run: the numbers of one process, one directory, and the same good ends."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.end_to_end.commands import PROBES, TORCHRUN, Commands, only, probed, rows, status, told, torchrun, when
from tests.speed import HANGS

pytestmark = pytest.mark.flaky(reruns=1)
SMALL = (
    *("train", "model=s_mixer", "connections=1000", "depth=2", "epochs=3", "threads=1", "tracking=none"),
    *("device=cpu", "workers=0", "optim.lr=0.01"),
)
LONG = (*SMALL, "epochs=400", "batch_size=600")
TRAINED = 9000
NEAR = 24 * float(np.finfo(np.float32).eps)


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    made = Commands(tmp_path)
    yield made
    made.close()


def assert_near(one: list[dict], other: list[dict]) -> None:
    """Sums over processes are rounded in another order, which a small learning rate carries on as it is.

    A loss may be off by what its own sum of 10 exponentials and their logarithm round, twice; an accuracy by one image
    of the 1,000 that the fewest have, between whose classes a rounding decided.
    """
    assert [row["epoch"] for row in one] == [row["epoch"] for row in other] == [1, 2, 3]
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        for name in [name for name in mine if name.endswith("_loss")]:
            assert mine[name] == pytest.approx(theirs[name], rel=NEAR), name
        for name in [name for name in mine if name.endswith("_accuracy")]:
            assert mine[name] == pytest.approx(theirs[name], abs=1.01e-3), name


def assert_exact(run_dir: Path) -> None:
    """Every image counts once, however the last batch is shared."""
    record = json.loads((run_dir / "result.json").read_text())
    saved = np.load(run_dir / "predictions.npz")
    correct = record["train_accuracy"] * TRAINED
    assert correct == pytest.approx(round(correct), abs=1e-6)
    assert float((saved["prediction"] == saved["label"]).mean()) == record["test_accuracy"]
    assert -np.log(saved["probability_of_label"].astype(np.float64)).mean() == pytest.approx(
        record["test_loss"], rel=1e-5
    )


def test_two_processes_have_the_numbers_of_one(commands: Commands, tmp_path: Path) -> None:
    """9,000 images in batches of 128: 40 are left for the last."""
    one = commands.run(*SMALL, "runs_dir=one")
    two = commands.torchrun(2, *SMALL, "runs_dir=two")
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert_near(told(tmp_path / "two"), told(tmp_path / "one"))
    run_dir = only(tmp_path / "two")
    assert two.stdout == f"{run_dir / 'result.json'}\n"  # the first process alone talks
    assert [two.stderr.count(f"epoch {epoch}/3 ") for epoch in (1, 2, 3)] == [1, 1, 1]
    assert "Warning" not in two.stderr
    assert sorted(path.name for path in run_dir.iterdir()) == sorted(p.name for p in only(tmp_path / "one").iterdir())
    assert_exact(run_dir)
    record = json.loads((run_dir / "result.json").read_text())
    assert record["environment"]["world_size"] == 2

    again = commands.torchrun(2, *SMALL, "runs_dir=two")
    assert (again.returncode, again.stdout) == (0, two.stdout)
    assert again.stderr.count("already done") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (3, ["batch_size=409"]),  # two images are left for three processes
        (2, ["augment.mixup=0.5", "augment.cutmix=0.5", "ema=0.99", "stochastic_depth=0.4", "accumulation=2"]),
        (3, ["model=sw_mlp", "augment.mixup=0.8", "stochastic_depth=0.4", "augment.erasing=0.3", "batch_size=409"]),
        # AdamW moves by its rate where a gradient is nothing but rounding, too: a small one
        (2, ["model=mixer", "gradient_checkpointing=true", "optim=adamw", "optim.clip_norm=1", "optim.lr=1e-4"]),
        (2, ["augment=auto_augment", "workers=1", "batch_size=500"]),
        (3, ["model=sw_mlp", "optim.rewire=rigl", "optim.rewire_every=20", "accumulation=2", "batch_size=409"]),
        (2, ["model=sw_mlp", "optim.rewire=set", "ema=0.99"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_every_kind_of_run_has_the_numbers_of_one_process(
    processes: int, overrides: list[str], commands: Commands, tmp_path: Path
) -> None:
    one = commands.run(*SMALL, *overrides, "runs_dir=one")
    more = commands.torchrun(processes, *SMALL, *overrides, "runs_dir=more")
    assert (one.returncode, more.returncode) == (0, 0), one.stderr + more.stderr
    assert_near(told(tmp_path / "more"), told(tmp_path / "one"))
    assert_exact(only(tmp_path / "more"))


@pytest.mark.slow
def test_a_signal_to_torchrun_leaves_a_run_that_goes_on(commands: Commands, tmp_path: Path) -> None:
    """To the very numbers of an undisturbed run of as many processes, which nothing looked into."""
    arguments = (*SMALL, "epochs=30", "batch_size=600")
    whole = commands.torchrun(2, *arguments, "runs_dir=whole")
    assert whole.returncode == 0, whole.stderr
    for epochs in (2, 6):
        process = commands.start(*arguments, *PROBES, program=torchrun(2))
        when(lambda wanted=epochs: len(rows(tmp_path / "runs")) >= wanted, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=HANGS)
        assert process.returncode != 0
        assert (out, status(tmp_path / "runs")["state"]) == ("", "preempted"), err
        assert err.count("preempted by SIGTERM after epoch") == 1
    parts = commands.torchrun(2, *arguments, *PROBES)
    assert parts.returncode == 0, parts.stderr
    assert parts.stderr.count("going on after epoch") == 1
    assert told(tmp_path / "runs") == told(tmp_path / "whole")
    assert [row["epoch"] for row in probed(tmp_path / "runs")] == [*range(3, 31, 3)]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_and_the_same_command_goes_on(commands: Commands, tmp_path: Path) -> None:
    process = commands.start(*LONG, program=torchrun(2))
    when(lambda: len(rows(tmp_path / "runs")) >= 2, process)
    first = status(tmp_path / "runs")["pid"]
    others = [child.pid for child in psutil.Process(process.pid).children(recursive=True) if child.pid != first]
    os.kill(max(others), signal.SIGKILL)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode != 0
    stored = status(tmp_path / "runs")
    assert (stored["state"], (stored["error"] or "")[:45]) in [
        ("failed", "RunFailed: another process of this run has en"),
        ("preempted", ""),  # torchrun asked it to end before it noticed
    ], err
    whole = len(rows(tmp_path / "runs"))
    process = commands.start(*LONG, program=torchrun(2))
    when(lambda: len(rows(tmp_path / "runs")) > whole, process)
    assert [row["epoch"] for row in rows(tmp_path / "runs")] == list(range(1, len(rows(tmp_path / "runs")) + 1))


@pytest.mark.slow
def test_who_comes_second_is_told_who_holds_the_run(commands: Commands, tmp_path: Path) -> None:
    process = commands.start(*LONG)
    when(lambda: len(rows(tmp_path / "runs")) >= 1, process)
    second = commands.torchrun(2, *LONG)
    assert (second.returncode != 0, second.stdout) == (True, "")
    assert second.stderr.count(f"held by pid {process.pid}") == 1
    assert "Traceback" not in second.stderr.partition("torch/distributed/elastic")[0]
    assert process.poll() is None


BUSY = """
import sys, torch, torch.distributed as dist
from mixersweep.cli import main
from mixersweep.training.parallel import World
def close_while_gloo_is_at_work(world):
    for _ in range(3000):
        dist.all_reduce(torch.ones(1), async_op=True)
    close(world)
close, World.close = World.close, close_while_gloo_is_at_work
sys.exit(main())
"""


@pytest.mark.slow
def test_a_process_ends_well_while_threads_of_gloo_still_let_go_of_tensors(commands: Commands, tmp_path: Path) -> None:
    """As one does now and then without help, in the moment when Python itself ends."""
    (tmp_path / "busy.py").write_text(BUSY)
    program = (*TORCHRUN, "--nproc-per-node=2", str(tmp_path / "busy.py"))
    done = commands.run(*SMALL, "epochs=1", program=program)
    assert done.returncode == 0, done.stderr
    assert status(tmp_path / "runs")["state"] == "completed"
    assert done.stdout.strip() == str(only(tmp_path / "runs") / "result.json")


@pytest.mark.slow
def test_a_run_that_diverges_in_several_processes_says_where(commands: Commands, tmp_path: Path) -> None:
    done = commands.torchrun(2, *SMALL, "optim.lr=1e25")
    assert done.returncode != 0
    stored = status(tmp_path / "runs")
    assert stored["state"] == "diverged"
    assert "not finite in step 2 of epoch 1, at learning rate 1e+25: the output of" in stored["error"]
    assert done.stderr.count("not finite in step 2") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "seed=0,1"], "torchrun trains one run in several processes"),
        (["model=s_fc"], "s_fc normalises over the whole batch; several processes need GPUs for that"),
        (["widht=3"], "widht=3: no such setting"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_in_several_processes_is_refused(arguments: list[str], message: str, commands: Commands) -> None:
    done = commands.torchrun(2, "train", "tracking=none", "device=cpu", *arguments)
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert message in done.stderr
