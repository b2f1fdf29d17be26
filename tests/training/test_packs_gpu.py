"""Packs on a GPU: a step is one graph, what a run computes is what it computes alone, and nothing waits."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mixersweep.data.splits import open_splits, share_splits
from mixersweep.runs import Run, RunDirectory
from mixersweep.training.learner import Learner
from mixersweep.training.packed import Packed
from mixersweep.training.parallel import World
from mixersweep.training.signals import StopSignals
from mixersweep.training.steps import Steps
from mixersweep.training.trainer import train, train_pack
from tests.gpu import no_waiting
from tests.training.small import StopAfter, assert_identical, directory, stopped
from tests.training.test_packs import FEATURES, SETTINGS

pytestmark = pytest.mark.gpu
BASE = ("data=digits", "epochs=2", "batch_size=200", "tracking=none", "device=cuda")
MODELS = [name for name in SETTINGS if name != "golubeva_resnet18"]
MOVING = [("sw_mlp", f"optim.rewire={kind}", "optim.rewire_every=2") for kind in ("set", "rigl", "srigl")]


@pytest.fixture(autouse=True)
def _data(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXERSWEEP_DATA", str(digits))


def made(tmp_path: Path, model: str, *more: str, seeds: Sequence[int] = (0, 1, 2)) -> list[RunDirectory]:
    base = [*BASE, f"model={model.strip()}", *SETTINGS[model], *more]
    return [directory(tmp_path, *base, f"seed={seed}") for seed in seeds]


def packed(runs: Sequence[Run], device: str = "cuda") -> Packed:
    splits = share_splits([run.config for run in runs], torch.device(device))
    return Packed(runs, torch.device(device), splits, "auto", [None] * len(runs))


def trained(pack: Packed, steps: int = 3) -> Packed:
    for number in pack.epoch(1, 0, []):
        if number == steps - 1:
            break
    torch.cuda.synchronize()
    return pack


@pytest.mark.parametrize("model", MODELS)
def test_every_family_computes_what_it_does_on_a_cpu(model: str, tmp_path: Path) -> None:
    runs = [each.run for each in made(tmp_path, model, "optim.lr=1e-3")]
    mine, theirs = trained(packed(runs)), trained(packed(runs, "cpu"))
    torch.testing.assert_close(mine.sums.cpu()[:, 0, :3], theirs.sums[:, 0, :3], rtol=1e-5, atol=0)
    for split in ("validation", "test"):
        found, expected = (pack.evaluate(split, lambda: None) for pack in (mine, theirs))
        assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=1e-4)


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_computes_what_it_does_on_a_cpu(feature: str, tmp_path: Path) -> None:
    runs = [each.run for each in made(tmp_path, "s_mixer", *FEATURES[feature], "optim.lr=1e-3")]
    mine, theirs = trained(packed(runs)), trained(packed(runs, "cpu"))
    bound = 2e-2 if feature == "bf16" else 1e-5
    torch.testing.assert_close(mine.sums.cpu()[:, 0, :3], theirs.sums[:, 0, :3], rtol=bound, atol=0)


@pytest.mark.parametrize("settings", MOVING, ids=" ".join)
def test_a_captured_step_reads_where_connections_have_moved(settings: tuple[str, ...], tmp_path: Path) -> None:
    runs = [each.run for each in made(tmp_path, *settings, "optim.lr=1e-3")]
    mine, theirs = trained(packed(runs), 6), trained(packed(runs, "cpu"), 6)
    for name in (name for name in mine._stored if name.endswith("positions")):
        assert torch.equal(mine._buffers[name].cpu(), theirs._buffers[name])
    torch.testing.assert_close(mine.sums.cpu()[:, 0, :6], theirs.sums[:, 0, :6], rtol=1e-5, atol=0)


@pytest.mark.parametrize("model", MODELS)
def test_a_pack_says_rightly_whether_a_run_is_the_same_alone(model: str, tmp_path: Path) -> None:
    runs = [each.run for each in made(tmp_path, model, seeds=range(20))]
    alone, some, many = packed(runs[1:2]), packed([runs[2], runs[0], runs[1]]), packed(runs)
    same = many.is_the_same_alone()
    for pack in (alone, some, many):
        trained(pack, 4)
    found = [pack._weights.flat[place] for pack, place in ((alone, 0), (some, 2), (many, 1))]
    if same:
        assert torch.equal(found[0], found[2])
    if some.is_the_same_alone():
        assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("settings", [("s_mixer",), ("rp_s_mixer",), ("sw_mlp",), ("pk",), *MOVING], ids=" ".join)
def test_a_run_that_stops_goes_on_to_the_bit_and_twice_is_the_same(settings: tuple[str, ...], tmp_path: Path) -> None:
    whole, again, broken = (made(tmp_path / name, *settings) for name in ("whole", "again", "broken"))
    for pack in (whole, again):
        assert train_pack(pack, StopSignals(), lambda text: None) == [None] * 3
    signals = StopAfter(8)
    with pytest.raises(Exception, match="preempted"):
        train_pack(broken, signals, lambda text: None)
    assert train_pack(broken, StopSignals(), lambda text: None) == [None] * 3
    for one, two, three in zip(whole, again, broken, strict=True):
        assert_identical(one, two)
        assert_identical(one, three)


def test_a_run_alone_is_packed_too_and_stops_and_goes_on(tmp_path: Path) -> None:
    (whole,), (broken,) = (made(tmp_path / name, "sw_mlp", seeds=(3,)) for name in ("whole", "broken"))
    train(whole, StopSignals(), lambda text: None)
    assert stopped(broken, [StopAfter(3), StopAfter(4, killed=True), StopSignals()]) == 2
    assert_identical(whole, broken)
    assert (whole.result() or {})["environment"]["engine"] == "packed"


@pytest.mark.parametrize("model", ["s_mixer", "rp_s_mixer", "sw_mlp", "pk", "mlp"])
def test_nothing_waits_for_the_device_within_an_epoch(model: str, tmp_path: Path) -> None:
    pack = packed([each.run for each in made(tmp_path, model)])
    steps = pack.epoch(1, 0, [])
    next(steps)  # captured
    with no_waiting():  # a wait raises
        taken = [next(steps) for _ in range(pack.steps - 2)]  # the last batch is smaller, and captured then
    assert taken == list(range(1, pack.steps - 1)) != []


@pytest.mark.parametrize("model", ["s_mixer", "rp_s_mixer", "sw_mlp", "pk", "mlp"])
def test_a_step_of_many_runs_has_few_more_kernels_than_one_of_one(model: str, tmp_path: Path) -> None:
    runs = [each.run for each in made(tmp_path, model, seeds=range(8))]
    pack = packed(runs)
    steps = pack.epoch(1, 0, [])
    next(steps)
    device = torch.device("cuda")
    splits = open_splits(runs[0].config, device)
    learner = Learner(runs[0], device, World(), "auto")
    learner.train()
    eager = iter(Steps(runs[0].config, splits.train, World()).epoch(1))
    for _ in range(2):
        learner.step(next(eager))
    one, many = kernels(lambda: learner.step(next(eager))), kernels(lambda: next(steps))
    assert many <= 1.3 * one, (many, one)


def kernels(step: object) -> int:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as found:
        step()  # type: ignore[operator]
        torch.cuda.synchronize()
    return sum(event.count for event in found.key_averages() if "Mem" not in event.key)
