"""`mixersweep plan`: the runs of an invocation and their cost, without torch, data or a launch."""

import dataclasses
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixersweep.budget.expansion import Expansion
from mixersweep.budget.rules import Formula
from mixersweep.compose import config_of
from mixersweep.errors import UserError
from mixersweep.runs import Run, RunDirectory, planned_record, read_status, solve
from mixersweep.runs.files import read_json
from mixersweep.sweeps.expand import expand
from mixersweep.sweeps.figure import Law, draw, law_of
from mixersweep.sweeps.memory import activation_bytes, memory_bytes
from mixersweep.sweeps.plan import PlannedRun, concurrency, plan, totals
from mixersweep.sweeps.times import CALIBRATION, Calibration, shape_of
from tests.runs.synthetic import seeded, write_run
from tests.speed import HANGS, here

COMMAND = [sys.executable, "-m", "mixersweep"]
SMALL = ["connections=1000", "depth=1", "batch_size=1500", "threads=1", "tracking=none"]

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MIXERSWEEP_"))}
    environment = {**kept, "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANGS
        )

    return command


def records(done: subprocess.CompletedProcess[str]) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def run_of(*overrides: str) -> Run:
    return solve(config_of(list(overrides)))


def rows_of(runs_dir: Path, *overrides: str) -> list[PlannedRun]:
    return plan(expand([*overrides, f"runs_dir={runs_dir}"], multirun=True))


# --- the table and the objects -----------------------------------------------------------------------------------


def test_the_table_has_a_line_a_run_and_totals(command: Command, tmp_path: Path) -> None:
    done = command("plan", "-m", "model=s_mixer,sw_mlp,mlp", "width=900,1024", "seed=0,1", "optim.lr=0.1,0.3")
    assert done.returncode == 0, done.stderr
    heading, *table, total, work, hint = done.stdout.splitlines()
    assert heading.split() == (
        "state model seed tokens channels width density fan-in connections parameters FLOPs memory settings".split()
    )
    assert len(table) == 2 * 2 * 4 + 4  # an mlp has one width
    assert total == "20 runs: 20 new"
    assert work.startswith("left to train: about ")
    assert hint.startswith("plan --measure")
    cells = table[0].split()
    assert cells[:7] == ["new", "s_mixer", "0", "56", "16", "896", "0.0402"]
    assert cells[8] == "32,256"
    assert cells[-1] == "optim.lr=0.1"
    assert "mlp: dense, of the one width 181; it takes part once" in done.stderr
    assert list(tmp_path.iterdir()) == []  # it writes nothing


def test_objects_have_the_keys_of_the_record_and_what_the_plan_adds(command: Command, tmp_path: Path) -> None:
    found = records(command("plan", "model=s_mixer,sw_mlp", "--json", "width=900", "seed=3", "epochs=7"))
    assert [(one["model"], one["width"], one["seed"]) for one in found] == [("s_mixer", 896, 3), ("sw_mlp", 900, 3)]
    run = run_of("model=s_mixer", "width=900", "seed=3", "epochs=7")
    told = found[0]
    same = {key: value for key, value in planned_record(run).items() if key not in ("sweep", "experiment", "overrides")}
    assert {key: told[key] for key in same} == same
    assert (told["state"], told["run_dir"]) == ("new", str(tmp_path / "runs" / run.name))
    assert (told["epochs"], told["mean_fan_in"]) == (7, run.architecture.mean_fan_in)
    assert told["memory_bytes"] == memory_bytes(run.config, run.architecture)
    assert told["seconds_estimated"] is told["wall_seconds_estimated"] is told["estimated_from"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "model=s_mixer,sw_mlp", "hydra/launcher=local", "tracking=none"],
        ["model=s_mixer,sw_mlp", "tracking=wandb", "-m"],
        ["--multirun", "model=s_mixer,sw_mlp", "hydra.launcher.jobs=7"],
        ["model=s_mixer,sw_mlp"],
    ],
)
def test_how_it_would_be_launched_changes_nothing(command: Command, arguments: list[str]) -> None:
    names = [one["name"] for one in records(command("plan", *arguments, "--json", "width=900"))]
    assert names == [run_of(f"model={model}", "width=900").name for model in ("s_mixer", "sw_mlp")]


def test_a_single_run_is_the_one_that_train_makes(command: Command) -> None:
    (one,) = records(command("plan", "--json", *SMALL))
    assert (one["name"], one["sweep"]) == (run_of(*SMALL).name, None)


def test_states_are_those_of_the_directories(command: Command, tmp_path: Path) -> None:
    runs = [run_of("model=s_mixer", "width=900", f"seed={seed}") for seed in range(4)]
    write_run(tmp_path / "runs", runs[0])
    write_run(tmp_path / "runs", runs[1], "failed", epoch=3)
    broken = write_run(tmp_path / "runs", runs[2], "running", epoch=3)
    (broken / "config.yaml").unlink()
    done = command("plan", "model=s_mixer", "width=900", "seed=range(4)", "--json")
    assert [(one["state"], one["epochs_done"]) for one in records(done)] == [
        ("completed", 30),
        ("failed", 3),
        ("broken", 0),
        ("new", 0),
    ]


def test_what_cannot_be_is_listed_with_its_reason(command: Command) -> None:
    done = command("plan", "model=s_mixer", "width=900,5000", "seed=0,1")
    assert done.returncode == 0
    assert "2 runs: 2 new; 2 infeasible" in done.stdout
    assert done.stderr.count("infeasible: ") == 1  # one reason
    assert "width=5000: the widest mixer with connections=32768 and expansion=1 is 1024" in done.stderr
    assert "(2 points)" in done.stderr
    done = command("plan", "model=s_mixer", "width=5000", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the widest mixer" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["widht=3"], "widht=3: no such setting; the nearest is width"),
        (["model=s_mixr"], "the nearest is s_mixer"),
        (["--jsn"], "unrecognized arguments: --jsn"),
        (["width=3", "--figure"], "expected one argument"),
        (["model=s_mixer", "--figure", "here.bmp"], "has to end in .png, .svg, .pdf"),
        (["model=s_mixer", "--figure", "nowhere/here.png"], "cannot be written: No such file or directory"),
        (["model=sw_mlp", "--figure", "here.png"], "no run of this plan has channels"),
    ],
)
def test_a_mistake_is_told_and_ends_in_2(command: Command, arguments: list[str], message: str) -> None:
    done = command("plan", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_that_wait_for_a_search_stand_behind_its_runs(command: Command) -> None:
    search = "sweep.search={lr:[0.1,0.3],seeds:[100,101]}"
    done = command("plan", "-m", "model=s_mixer", "width=900", "seed=0,1", search, "--json")
    found = records(done)
    assert [one["state"] for one in found] == ["new"] * 4 + ["waiting"] * 2
    assert [one["seed"] for one in found] == [100, 101, 100, 101, 0, 1]
    assert found[0]["run_dir"] is not None
    for one in found[4:]:
        assert one["name"] is one["run_dir"] is one["fingerprint"] is None
        assert (one["width"], one["connections"]) == (896, 32256)
        assert "for the learning rate of s_mixer width=896" in one["reason"]


def test_planning_imports_neither_torch_nor_wandb_nor_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; from mixersweep.cli import main\n"
        "assert main(['plan', '-m', 'model=s_mixer,sw_mlp', 'seed=0,1']) == 0\n"
        "assert not {'torch', 'wandb', 'torchvision', 'matplotlib'} & set(sys.modules), 'slow imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_thousand_runs_are_planned_in_seconds(command: Command) -> None:
    """The promise is 3 s on a quiet machine; twice that CPU time is allowed here."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    models, widths = "model=s_mixer,rp_s_mixer,sw_mlp,pk,mixer", "width=900,950,1000,1024"
    done = command("plan", "-m", models, widths, "expansion=1", "seed=range(50)")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "1,000 runs: 1,000 new" in done.stdout, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < here(6.0)


# --- time --------------------------------------------------------------------------------------------------------

SHAPE = ("model=s_mixer", "width=900")


@pytest.mark.parametrize("same", ["seed=5", "optim.lr=0.3", "epochs=7", "optim.weight_decay=0.1", "seeds.order=3"])
def test_runs_of_one_shape_take_the_same_time_an_epoch(same: str) -> None:
    assert shape_of(run_of(*SHAPE, same)) == shape_of(run_of(*SHAPE))


@pytest.mark.parametrize(
    "other",
    [
        *("model=rp_s_mixer", "width=1024", "batch_size=64", "augment=none", "data=fashion_mnist", "depth=5"),
        *("optim=adamw", "optim.clip_norm=1", "validation=0.2", "model.head=linear"),
    ],
)
def test_what_changes_the_work_is_another_shape(other: str) -> None:
    assert shape_of(run_of(*SHAPE, other)) != shape_of(run_of(*SHAPE))


def test_a_frozen_run_has_the_shape_of_the_run_that_is_planned(tmp_path: Path) -> None:
    """Also one that was frozen before a setting existed: shapes leave out what is neutral."""
    from mixersweep.runs.listing import read_listed
    from mixersweep.sweeps.times import shape

    run = run_of("model=sw_mlp", "optim=adamw")
    listed = read_listed(RunDirectory.create(run, tmp_path).path)
    assert listed is not None
    old = {**listed.config, "data": dict(listed.config["data"])}
    for later in ("ema", "stochastic_depth", "gradient_checkpointing"):
        old.pop(later, None)
    old["data"].pop("fit", None)
    assert shape(listed.config, listed.stored["architecture"]) == shape_of(run)
    assert shape(old, listed.stored["architecture"]) == shape_of(run)


def test_completed_runs_of_the_same_shape_say_how_long_others_take(tmp_path: Path) -> None:
    runs = [run_of(*SHAPE, f"seed={seed}") for seed in range(4)]
    for run, seconds in zip(runs[:3], (57.0, 60.0, 90.0), strict=True):
        write_run(tmp_path, run, seconds=seconds)
    write_run(tmp_path, runs[3], "interrupted", epoch=10)
    rows = {row.run.config.seed: row for row in rows_of(tmp_path, *SHAPE, "seed=range(6)") if row.run}
    new = rows[4]
    assert new.pace is not None and new.pace.source == "3 completed runs"
    assert new.seconds == pytest.approx(60)  # the median, of what a record calls seconds
    assert new.wall_seconds == pytest.approx(30 * 2.0)  # an epoch was written every 2 s
    assert rows[3].wall_seconds_left == pytest.approx(20 * 2.0)
    assert rows[0].wall_seconds_left == 0
    (longer,) = rows_of(tmp_path, *SHAPE, "seed=9", "epochs=90", "optim.lr=0.5")
    assert (longer.seconds, longer.wall_seconds) == (pytest.approx(180), pytest.approx(180))
    for other in (["threads=2"], ["batch_size=64"], ["device=cuda"], ["width=1024"]):
        (row,) = rows_of(tmp_path, "model=s_mixer", "width=900", "seed=9", *other)
        assert row.pace is None
    (row,) = rows_of(tmp_path, *SHAPE, "seed=9", "threads=1", "device=cpu")
    assert row.pace is not None
    lines = totals(list(rows.values()), at_once=2)
    assert lines[-1] == "time left: 3 min one after another, 80 s with 2 at once"


def test_totals_say_what_they_leave_out(tmp_path: Path) -> None:
    write_run(tmp_path, run_of(*SHAPE))
    rows = rows_of(tmp_path, "model=s_mixer", "width=900,1024", "seed=1")
    assert totals(rows, 1)[-2:] == [
        "time left: 60 s one after another, without the 1 of unknown time",
        "plan --measure times what no completed run tells of",
    ]
    assert totals([], 1) == ["0 runs"]


def test_what_was_measured_says_it_where_no_run_does(tmp_path: Path) -> None:
    run = run_of(*SHAPE)
    entry = {"shape": shape_of(run), "model": "s_mixer", "width": 896, "epoch": 3.0, "training": 2.5, "set_up": 1.0}
    entry |= {"device_kind": "cpu", "threads": 1, "measured": "2026-01-01", "torch": "2"}
    gpu = {**entry, "device_kind": "H100", "epoch": 0.3, "measured": "2025-01-01"}
    Calibration.read(tmp_path).add([entry, gpu])
    Calibration.read(tmp_path).add([{**entry, "epoch": 4.0, "measured": "2026-02-01"}])
    assert len(Calibration.read(tmp_path).entries) == 2
    (row,) = rows_of(tmp_path, *SHAPE, "seed=9")
    assert (row.wall_seconds, row.seconds) == (121.0, 75.0)
    assert row.record["estimated_from"] == "measured"
    (row,) = rows_of(tmp_path, *SHAPE, "device=cuda")
    assert row.wall_seconds == pytest.approx(10.0)
    write_run(tmp_path, seeded(run, 1))
    (row,) = rows_of(tmp_path, *SHAPE, "seed=9")
    assert row.record["estimated_from"] == "1 completed run"  # the real thing counts more


def test_a_damaged_calibration_is_told(command: Command, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / CALIBRATION).write_text("{")
    done = command("plan", *SHAPE)
    assert (done.returncode, done.stdout) == (2, "")
    assert "remove it, and plan --measure makes it anew" in done.stderr


def test_at_once_is_what_the_launcher_would_have(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))

    def of(*overrides: str, multirun: bool = True) -> tuple[int, int]:
        expansion = expand([*SHAPE, f"runs_dir={tmp_path}", *overrides], multirun=multirun)
        return concurrency(expansion, plan(expansion))

    assert of("seed=range(9)", "hydra.launcher.jobs=3", "device=cpu", "threads=1") == (3, 1)
    assert of("seed=0,1", "hydra.launcher.jobs=3", "device=cpu", "threads=1") == (2, 1)
    assert of(multirun=False) == (1, cores)
    assert of("threads=5", multirun=False) == (1, 5)


@pytest.mark.slow
def test_measure_times_each_shape_and_the_plan_then_knows(command: Command, tmp_path: Path) -> None:
    arguments = ["model=s_mixer,sw_mlp", *SMALL, "epochs=4", "seed=0,1"]
    done = command("plan", "--measure", "--json", *arguments)
    found = records(done)
    assert done.stderr.count("timed ") == 2  # a shape once, whatever its seeds
    assert all(one["estimated_from"] == "measured" for one in found)
    assert [p.name for p in (tmp_path / "runs").iterdir() if not p.name.endswith(".lock")] == [CALIBRATION]
    again = records(command("plan", "--json", *arguments))
    assert [one["wall_seconds_estimated"] for one in again] == [one["wall_seconds_estimated"] for one in found]
    trained = command("train", "model=s_mixer", *SMALL, "epochs=4")
    assert trained.returncode == 0, trained.stderr
    seconds = read_json(Path(trained.stdout.strip()))["seconds"]
    estimated = next(one["seconds_estimated"] for one in found if one["model"] == "s_mixer")
    assert 1 / 5 < estimated / seconds < 5  # the bar of 30% is for a quiet machine
    later = command("plan", "--measure", "model=s_mixer", *SMALL, "epochs=40")
    assert "nothing to measure" in later.stderr


@pytest.mark.slow
def test_measuring_what_cannot_be_trained_here_says_why(command: Command, tmp_path: Path) -> None:
    done = command("plan", "--measure", *SMALL, "data=fashion_mnist", f"data_dir={tmp_path}/data")
    assert (done.returncode, done.stdout) == (2, "")
    assert "mixersweep data prepare fashion_mnist" in done.stderr
    assert "Traceback" not in done.stderr


# --- memory ------------------------------------------------------------------------------------------------------


def measured_activations(run: Run) -> int:
    """Bytes of distinct memory that torch keeps of a forward pass for its backward pass, without the parameters."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    from mixersweep.models import build

    config = run.config
    network = build(config, run.architecture)
    known = {p.untyped_storage().data_ptr() for p in [*network.parameters(), *network.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        dense = tensor if tensor.layout is torch.strided else tensor.values()
        storage = dense.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.randn(config.batch_size, config.data.image_channels, config.image_size, config.image_size)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(network(images), torch.zeros(config.batch_size, dtype=torch.long))
    total = sum(kept.values())
    del loss
    return total


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=s_mixer"],
        ["model=rp_s_mixer"],
        ["model=mixer", "expansion=2", "depth=2"],
        ["model=pk", "model.tied=false"],
        ["model=monarch"],
        ["model=sw_mlp", "width=4096", "connections=2**14"],
        ["model=sw_mlp", "model.hidden=true", "expansion=2"],
        ["model=block_diagonal"],
        ["model=btt", "model.rank=2"],
        ["model=butterfly", "batch_size=8"],  # as torch computes it; kernels of our own take larger batches
        ["model=low_rank"],
        ["model=mlp"],
        ["model=golubeva_mlp", "width=80", "augment=none"],
        ["model=shallow_kronecker"],
        ["model=s_fc", "model.alpha=4"],
        ["model=golubeva_resnet18", "width=8", "model.base_width=8", "batch_size=16"],
    ],
    ids=" ".join,
)
def test_activations_are_about_what_torch_keeps(overrides: list[str]) -> None:
    run = run_of(*overrides)
    assert 0.8 < activation_bytes(run.config, run.architecture) / measured_activations(run) < 1.25


def test_memory_counts_the_optimiser_the_average_and_the_batch() -> None:
    def memory(*overrides: str) -> int:
        run = run_of("model=sw_mlp", *overrides)
        return memory_bytes(run.config, run.architecture)

    parameters = run_of("model=sw_mlp").architecture.parameters
    plain = memory("optim.momentum=0", "optim.nesterov=false")
    assert memory() - plain == 4 * parameters
    assert memory("optim=adamw") - plain == 8 * parameters
    assert memory("ema=0.99") - memory() == 4 * parameters
    assert memory("batch_size=256") > 1.5 * memory()
    assert memory("model.storage=dense") > memory("model.storage=sparse")
    assert memory("model.storage=sparse", "width=65536", "connections=2**18") < 4 * 65536**2 / 8  # no dense weight


# --- the figure --------------------------------------------------------------------------------------------------


def law(counts: str, target: float, expansion: float) -> Law:
    """Of square layers."""
    factor = Fraction(expansion)
    return Law(Formula(counts, Expansion(factor, factor, hidden=expansion != 1)), target)  # type: ignore[arg-type]


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
@settings(deadline=None)
def test_the_curve_goes_through_every_exact_network(tokens: int, channels: int, expansion: float) -> None:
    connections = expansion * (channels * tokens**2 + channels**2 * tokens) / 2
    curve = law("connections", connections, expansion)
    assert curve.tokens(channels) == pytest.approx(tokens)
    assert curve.width(channels) == pytest.approx(tokens * channels)
    assert curve.density(channels) == pytest.approx(connections / (expansion * (tokens * channels) ** 2))
    assert curve.width(curve.peak) == pytest.approx((connections / expansion) ** (2 / 3))
    assert curve.peak == pytest.approx((connections / expansion) ** (1 / 3), rel=1e-3)
    weights = law("weights", expansion * (tokens**2 + channels**2) / 2, expansion)
    assert weights.tokens(channels) == pytest.approx(tokens)
    assert weights.density(channels) == pytest.approx((tokens + channels) / 2 / (tokens * channels))


def test_the_curve_ends_where_there_is_no_network() -> None:
    assert math.isnan(law("connections", 1000, 1.0).width(200))
    assert math.isnan(law("weights", 1000, 1.0).width(45))


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("connections=2**14", "Ω = $2^{14}$, γ = 1"),
        ("budget=parameters weights=1024", "Π = $2^{10}$, γ = 1"),
        ("model=pk model.tied=false budget=parameters weights=2**14", "Ω = $2^{14}$, γ = 1"),
        ("connections=2**14 count=real model.skip_layer=always", "Ω = $2^{14}$ (real), γ = 1, L = 2"),
        ("connections=18432 count=real model.skip_layer=never", "Ω = 18,432 (real), γ = 1, L = 2, no skip"),
        ("connections=2**14 count=real model.stem=resize", "Ω = $2^{14}$ (real), γ = 1, L = 2, resizing stem"),
        ("budget=parameters weights=4096 count=real model.skip_layer=always", "Π = $2^{12}$ (real), γ = 1, L = 2"),
        ("model=pk model.tied=false budget=parameters weights=2**14 count=real", "Π = $2^{14}$ (real), γ = 1, L = 2"),
        ("budget=flops flops=300000 model.head=signed_groups", "300,000 FLOPs, γ = 1, L = 2"),
        ("model=mixer budget=flops flops=900000 expansion=2", "900,000 FLOPs, γ = 2, L = 2"),
    ],
)
def test_the_curve_of_every_budget_goes_through_the_networks_that_it_gives(budget: str, said: str) -> None:
    """Within the 2% that integers are allowed, and half a token; nowhere is a network wider than at the peak."""
    shares = ["tokens=64"] if "never" in budget else ["channels=12.5%", "channels=50%", "channels=75%"]
    for share in shares:
        run = run_of("model=s_mixer", "depth=2", *budget.split(), share)
        curve, a = law_of(run), run.architecture
        assert str(curve) == said
        assert a.tokens is not None and a.channels is not None
        assert curve.rule.smooth(a.tokens, a.channels) == pytest.approx(curve.target, rel=0.03)
        assert curve.tokens(a.channels) == pytest.approx(a.tokens, rel=0.03, abs=0.5)
        assert a.width <= 1.03 * curve.width(curve.peak)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_figure_is_drawn(command: Command, tmp_path: Path, kind: str) -> None:
    done = command("plan", "model=s_mixer,rp_s_mixer,sw_mlp", "width=512,900,1024", "--figure", f"plan.{kind}")
    assert done.returncode == 0, done.stderr
    content = (tmp_path / f"plan.{kind}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    assert len(content) > 5000
    assert "drawn: plan" in done.stderr


def test_the_figure_of_fixed_parameters_and_of_many_laws(tmp_path: Path) -> None:
    draw([run_of("model=s_mixer", "budget=parameters", "weights=1024", "width=900")], tmp_path / "one.png")
    many = [run_of("model=s_mixer", f"tokens={n}", "channels=16") for n in range(10, 30)]
    draw(many, tmp_path / "many.png")
    assert {p.name for p in tmp_path.iterdir()} == {"one.png", "many.png"}


def test_a_plan_is_what_train_then_does(command: Command, tmp_path: Path) -> None:
    """The names and the record of what is trained are those that the plan said."""
    arguments = ["-m", "model=s_mixer,sw_mlp", *SMALL, "epochs=1"]
    said = records(command("plan", "--json", *arguments))
    done = command("train", *arguments)
    assert done.returncode == 0, done.stderr
    results = [read_json(Path(line)) for line in done.stdout.splitlines()]
    assert [str(Path(line).parent) for line in done.stdout.splitlines()] == [one["run_dir"] for one in said]
    for one, result in zip(said, results, strict=True):
        assert {key: one[key] for key in one if key in result} == {key: result[key] for key in one if key in result}
        assert read_status(Path(one["run_dir"])).state == "completed"
    after = records(command("plan", "--json", *arguments))
    assert [one["state"] for one in after] == ["completed"] * 2
    assert all(one["estimated_from"] == "1 completed run" for one in after)
    for one, result in zip(after, results, strict=True):
        assert one["seconds_estimated"] == pytest.approx(result["seconds"])


def test_a_plan_says_what_the_runs_will_say_at_their_start(command: Command) -> None:
    models = "model=s_mixer,sw_mlp"
    done = command("plan", "-m", models, *SMALL, "optim.lr_scaling=mup")
    assert "note: optim.lr_scaling=mup takes blocks that share weights" in done.stderr
    assert "mup_tied corrects that of features (1 of 2 runs)" in done.stderr
    assert "optim.lr_scaling" not in command("plan", "-m", models, *SMALL).stderr


def test_a_law_needs_channels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of this plan has channels"):
        draw([dataclasses.replace(run_of("model=sw_mlp"))], tmp_path / "x.png")
