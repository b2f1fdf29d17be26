"""``import mixersweep``: what it costs, that each name does what the command does, and that nothing is left behind."""

import ast
import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mixersweep
from mixersweep.api import training
from mixersweep.api.settings import overrides_of
from mixersweep.cli import main
from mixersweep.compose import config_of, parse_override
from mixersweep.layers import Factors, SparseMap, product
from mixersweep.models.mixer import MixerBlock
from mixersweep.models.mlp import MLPLayer
from mixersweep.models.monarch import MonarchBlock
from mixersweep.runs import same_experiment_same_numbers, solve
from mixersweep.runs.directory import read_rows
from mixersweep.training.environment import left_as_found
from mixersweep.training.learner import Learner
from mixersweep.training.parallel import World
from mixersweep.training.signals import StopSignals
from tests.report.sweeps import write_sweep

ROOT = Path(__file__).resolve().parents[1]
TIMES = ["time", "seconds", "images_per_second"]
SIZES = {"depth": 2, "tokens": 6, "channels": 5, "model": "s_mixer"}


@pytest.fixture
def tiny(digits: Path, tmp_path: Path) -> dict[str, object]:
    """The settings of a run of two epochs and less than a second."""
    small: dict[str, object] = {"epochs": 2, "batch_size": 300, "threads": 1, "tracking": "none", "device": "cpu"}
    return {**small, "data": "digits", "data_dir": digits, "runs_dir": tmp_path / "runs"}


def in_a_process(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done


def test_importing_it_imports_nothing_of_what_it_needs() -> None:
    heavy = {"torch", "hydra", "omegaconf", "pydantic", "matplotlib", "numpy", "pandas", "scipy", "wandb", "rich"}
    in_a_process(f"import sys, mixersweep; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)")


@pytest.mark.parametrize(
    "call", ["plan(model='pk', width=1024)", "plan_sweep(seed=[0, 1])", "train", "sweep", "read_runs", "compare"]
)
def test_what_trains_nothing_needs_no_torch(call: str, tmp_path: Path) -> None:
    code = f"import sys, mixersweep; mixersweep.{call}; assert not {{'torch', 'wandb'}} & set(sys.modules)"
    in_a_process(code, cwd=tmp_path)


@pytest.mark.parametrize("name", mixersweep.__all__)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(mixersweep, name)
    assert found.__doc__ and found.__doc__.strip().partition("\n")[0].endswith((".", ";", ":", ","))
    assert name in dir(mixersweep)
    assert found is getattr(mixersweep, name)


def test_type_checkers_see_what_python_finds() -> None:
    """The imports that only they execute are those that are made when a name is used."""
    tree = ast.parse(Path(mixersweep.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    seen = {alias.name: node.module for node in imports if node.module != "typing" for alias in node.names}
    assert sorted(seen) == mixersweep.__all__ == sorted(mixersweep.__all__)
    for name, module in seen.items():
        assert getattr(mixersweep, name) is getattr(importlib.import_module(module or ""), name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'plann'"):
        mixersweep.plann  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (None, None),
        (True, True),
        (2**15, 2**15),
        ("2**15", "2**15"),
        (np.int64(7), 7),
        (np.float32(0.5), 0.5),
        (1e-05, 1e-05),
        ("50%", "50%"),
        (["spectrum", "sparsity"], ["spectrum", "sparsity"]),
        ({"betas": [0.9, 0.99], "name": None}, {"betas": [0.9, 0.99], "name": None}),
        (Path("/tmp/my runs"), "/tmp/my runs"),
    ],
)
def test_a_value_of_python_is_that_of_hydra(value: object, read: object) -> None:
    (override,) = overrides_of([], {"optim__some": value})
    parsed = parse_override(override)
    assert parsed.key_or_group == "optim.some"
    found = parsed.value()
    assert getattr(found, "text", found) == read


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\r$"), max_size=12))
def test_any_text_comes_through(text: str) -> None:
    """But for line ends, which no override has, and what Hydra interpolates."""
    (override,) = overrides_of([], {"runs_dir": f"{text} "})  # the space keeps it from being a number or a word
    found = parse_override(override).value()
    assert getattr(found, "text", found) == f"{text} "


def test_lists_are_values_to_sweep_over_where_there_may_be_several() -> None:
    asked = {"seed": range(3), "model": ("pk", "mlp"), "probes": [["spectrum"], None], "epochs": 2}
    spelled = ["seed=0,1,2", "model=pk,mlp", "probes=[spectrum],null", "epochs=2"]
    assert overrides_of(["width=64"], asked, several=True) == ["width=64", *spelled]
    with pytest.raises(mixersweep.UserError, match=r"seed=\[\]: no value"):
        overrides_of([], {"seed": []}, several=True)
    with pytest.raises(mixersweep.UserError, match="no setting takes a object"):
        overrides_of([], {"seed": object()})


@pytest.mark.parametrize("model", ["pk", "mixer", "sw_mlp", "golubeva_mlp"])
def test_a_plan_is_what_the_command_says(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    width = {"width": 900} if model in ("pk", "sw_mlp") else {}
    assert main(["plan", "--json", f"model={model}", *(f"{key}={value}" for key, value in width.items())]) == 0
    said = json.loads(capsys.readouterr().out)
    found = mixersweep.plan(model=model, **width)
    assert json.loads(json.dumps(found.record)) == said
    for name in ("model", "width", "tokens", "channels", "connections", "weights", "parameters", "flops_per_image"):
        assert getattr(found, name) == said[name], name
    assert (str(found.run_dir), found.state) == (said["run_dir"], "new")
    assert mixersweep.plan(*found.overrides) == found


def test_the_plans_of_a_sweep_are_what_the_command_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--json", "-m", "model=s_mixer,sw_mlp", "width=1000,1024,5000"]) == 0
    said, told = capsys.readouterr()
    found = mixersweep.plan_sweep(model=["s_mixer", "sw_mlp"], width=[1000, 1024, 5000])
    assert [json.loads(json.dumps(plan.record)) for plan in found] == [json.loads(line) for line in said.splitlines()]
    assert len(found) == 5
    assert capsys.readouterr().err == told  # the point that no network meets


MISTAKES: list[list[str]] = [
    ["model=pkk"],
    ["widht=64"],
    ["epochs=-1"],
    ["model=s_mixer", "width=5000"],
    ["model=sw_mlp", "model.tied=true"],
    ["image_size=30"],
]


@pytest.mark.parametrize("overrides", MISTAKES, ids=" ".join)
def test_a_mistake_is_told_as_the_command_tells_it(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *overrides]) == 2
    said = capsys.readouterr().err.strip().removeprefix("mixersweep: ").partition(": ")[2]
    calls: list[Callable[..., object]] = [mixersweep.plan, mixersweep.build, mixersweep.train, mixersweep.sweep]
    for call in calls:
        with pytest.raises(mixersweep.UserError) as refused:
            call(*overrides)
        assert str(refused.value) == said, call
    assert not list(tmp_path.glob("runs/*-*"))


def test_choices_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "slow.yaml").write_text("defaults:\n  - sgd\n  - _self_\nlr: 0.01\n")
    own = mixersweep.plan(f"--config-dir={tmp_path}", model="pk", optim="slow")
    assert own.record["fingerprint"] == mixersweep.plan(model="pk", optim__lr=0.01).record["fingerprint"]
    with pytest.raises(mixersweep.UserError, match="optim=slow: no such optim"):
        mixersweep.plan(model="pk", optim="slow")


def test_a_broken_directory_is_seen_to_be_one(tiny: dict[str, object]) -> None:
    plan = mixersweep.plan(**SIZES, **tiny)
    assert plan.run_dir is not None
    plan.run_dir.mkdir(parents=True)
    (plan.run_dir / "status.json").write_text("{}")
    run = mixersweep.TrainedRun(plan.run_dir)
    assert run.state == "broken" and run.error == "config.yaml is missing"


def test_many_runs_are_no_business_of_one() -> None:
    with pytest.raises(mixersweep.UserError, match=r"width=64,128: several values; mixersweep\.sweep takes them"):
        mixersweep.plan("width=64,128")
    with pytest.raises(mixersweep.UserError, match=r"experiment=small_width: means many runs; mixersweep\.sweep"):
        mixersweep.train(experiment="small_width")


@pytest.mark.parametrize(
    "model",
    [
        {"model": "s_mixer"},
        {"model": "rp_mixer", "expansion": 2},
        {"model": "sw_mlp", "width": 128, "connections": 300},
    ],
)
def test_a_network_is_the_one_that_training_starts_from(model: dict[str, object]) -> None:
    sizes = {} if model["model"] == "sw_mlp" else {"tokens": 6, "channels": 5}
    settings = {**model, **sizes, "depth": 2, "seed": 3, "model__head": "signed_groups", "model__readout_dimension": 16}
    run = solve(config_of(overrides_of([], settings)))
    started = Learner(run, torch.device("cpu"), World(), "auto").network
    built = mixersweep.build(**settings)
    assert built.state_dict().keys() == started.state_dict().keys()
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in started.state_dict().items())
    images = torch.rand(7, 1, 32, 32)
    assert torch.equal(built.eval()(images), started.eval()(images))


BLOCKS: list[dict[str, Any]] = [
    {"family": "s_mixer", "tokens": 6, "channels": 5},
    {"family": "rp_s_mixer", "tokens": 6, "channels": 5},
    {"family": "mixer", "tokens": 5, "channels": 7, "expansion": 2},
    {"family": "rp_mixer", "tokens": 5, "channels": 7, "expansion": 3, "activation": "relu"},
    {"family": "pk", "tokens": 6, "channels": 5, "tied": False, "random_layers": "token"},
    {"family": "monarch", "tokens": 6, "channels": 5},
    {"family": "sw_mlp", "width": 30, "connections": 200},
    {"family": "sw_mlp", "width": 30, "density": 0.2, "hidden": True, "expansion": 2, "layers_per_block": 1},
    {"family": "hashed", "width": 30, "connections": 200, "sharing": 6},
    {"family": "block_diagonal", "width": 30, "connections": 150},
    {"family": "btt", "width": 30, "connections": 660, "rank": 2},
    {"family": "butterfly", "width": 30, "connections": 300},
    {"family": "low_rank", "width": 30, "connections": 150},
    {"family": "mlp", "width": 30},
]


@pytest.mark.parametrize("sizes", BLOCKS, ids=lambda sizes: "-".join(map(str, sizes.values())))
def test_a_block_is_the_layers_of_its_family(sizes: dict[str, Any]) -> None:
    """In float64, against each layer written out as a dense matrix."""
    width = sizes.get("width") or sizes["tokens"] * sizes["channels"]
    block = mixersweep.mixing_block(**sizes, seed=1).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():  # biases and norms do nothing at the start
        parameter.data.normal_(generator=generator)
    x = torch.randn(4, width, dtype=torch.float64, generator=generator)
    y = block(x)
    torch.testing.assert_close(y, written_out(block, x), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(y, x)
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def written_out(block: nn.Module, x: Tensor) -> Tensor:
    """What the equations at the head of ``models/mixer``, ``monarch`` and ``mlp`` say, (B, m) to (B, m)."""

    def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        rows = x.unflatten(1, (-1, norm.normalized_shape[0]))
        return F.layer_norm(rows, norm.normalized_shape, norm.weight, norm.bias, norm.eps).flatten(1)

    def mixed(layers: nn.Module, x: Tensor) -> Tensor:
        for layer in layers.children():
            is_map = isinstance(layer, SparseMap | Factors)
            x = x @ layer.to_dense().t() + layer.dense_bias() if is_map else layer(x)
        return x

    for layer in block.modules():
        if isinstance(layer, MixerBlock):
            x = x + mixed(layer.token_mixing, normed(layer.token_norm, x))
            x = x + mixed(layer.channel_mixing, normed(layer.channel_norm, x))
        elif isinstance(layer, MonarchBlock | MLPLayer):
            x = x + mixed(layer.mixing, normed(layer.norm, x))
    return x


def test_a_block_is_the_first_of_a_run_with_its_seed() -> None:
    """Where that is square: the 64 patches of a small image are 64 tokens."""
    network = mixersweep.build(model="rp_s_mixer", tokens=64, channels=12, seed=5)
    block = mixersweep.mixing_block("rp_s_mixer", tokens=64, channels=12, seed=5)
    of_network, alone = network.get_submodule("blocks.0"), block.get_submodule("blocks.0")
    assert of_network.state_dict().keys() == alone.state_dict().keys()
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in of_network.state_dict().items())
    x = torch.randn(64, 3, 12)
    assert torch.equal(of_network(x), alone(x))  # permutations too
    other = mixersweep.mixing_block("rp_s_mixer", tokens=64, channels=12, seed=6)
    assert not torch.equal(alone(x), other.get_submodule("blocks.0")(x))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"family": "s_mixxer"}, "family=s_mixxer: no such family; there are s_mixer, rp_s_mixer"),
        ({"family": "s_fc"}, "family=s_fc: its network is not made of square blocks; there are s_mixer"),
        ({"family": "s_mixer", "tokens": 5, "width": 12}, "width=12: not a multiple of tokens=5"),
        ({"family": "sw_mlp", "width": 8, "connections": 100}, "connections=100 do not fit into its 8×8 weights"),
        ({"family": "pk", "tokens": 4, "channels": 4, "tide": True}, "tide=true: no such setting; the nearest is tied"),
        ({"family": "pk", "tokens": 4, "channels": 4, "activation": "tanh"}, "activation=tanh: expects gelu or relu"),
    ],
)
def test_a_block_that_cannot_be(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(mixersweep.UserError) as refused:
        mixersweep.mixing_block(**asked)
    assert said in str(refused.value)


HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """This process is afterwards what it was before."""

    def state() -> list[object]:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        drawn = torch.get_rng_state().sum().item(), np.random.get_state()[1].sum()  # noqa: NPY002
        others = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR")  # the last is torch's, when it is first imported
        environment = {name: value for name, value in os.environ.items() if name not in others}
        handlers = [signal.getsignal(number) for number in HANDLED]
        return [*handlers, blocked, drawn, torch.get_num_threads(), os.getcwd(), sys.argv, environment]  # noqa: PTH109

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    before = state()
    yield
    assert state() == before
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("nothing_left")
def test_trained_twice_in_one_process(
    tiny: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = mixersweep.train(**SIZES, **tiny)
    assert first.state == "completed" and first.error is None
    assert "epoch 2/2" in capsys.readouterr().err
    written = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    again = mixersweep.train(**SIZES, **tiny)
    *_, said = capsys.readouterr().err.splitlines()
    assert said == f"mixersweep: already done: {first.name}"
    assert again.path == first.path
    assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == written

    elsewhere = mixersweep.train(**SIZES, **{**tiny, "runs_dir": tmp_path / "other runs"})
    assert elsewhere.path.parent == tmp_path / "other runs"
    assert same_experiment_same_numbers({**first.record, "overrides": []}, {**elsewhere.record, "overrides": []})
    assert first.metrics.drop(columns=TIMES).equals(elsewhere.metrics.drop(columns=TIMES))

    record = json.loads((first.path / "result.json").read_text())
    assert first.record == record
    right = first.predictions["prediction"] == first.predictions["label"]
    assert right.mean() == pytest.approx(record["test_accuracy"], abs=1e-7)
    assert list(first.metrics["epoch"]) == [1, 2] and first.probes.empty
    assert repr(first) == f"<TrainedRun {first.name}: completed, test {record['test_accuracy']:.4f}>"
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    built = mixersweep.build(**SIZES, data="digits")
    assert torch.equal(first.network(0)(images), built.eval()(images))
    assert not torch.equal(first.network()(images), built(images))


@pytest.mark.usefixtures("nothing_left")
def test_a_ctrl_c_stops_a_run_which_the_same_call_then_ends(
    tiny: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(text: str) -> None:
        if text.startswith("s_mixer: tokens=6"):  # the handlers are in place, and training begins
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training, "say", interrupted)
    with pytest.raises(mixersweep.RunStopped, match="after epoch 0 of 2; the same command goes on from there"):
        mixersweep.train(**SIZES, **tiny)
    monkeypatch.undo()
    (path,) = (tmp_path / "runs").glob("s_mixer-*")
    run = mixersweep.TrainedRun(path)
    assert run.state == "interrupted" and run.record["test_accuracy"] is None and run.metrics.empty
    assert repr(run) == f"<TrainedRun {run.name}: interrupted>"
    with pytest.raises(mixersweep.UserError, match=r"has no predictions, .* it is interrupted"):
        _ = run.predictions
    ended = mixersweep.train(run_dir=path)
    whole = mixersweep.train(**SIZES, **{**tiny, "runs_dir": tmp_path / "whole"})
    assert ended.metrics.drop(columns=TIMES).equals(whole.metrics.drop(columns=TIMES))


def test_run_dir_stands_alone(tmp_path: Path) -> None:
    with pytest.raises(mixersweep.UserError, match="epochs=2: run_dir= takes up a run as it was frozen"):
        mixersweep.train(run_dir=tmp_path, epochs=2)
    with pytest.raises(mixersweep.UserError, match="one run at a time; call train for each"):
        mixersweep.train(f"run_dir={tmp_path}", "run_dir=other")
    with pytest.raises(mixersweep.UserError, match=r"no run directory, it has no config\.yaml"):
        mixersweep.train(run_dir=tmp_path)
    assert mixersweep.TrainedRun(tmp_path).state == "new"
    with pytest.raises(mixersweep.UserError, match=r"is no run directory; it has no config\.yaml"):
        _ = mixersweep.TrainedRun(tmp_path).record


def test_what_no_call_takes_up_again_is_raised(tiny: dict[str, object]) -> None:
    with pytest.raises(mixersweep.RunDiverged) as first:
        mixersweep.train(**SIZES, **tiny, optim__lr=1e9)
    with pytest.raises(mixersweep.RunDiverged, match=r"diverged before .*; not taken up again"):
        mixersweep.train(**SIZES, **tiny, optim__lr=1e9)
    assert first.value.exit_code == 3


def test_several_processes_are_the_commands_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(mixersweep.UserError, match="only the command trains in several processes: torchrun"):
        mixersweep.train(model="pk")


@pytest.mark.usefixtures("nothing_left")
def test_another_thread_trains_without_signals(tiny: dict[str, object]) -> None:
    runs: list[mixersweep.TrainedRun] = []
    thread = threading.Thread(target=lambda: runs.append(mixersweep.train(**SIZES, **tiny)))
    thread.start()
    thread.join()
    assert runs[0].state == "completed"


@pytest.mark.usefixtures("nothing_left")
def test_a_signal_that_came_too_late_is_not_lost() -> None:
    with pytest.raises(mixersweep.RunStopped, match="preempted by SIGTERM"), StopSignals().installed():
        os.kill(os.getpid(), signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    with StopSignals().installed() as signals:
        signals.check()
    assert signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2]) >= {signal.SIGUSR2}


@pytest.mark.usefixtures("nothing_left")
def test_what_a_run_sets_in_torch_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[object]:
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        return [*tf32, torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), product.routine()]

    before = found()
    with pytest.raises(KeyError), left_as_found():
        torch.backends.cuda.matmul.allow_tf32 = not torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_num_threads(1)
        monkeypatch.setattr(product, "_routine", "another")
        raise KeyError
    assert found() == before


@pytest.mark.usefixtures("nothing_left")
def test_a_sweep_and_what_it_left(tiny: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {**tiny, "model": ["s_mixer", "rp_s_mixer"], "tokens": 6, "channels": 5, "seed": range(2)}
    first = mixersweep.train(**SIZES | {"seed": 1}, **tiny)
    capfd.readouterr()
    runs = mixersweep.sweep(**asked, depth=2)
    said = capfd.readouterr()
    assert said.out == "" and "4 runs: 3 new, 1 completed" in said.err
    assert [run.state for run in runs] == ["completed"] * 4
    assert [(run.record["model"], run.record["seed"]) for run in runs] == [
        (model, seed) for model in ("s_mixer", "rp_s_mixer") for seed in (0, 1)
    ]
    assert runs[1].path == first.path
    again = mixersweep.sweep(**asked, depth=2)
    assert [run.path for run in again] == [run.path for run in runs]
    assert "local:" not in capfd.readouterr().err  # nothing was launched

    table = mixersweep.read_runs(tmp_path / "runs")
    assert isinstance(table, pd.DataFrame) and len(table) == 4
    own = table.set_index("run_dir")
    for run in runs:
        row = own.loc[str(run.path)]
        assert row["test_accuracy"] == run.record["test_accuracy"] and row["optim.lr"] == 0.1
        assert len(read_rows(run.path / "metrics.jsonl")) == row["epochs"]
    one = mixersweep.read_runs(tmp_path / "runs", where="model=s_mixer and seed=1")
    assert list(one["run_dir"]) == [str(first.path)]
    with pytest.raises(mixersweep.UserError, match="none of the 4 runs"):
        mixersweep.read_runs(tmp_path / "runs", where="seed=7")


@pytest.mark.usefixtures("nothing_left")
def test_a_ctrl_c_stops_a_sweep_which_the_same_call_then_ends(
    tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(text: str) -> None:
        if text.startswith("local: "):  # its runs are about to be started
            os.kill(os.getpid(), signal.SIGINT)

    asked: dict[str, Any] = {**SIZES, **tiny, "seed": range(2)}
    monkeypatch.setattr(training, "say", interrupted)
    with pytest.raises(mixersweep.RunStopped, match="interrupted by SIGINT"):
        mixersweep.sweep(**asked)
    monkeypatch.undo()
    assert "completed" not in [plan.state for plan in mixersweep.plan_sweep(**asked)]
    assert [run.state for run in mixersweep.sweep(**asked)] == ["completed"] * 2


def test_a_sweep_without_a_run_is_a_mistake(tiny: dict[str, object]) -> None:
    with pytest.raises(mixersweep.UserError, match="width=5000: the widest mixer") as refused:
        mixersweep.sweep(**{**tiny, "model": "s_mixer", "width": [5000, 6000]})
    assert "; width=6000: the widest mixer" in str(refused.value)


def test_runs_that_are_not_completed_are_read_too(tmp_path: Path) -> None:
    """And compared they cannot be, which says the same as the command."""
    from mixersweep.runs import RunDirectory

    RunDirectory.create(solve(config_of(["model=pk"])), tmp_path)
    table = mixersweep.read_runs(tmp_path)
    assert list(table["state"]) == ["planned"] and table["test_accuracy"].isna().all()
    with pytest.raises(mixersweep.MixersweepError, match=r"no run is completed yet \(1 planned\)"):
        mixersweep.compare(tmp_path)


def test_the_default_place_is_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXERSWEEP_RUNS", str(tmp_path / "mine"))
    with pytest.raises(mixersweep.UserError, match="mine: no such directory; name a directory of runs"):
        mixersweep.read_runs()


def test_a_comparison_is_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    write_sweep(runs, lambda model, width, seed: 0.8 + 0.05 * (model == "sw_mlp"), widths=(900, 1024), seeds=(0, 1, 2))
    assert main(["report", str(runs), "--out", str(tmp_path / "report")]) == 0
    said = capsys.readouterr().err
    found = mixersweep.compare(runs)
    assert f"mixersweep: {found.answer}\n" in said
    assert json.loads((tmp_path / "report" / "statistics.json").read_text()) == json.loads(json.dumps(found.statistics))
    drawn = {path.stem for path in (tmp_path / "report").glob("*.svg")}
    assert found.figures.keys() == drawn == found.captions.keys() and "width_vs_accuracy" in drawn
    assert all(isinstance(figure, matplotlib.figure.Figure) for figure in found.figures.values())
    assert all(f"{name}: not drawn, {reason}" in said for name, reason in found.left_out.items()) and found.left_out
    assert len(found.tables["runs"]) == 18 and set(found.tables["pairs"]["first"]) <= {"s_mixer", "rp_s_mixer"}
    found.figures["width_vs_accuracy"].savefig(tmp_path / "own.png", dpi=50)  # it can be drawn again
    assert found._repr_markdown_() == found.report.markdown and found.answer in repr(found)
    page = found.write(tmp_path / "again")
    assert page == tmp_path / "again" / "report.html"
    for name in drawn:
        one, other = (tmp_path / place / f"{name}.svg" for place in ("report", "again"))
        assert one.read_bytes() == other.read_bytes()
    with pytest.raises(mixersweep.UserError, match="widht"):
        mixersweep.compare(runs, x="widht")
    with pytest.raises(mixersweep.UserError, match="--by seed: cannot separate lines"):
        mixersweep.compare(runs, by=["seed"])
    assert "matplotlib.pyplot" not in sys.modules


def test_the_lines_of_the_readme_mean_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they would train is planned instead, and what they would read is looked for with the same arguments."""
    readme = (ROOT / "README.md").read_text()
    code = readme.partition("```python\n")[2].partition("```")[0]
    planned: list[object] = []
    for name, plan in (("train", mixersweep.plan), ("sweep", mixersweep.plan_sweep)):
        monkeypatch.setattr(mixersweep, name, lambda *a, plan=plan, **k: planned.append(plan(*a, **k)))
    for name in ("read_runs", "compare"):
        monkeypatch.setattr(mixersweep, name, inspect.signature(getattr(mixersweep, name)).bind)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["network"](torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert found["block"](torch.zeros(2, 256)).shape == (2, 256)
    run, runs = planned
    assert isinstance(run, mixersweep.Plan) and isinstance(runs, list) and len(runs) == 12
    for attribute in re.findall(r"(?:run|found)\.(\w+)", code):
        assert any(hasattr(cls, attribute) for cls in (mixersweep.TrainedRun, mixersweep.Findings)), attribute


EXAMPLE = """
from typing import assert_type

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

import mixersweep

plan = mixersweep.plan(model="pk", width=1024, optim__lr=0.1)
assert_type(plan.width, int)
assert_type(plan.tokens, int | None)
assert_type(mixersweep.build("model=pk", width=1024), nn.Module)
assert_type(mixersweep.mixing_block("s_mixer", tokens=16, channels=16, seed=0), nn.Module)
run = mixersweep.train(model="pk", epochs=1)
assert_type(run, mixersweep.TrainedRun)
assert_type(run.metrics, pd.DataFrame)
assert_type(mixersweep.sweep(model=["pk", "mlp"], seed=range(3)), list[mixersweep.TrainedRun])
assert_type(mixersweep.read_runs("runs", where="width>=1000"), pd.DataFrame)
found = mixersweep.compare("runs")
assert_type(found.figures, dict[str, Figure])
try:
    mixersweep.plan_sweep(width=[1, 2])
except mixersweep.UserError as error:
    assert_type(error.exit_code, int)
"""


@pytest.mark.slow
def test_a_type_checker_knows_it(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(EXAMPLE)
    (tmp_path / "wrong.py").write_text("import mixersweep\nmixersweep.plan(1)\nmixersweep.plann()\n")

    def checked(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mypy", "--strict", str(tmp_path / name)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    done = checked("example.py")
    assert done.returncode == 0, done.stdout
    wrong = checked("wrong.py").stdout
    assert 'has incompatible type "int"; expected "str"' in wrong and 'has no attribute "plann"' in wrong


@pytest.mark.slow
def test_the_first_steps_are_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "docs" / "examples" / "first_steps.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in shown if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in shown)
    runs = mixersweep.read_runs(tmp_path / "first_steps")
    assert len(runs) == 18 and set(runs["state"]) == {"completed"}
    assert runs.groupby("width")["connections"].nunique().eq(1).all()  # a sparse MLP has the Mixer's
