"""The parts of a training run, and whole runs in this process."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from mixersweep.commit import git_commit
from mixersweep.compose import config_of
from mixersweep.errors import RunStopped, UserError
from mixersweep.layers import blocks, product
from mixersweep.models import build
from mixersweep.runs import RunDirectory, same_experiment_same_numbers, solve
from mixersweep.training.checkpoint import load_checkpoint
from mixersweep.training.environment import (
    as_recorded_today,
    choose_device,
    choose_threads,
    describe_environment,
    set_up_torch,
)
from mixersweep.training.evaluation import Sums
from mixersweep.training.optimizer import make_optimizer
from mixersweep.training.parallel import World
from mixersweep.training.progress import TrainingProgress
from mixersweep.training.schedule import learning_rate
from mixersweep.training.signals import StopSignals
from mixersweep.training.trainer import train
from tests.training.small import StopAfter, assert_identical, finished

SMALL = ["connections=1000", "depth=1", "epochs=3", "batch_size=600", "threads=1", "tracking=none"]


def directory(tmp_path: Path, *overrides: str) -> RunDirectory:
    return RunDirectory.create(solve(config_of([*SMALL, *overrides])), tmp_path)


# --- the learning rate and the optimiser -------------------------------------------------------------------------


def test_the_cosine_schedule_starts_at_lr_and_ends_at_zero() -> None:
    optim = config_of(["optim.lr=0.4"]).optim
    rates = [learning_rate(optim, step, 10, 6) for step in range(60)]
    assert rates[0] == 0.4
    assert rates[30] == pytest.approx(0.2)
    assert 0 < rates[-1] < 0.001
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(optim, 60, 10, 6) == pytest.approx(0, abs=1e-15)


def test_a_warmup_rises_linearly_and_the_rest_is_as_scheduled() -> None:
    optim = config_of(["optim.lr=0.4", "optim.warmup_epochs=0.5", "optim.schedule=constant"]).optim
    rates = [learning_rate(optim, step, 8, 2) for step in range(16)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert set(rates[4:]) == {0.4}


def test_weight_decay_acts_on_weights_and_not_on_biases_and_norms() -> None:
    run = solve(config_of(["model=sw_mlp", "optim.weight_decay=0.25"]))
    network = build(run.config, run.architecture)
    names = {id(p): name for name, p in network.named_parameters()}
    decayed, free = make_optimizer(network, run.config.optim).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.25, 0.0)
    assert all(".norm." not in names[id(p)] and names[id(p)].endswith("weight") for p in decayed["params"])
    assert all(names[id(p)].endswith("bias") or "norm" in names[id(p)] for p in free["params"])
    assert len(names) == len(decayed["params"]) + len(free["params"])


def test_adamw_takes_its_settings() -> None:
    run = solve(config_of(["optim=adamw", "optim.beta2=0.95", "optim.eps=1e-6"]))
    optimizer = make_optimizer(build(run.config, run.architecture), run.config.optim)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.95), 1e-6)


# --- devices, signals, progress ----------------------------------------------------------------------------------


def test_kinds_of_cpu_that_share_a_home_compile_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would load what another kind has compiled, and where AVX-512 did for AVX2 all is NaN."""
    places = []
    for capability in ("AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        set_up_torch(config_of(["compile=true"]), torch.device("cpu"), print)
        places.append(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
    assert places == [Path.home() / ".cache" / "mixersweep" / "compiled" / name for name in ("avx512", "avx2")]


def test_devices_that_are_not_there_are_refused_by_name() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    for name, message in [("gpu", "no such device"), ("meta", "cpu or cuda"), ("cuda:99", "torch sees")]:
        with pytest.raises(UserError, match=f"device={name}: .*{message}"):
            choose_device(name)


def test_threads_are_those_asked_for_or_the_cores_of_this_process() -> None:
    assert choose_threads(3) == 3
    assert choose_threads("auto") >= 1
    described = describe_environment(torch.device("cpu"), 3, "dense", config_of(["accumulation=2"]), world_size=4)
    assert (described["threads"], described["accumulation"], described["world_size"]) == (3, 2, 4)


def test_products_of_blocks_record_whose_kernels_multiply_them() -> None:
    cpu = torch.device("cpu")
    for model, recorded in (("btt", blocks.implementation(cpu)), ("mixer", None)):
        assert describe_environment(cpu, 1, "dense", config_of([f"model={model}"]))["block_kernels"] == recorded
    assert as_recorded_today({"device_kind": "cpu"})["block_kernels"] is None


def test_the_commit_of_a_checkout_is_known() -> None:
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75)]
)
def test_a_signal_is_a_flag_until_the_loop_asks(number: signal.Signals, code: int) -> None:
    before = {n: signal.getsignal(n) for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)}
    try:
        signals = StopSignals().install()
        signals.check()
        signal.raise_signal(number)
        with pytest.raises(RunStopped) as stopped:
            signals.check()
        assert stopped.value.exit_code == code
        if number == signal.SIGINT:  # the second does not wait
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
    finally:
        for n, handler in before.items():
            if handler is not None and signal.getsignal(n) is not handler:
                signal.signal(n, handler)


def test_progress_is_a_line_an_epoch_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainingProgress(epochs=2, steps_per_epoch=1, first_epoch=1)
    row = {"epoch": 1, "train_loss": 0.5, "validation_accuracy": None, "test_accuracy": 0.75, "images_per_second": 9e3}
    progress.step()
    progress.epoch([row])
    progress.epoch([{**row, "validation_accuracy": 0.5}])
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 1/2  loss 0.5000  test 0.7500  9,000 images/s" in err
    assert "validation 0.5000" in err


def test_sums_are_exact_over_an_uneven_last_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(7, 3, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    sums = Sums(2, torch.device("cpu"))
    for batch, part in enumerate((slice(0, 5), slice(5, 7))):
        sums.add(batch, torch.nn.functional.cross_entropy(logits[part], labels[part]), logits[part], labels[part])
    loss, accuracy = sums.means(7, World())
    assert sums.first_nonfinite() is None
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-6)
    assert accuracy == float((logits.argmax(1) == labels).double().mean())


# --- whole runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    made = directory(tmp_path_factory.mktemp("undisturbed"))
    train(made, StopSignals(), lambda text: None)
    return made


def test_a_run_leaves_its_record_its_rows_and_its_predictions(undisturbed: RunDirectory) -> None:
    record, rows = undisturbed.result(), undisturbed.rows()
    assert record is not None
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert (record["epochs"], record["test_accuracy"]) == (3, rows[-1]["test_accuracy"])
    best = max(rows, key=lambda row: row["validation_accuracy"])
    assert record["best_epoch"] == best["epoch"]
    assert record["best_validation_test_accuracy"] == best["test_accuracy"]
    assert record["test_accuracy"] > 0.4
    assert record["environment"]["threads"] == 1
    assert record["connections"] == undisturbed.run.architecture.connections
    saved = np.load(undisturbed.predictions)
    assert saved["prediction"].shape == saved["probability_of_label"].shape == (2000,)
    assert float((saved["prediction"] == saved["label"]).mean()) == record["test_accuracy"]
    loss = -np.log(saved["probability_of_label"].astype(np.float64)).mean()
    assert loss == pytest.approx(record["test_loss"], rel=1e-5)


def test_no_run_reads_or_moves_the_global_random_state(tmp_path: Path, undisturbed: RunDirectory) -> None:
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    again = directory(tmp_path)
    train(again, StopSignals(), lambda text: None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert same_experiment_same_numbers(again.result() or {}, undisturbed.result() or {})


@pytest.mark.parametrize("checks", [1, 15, 16, 21, 40, 60])
def test_a_run_stopped_anywhere_goes_on_to_the_same_numbers(
    tmp_path: Path, undisturbed: RunDirectory, checks: int
) -> None:
    made = directory(tmp_path)
    said: list[str] = []
    with pytest.raises(RunStopped):
        train(made, StopAfter(checks), said.append)
    assert made.status().state == "preempted"
    told = len(made.rows())
    made = directory(tmp_path)  # as the same command would
    train(made, StopSignals(), said.append)
    *where, line = said
    assert where == ["on a CPU, 1 thread"] * 2  # each process says it
    assert line.startswith(f"going on after epoch {told} of 3 and ")
    assert same_experiment_same_numbers(made.result() or {}, undisturbed.result() or {})
    assert [row["train_loss"] for row in made.rows()] == [row["train_loss"] for row in undisturbed.rows()]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=sw_mlp", "optim=adamw", "optim.clip_norm=1", "optim.label_smoothing=0.1"],
        ["model=rp_mixer", "optim.warmup_epochs=1"],
        ["model=mlp", "model.head=linear", "validation=0"],
    ],
    ids=" ".join,
)
def test_every_kind_of_run_goes_on_to_the_same_numbers(tmp_path: Path, overrides: list[str]) -> None:
    whole = directory(tmp_path / "whole", *overrides)
    train(whole, StopSignals(), lambda text: None)
    parts = directory(tmp_path / "parts", *overrides)
    for checks in (20, 35):
        with pytest.raises(RunStopped):
            train(parts, StopAfter(checks), lambda text: None)
    train(parts, StopSignals(), lambda text: None)
    assert same_experiment_same_numbers(parts.result() or {}, whole.result() or {})
    if "validation=0" in overrides:
        record = whole.result() or {}
        assert record["validation_accuracy"] is record["best_epoch"] is record["best_validation_test_accuracy"] is None


def stopped_elsewhere(made: RunDirectory, steps: int, **environment: str) -> RunDirectory:
    """A run that stopped after so many checks, in an environment that its checkpoint says was another."""
    with pytest.raises(RunStopped):
        train(made, StopAfter(steps), lambda text: None)
    checkpoint = load_checkpoint(made.checkpoint, made.run.fingerprint)
    assert checkpoint is not None
    checkpoint.environment.update(environment)
    checkpoint.save(made.checkpoint)
    return made


def test_a_resumed_run_keeps_its_threads_and_says_where_the_environment_differs(tmp_path: Path) -> None:
    made = stopped_elsewhere(directory(tmp_path, "model=sw_mlp"), 30, torch="1.0")
    other = dataclasses.replace(made.run.config, threads=2)
    made.run = dataclasses.replace(made.run, config=other)
    said: list[str] = []
    train(made, StopSignals(), said.append)
    environment = (made.result() or {})["environment"]
    assert environment["threads"] == 1
    assert environment["mixed_environment"] is True
    assert any("differs" in text for text in said)


@pytest.mark.skipif(not product.is_available(), reason="this torch has no oneDNN for this processor")
@pytest.mark.parametrize("began", ["onednn", "torch"])
def test_a_resumed_run_multiplies_as_it_began(
    began: product.Routine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the machine would now choose another routine, its numbers are bit for bit those of one undisturbed."""
    monkeypatch.setattr(product, "_routine", "torch")  # put back at the end
    monkeypatch.setattr(product, "ENOUGH", 1)
    runs = {}
    for routine in ("onednn", "torch"):
        monkeypatch.setattr(product, "fastest", lambda routine=routine: routine)
        runs[routine] = finished(directory(tmp_path / routine, "model=mixer"))
        assert (runs[routine].result() or {})["environment"]["products"] == routine
    assert not same_experiment_same_numbers(runs["onednn"].result() or {}, runs["torch"].result() or {})
    (other,) = set(runs) - {began}
    monkeypatch.setattr(product, "fastest", lambda: began)
    made = directory(tmp_path / "parts", "model=mixer")
    with pytest.raises(RunStopped):
        train(made, StopAfter(20), lambda text: None)
    monkeypatch.setattr(product, "fastest", lambda: other)
    assert_identical(finished(made), runs[began])
    environment = (made.result() or {})["environment"]
    assert environment["products"] == began and "mixed_environment" not in environment


def test_a_resumed_run_whose_routine_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_routine", "torch")  # put back at the end
    made = stopped_elsewhere(directory(tmp_path, "model=mixer"), 20, products="onednn")
    monkeypatch.setattr(product, "is_available", lambda: False)
    environment = (finished(made).result() or {})["environment"]
    assert (environment["products"], environment["mixed_environment"]) == ("torch", True)


@pytest.mark.parametrize("is_available", [True, False])
def test_what_an_environment_did_not_record_was_onednns_product(
    is_available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "is_available", lambda: is_available)
    cpu, packed, gpu = ({"device_kind": kind} for kind in ("cpu", "cpu", "NVIDIA H100"))
    packed["engine"] = "packed"
    before = ["onednn" if is_available else "torch", None, None]
    assert [as_recorded_today(each)["products"] for each in (cpu, packed, gpu)] == before
    assert as_recorded_today({**cpu, "products": "torch"})["products"] == "torch"
    assert as_recorded_today({}) == {}


def test_where_products_are_batched_no_routine_is_recorded() -> None:
    for device, engine, recorded in [("cpu", "eager", True), ("cpu", "packed", False)]:
        described = describe_environment(torch.device(device), 1, "dense", engine=engine)
        assert described["products"] == (product.routine() if recorded else None)
