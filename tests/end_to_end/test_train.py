"""`mixersweep train` as people and schedulers use it: real processes, real signals, real files."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mixersweep.layers.nonzeros import why_not_own
from mixersweep.runs import same_experiment_same_numbers
from tests.speed import HANGS

SMALL = ["connections=1000", "depth=1", "epochs=12", "batch_size=1500", "threads=1"]
COMMAND = [sys.executable, "-m", "mixersweep"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home of its own and no key, as on a new machine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MIXERSWEEP_"))}
    return {**kept, "HOME": str(tmp_path / "home")}


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANGS
        )

    return run


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    def start(*arguments: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, env=environment, text=True, **pipes)

    return start


def rows(runs_dir: Path) -> list[dict]:
    files = list(runs_dir.glob("*/metrics.jsonl"))
    return [json.loads(line) for line in files[0].read_bytes().split(b"\n")[:-1]] if files else []


def when(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.time() + HANGS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.005)


def test_one_command_trains_and_the_same_command_again_only_tells(run: Callable, tmp_path: Path) -> None:
    arguments = ["train", "model=pk", "width=99", *SMALL, "epochs=2"]
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    path = Path(first.stdout.rstrip("\n"))
    assert first.stdout == f"{path}\n"
    assert path.is_absolute()
    assert path.name == "result.json"
    record = json.loads(path.read_text())
    assert (record["model"], record["width_target"], record["epochs"]) == ("pk", 99, 2)
    assert record["tokens"] * record["channels"] == record["width"]
    assert record["overrides"] == arguments[1:]
    before = {file: file.stat().st_mtime_ns for file in path.parent.rglob("*")}

    again = run(*arguments)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "already done" in again.stderr
    assert {file: file.stat().st_mtime_ns for file in path.parent.rglob("*")} == before

    taken_up = run("train", f"run_dir={path.parent}")
    assert (taken_up.returncode, taken_up.stdout) == (0, first.stdout)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["runs"]  # and nothing else is left


@pytest.mark.parametrize("flags", [[], ["-m", "seed=0,1"]], ids=["one", "many"])
def test_an_optimiser_that_there_is_not_leaves_no_run(flags: list[str], run: Callable, tmp_path: Path) -> None:
    refused = run("train", *flags, *SMALL, "tracking=none", "optim=timm", "optim.optimizer=lmab")
    assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
    assert "error: optim.optimizer=lmab: timm has no such optimiser; the nearest is lamb" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list((tmp_path / "runs").glob("[!.]*/config.yaml")) == []


def test_a_finished_run_is_told_without_importing_torch_or_wandb(run: Callable, tmp_path: Path) -> None:
    arguments = ["train", *SMALL, "epochs=1", "tracking=none"]
    assert run(*arguments).returncode == 0
    code = (
        "import sys; from mixersweep.cli import main\n"
        f"code = main({arguments!r}); assert code == 0, code\n"
        "assert not {'torch', 'wandb', 'torchvision'} & set(sys.modules), 'slow imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("result.json\n")


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_run_imports_only_what_it_takes(optim: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """Torch's compiler alone is a third of the time to the first step."""
    arguments = ["train", *SMALL, "epochs=1", "tracking=none", f"optim={optim}"]
    code = (
        f"import sys; from mixersweep.cli import main; assert main({arguments!r}) == 0\n"
        "heavy = {'torch._dynamo', 'torch._inductor', 'timm', 'torchvision', 'sympy', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_killed_at_three_epochs_no_epoch_is_trained_twice_and_the_result_is_the_undisturbed_one(
    run: Callable, start: Callable, tmp_path: Path
) -> None:
    arguments = ["train", *SMALL, "epochs=40", "tracking=none"]
    whole = run(*arguments, "runs_dir=undisturbed")
    assert whole.returncode == 0, whole.stderr
    times: list[float] = []
    for epochs in (2, 12, 25):
        process = start(*arguments)
        when(lambda wanted=epochs: len(rows(tmp_path / "runs")) >= wanted, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        now = [row["time"] for row in rows(tmp_path / "runs")]
        assert now[: len(times)] == times  # the rows from before are the very same
        times = now
    parts = run(*arguments)
    assert parts.returncode == 0, parts.stderr
    assert f"going on after epoch {len(times)} of 40" in parts.stderr
    final = rows(tmp_path / "runs")
    assert [row["epoch"] for row in final] == list(range(1, 41))
    assert [row["time"] for row in final][: len(times)] == times
    one, other = (json.loads(Path(done.stdout.strip()).read_text()) for done in (whole, parts))
    one.pop("overrides"), other.pop("overrides")  # the undisturbed one was asked for with its own runs_dir
    assert same_experiment_same_numbers(one, other)


@pytest.mark.parametrize(
    ("number", "code", "state"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "preempted")]
)
@pytest.mark.parametrize("tracking", ["wandb", "none"])
def test_a_signal_ends_a_run_in_good_order(
    start: Callable, run: Callable, tmp_path: Path, number: signal.Signals, code: int, state: str, tracking: str
) -> None:
    arguments = ["train", *SMALL, "epochs=400", f"tracking={tracking}"]
    process = start(*arguments)
    when(lambda: len(rows(tmp_path / "runs")) >= 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert f"{state} by {number.name} after epoch" in err
    (status,) = (tmp_path / "runs").glob("*/status.json")
    assert json.loads(status.read_text())["state"] == state


def test_the_second_process_on_a_run_says_who_holds_it(start: Callable, run: Callable, tmp_path: Path) -> None:
    arguments = ["train", *SMALL, "epochs=4000", "tracking=none"]
    process = start(*arguments)
    when(lambda: len(rows(tmp_path / "runs")) >= 1, process)
    second = run(*arguments)
    assert (second.returncode, second.stdout) == (4, "")
    assert f"held by pid {process.pid}" in second.stderr
    process.kill()
    process.communicate()


def test_a_run_that_diverged_says_so_and_is_not_taken_up_again(run: Callable, tmp_path: Path) -> None:
    arguments = ["train", *SMALL, "optim.lr=1e30", "tracking=none"]
    first, again = run(*arguments), run(*arguments)
    assert (first.returncode, first.stdout, again.returncode, again.stdout) == (3, "", 3, "")
    assert "not finite in step" in first.stderr
    assert "diverged before" in again.stderr
    assert "Traceback" not in first.stderr + again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["widht=512"], "widht=512: no such setting; the nearest is width"),
        (["+model.tiedd=true"], "model.tiedd=true: no such setting; the nearest is model.tied"),
        (
            ["model=sw_mlp", "model.tied=false"],
            "model.tied=false: sw_mlp has no setting tied (it belongs to pk, monarch)",
        ),
        (
            ["model=sw_mlp", "+model.tied=false"],
            "model.tied=false: sw_mlp has no setting tied (it belongs to pk, monarch)",
        ),
        (["model=s_mixr"], "model=s_mixr: no such model; the nearest is s_mixer"),
        (["epochs=none"], "epochs=none: expects a whole number, at least 1"),
        (["seed=-1"], "seed=-1: expects a whole number, at least 0"),
        (["patch_size=5"], "patch_size=5: does not divide image_size=32; the nearest is 4"),
        (["seed=0,1"], "seed=0,1: several values; sweep over them with -m"),
        (["width=["], "no viable alternative"),
        (["optim.lr=${nothing}"], "nothing"),
        (["~optim.lr"], "optim.lr: missing"),
        (["run_dir=nowhere"], "tracking=none: run_dir= takes up a run as it was frozen"),
        (["-m", "--cfg", "job"], "Only one of"),
        (["data=fashion_mnist"], "mixersweep data prepare fashion_mnist"),
        (["device=cuda:99"], "device=cuda:99: torch sees"),
        (
            ["model=s_mixer", "connections=262144", "width=5000"],
            "width=5000: the widest mixer with connections=262144 and expansion=1 is 4096 (tokens=channels=64)",
        ),
        (["model=sw_mlp", "-m", "model.tied=false,true"], "sw_mlp has no setting tied"),
        (["-m", "width=5000,6000"], "width=6000: the widest mixer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Callable, arguments: list[str], message: str) -> None:
    done = run("train", "tracking=none", *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_dir_that_is_none_is_refused(run: Callable) -> None:
    done = run("train", "run_dir=nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere: no run directory, it has no config.yaml" in done.stderr


@pytest.mark.skipif(why_not_own() is not None, reason=f"no kernels to do without: {why_not_own()}")
def test_without_a_c_compiler_a_sparse_network_is_trained_by_torchs_kernels_and_the_run_says_so(
    run: Callable, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = ["train", "model=sw_mlp", "width=256", *SMALL, "epochs=1", "model.storage=sparse"]
    losses = {}
    for kernels, compiler in (("own", os.environ.get("CC", "cc")), ("torch", "false")):
        environment["CC"] = compiler
        done = run(*arguments, f"runs_dir={kernels}")
        assert done.returncode == 0, done.stderr
        told = "torch's kernels multiply the nonzeros, which takes about twice as long as with our own: false cannot"
        assert (told in done.stderr) == (kernels == "torch")
        record = json.loads(Path(done.stdout.strip()).read_text())
        assert record["environment"]["sparse_kernels"] == kernels
        losses[kernels] = record["train_loss"]
    assert losses["own"] == pytest.approx(losses["torch"], rel=1e-5)


def test_the_papers_shape(run: Callable) -> None:
    done = run("train", "model=s_mixer", "connections=262144", "width=3616", "--cfg", "job")
    assert done.returncode == 0
    done = run("train", "model=s_mixer", "connections=262144", "width=3616", "data=fashion_mnist", "tracking=none")
    assert "tokens=113 channels=32" in done.stderr


def test_a_multirun_goes_on_past_what_cannot_be_and_tells_results_in_job_order(run: Callable, tmp_path: Path) -> None:
    done = run("train", "-m", *SMALL, "epochs=1", "tracking=none", "seed=1,0", "width=99,5000")
    assert done.returncode == 1
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [json.loads(path.read_text())["seed"] for path in paths] == [1, 0]
    assert done.stderr.count("width=5000: the widest mixer") == 1  # of both points
    assert "4 runs: 2 completed, 2 infeasible" in done.stderr
    again = run("train", "-m", *SMALL, "epochs=1", "tracking=none", "seed=1,0", "width=99")
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_ctrl_c_ends_a_multirun_as_a_whole(start: Callable, tmp_path: Path) -> None:
    process = start("train", "-m", *SMALL, "epochs=400", "tracking=none", "seed=0,1,2")
    when(lambda: len(rows(tmp_path / "runs")) >= 1, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    states = {json.loads(path.read_text())["state"] for path in (tmp_path / "runs").glob("*-s*/status.json")}
    assert states <= {"interrupted", "planned"} and "interrupted" in states


def test_a_bug_shows_its_traceback_and_the_run_is_failed(run: Callable, start: Callable, tmp_path: Path) -> None:
    arguments = ["train", *SMALL, "epochs=2", "tracking=none"]
    process = start(*arguments, "epochs=4000")
    when(lambda: len(rows(tmp_path / "runs")) >= 1, process)
    process.kill()
    process.communicate()
    (metrics,) = (tmp_path / "runs").glob("*/metrics.jsonl")
    metrics.unlink()
    metrics.mkdir()  # what no code expects
    done = run(*arguments, "epochs=4000")
    assert done.returncode == 1
    assert "IsADirectoryError" in done.stderr
    status = json.loads((metrics.parent / "status.json").read_text())
    assert (status["state"], status["error"][:18]) == ("failed", "IsADirectoryError:"[:18])
