"""Runs of a pack are, to the bit on a CPU, what they are alone, whatever befalls their neighbours."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mixersweep.compose import config_of
from mixersweep.config.schema import VARIANTS, Config
from mixersweep.data.splits import share_splits
from mixersweep.errors import RunCancelled, RunDiverged, RunHeld, RunStopped, UserError
from mixersweep.families import FAMILIES
from mixersweep.runs import RunDirectory, hold, read_status, solve
from mixersweep.sweeps.mend import cancel
from mixersweep.training import loop, packing
from mixersweep.training.packed import Packed
from mixersweep.training.packing import MAY_DIFFER, why_alone, why_apart
from mixersweep.training.signals import StopSignals
from mixersweep.training.trainer import train, train_pack
from tests.training.small import DIGITS, SIZES, Killed, StopAfter, assert_identical, content, directory, rows

PACKED = [*DIGITS, "engine=packed"]
SETTINGS = {
    "s_mixer": SIZES,
    "rp_s_mixer": SIZES,
    "mixer": SIZES,
    "rp_mixer": SIZES,
    "pk": (*SIZES, "model.tied=false"),
    "monarch": SIZES,
    "sw_mlp": SIZES,
    "sw_mlp ": (*SIZES, "model.storage=dense"),
    "hashed": SIZES,
    "block_diagonal": ("depth=2", "width=30", "connections=150"),
    "btt": ("depth=2", "width=30", "connections=330"),
    "butterfly": ("depth=2", "width=30", "connections=300"),
    "low_rank": ("depth=2", "width=30", "connections=150"),
    "mlp": (*SIZES, "model.head=linear"),
    "shallow_monarch": (),
    "shallow_kronecker": (),
    "golubeva_mlp": ("model.weights_total=1000",),
    "golubeva_resnet18": ("width=8", "model.base_width=8", "epochs=1"),
    "s_fc": ("model.alpha=1",),
}
FEATURES = {
    "adamw": ("optim=adamw", "optim.lr=0.01"),
    "clipped": ("optim.clip_norm=0.5",),
    "smoothed": ("optim.label_smoothing=0.1",),
    "averaged": ("ema=0.9",),
    "plain": ("optim.momentum=0", "optim.nesterov=false"),
    "bf16": ("precision=bf16",),
    "flipped": ("augment.flip=true", "augment.crop_padding=1"),
    "unvalidated": ("validation=0",),
    "mup": ("optim.lr_scaling=mup", "optim.base_fan_in=8"),
    "warmed": ("optim.warmup_epochs=1", "optim.schedule=step", "optim.milestones=[1]"),
}


@pytest.fixture(autouse=True)
def _data(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXERSWEEP_DATA", str(digits))


def made(tmp_path: Path, model: str, *more: str, seeds: Sequence[int] = (0, 1, 2)) -> list[RunDirectory]:
    """Runs with a seed and a learning rate of their own."""
    base = [*PACKED, f"model={model.strip()}", *SETTINGS[model], *more]
    rates = () if any(setting.startswith("optim.lr=") for setting in more) else tuple(0.1 / (1 + s) for s in seeds)
    return [
        directory(tmp_path, *base, f"seed={seed}", *([f"optim.lr={rates[i]}"] if rates else []))
        for i, seed in enumerate(seeds)
    ]


def trained(directories: Sequence[RunDirectory], signals: StopSignals | None = None) -> list[BaseException | None]:
    return train_pack(directories, signals or StopSignals(), lambda text: None)


@pytest.mark.parametrize("model", SETTINGS)
def test_alone_in_a_pack_and_in_another_order_every_bit_is_the_same(model: str, tmp_path: Path) -> None:
    pack, alone, other = (made(tmp_path / name, model) for name in ("pack", "alone", "other"))
    assert trained(pack) == [None] * 3
    train(alone[1], StopSignals(), lambda text: None)
    assert trained([other[2], other[1]]) == [None] * 2
    assert_identical(pack[1], alone[1])
    assert_identical(pack[1], other[1])
    assert_identical(pack[2], other[2])
    assert (pack[1].result() or {})["pack_size"] == 3
    assert (pack[1].result() or {})["environment"]["engine"] == "packed"
    assert not torch.equal(*(content(run)["model.head.weight"] for run in pack[:2]))


@pytest.mark.parametrize("model", [*SETTINGS])
@pytest.mark.parametrize("kind", ["model"])
def test_packed_and_eager_agree_to_rounding(model: str, kind: str, tmp_path: Path) -> None:
    settings = ("epochs=1", "optim.lr=1e-3")  # at which roundings are carried on as they are
    packed = made(tmp_path / "packed", model, *settings)
    eager = made(tmp_path / "eager", model, *settings, "engine=eager")
    assert packed[0].run.fingerprint == eager[0].run.fingerprint
    assert_near(packed[:2], eager[:2])


@pytest.mark.parametrize("feature", FEATURES)
def test_features_agree_with_eager_and_are_the_same_alone(feature: str, tmp_path: Path) -> None:
    packed, alone = (made(tmp_path / name, "s_mixer", *FEATURES[feature]) for name in ("packed", "alone"))
    eager = made(tmp_path / "eager", "s_mixer", *FEATURES[feature], "engine=eager")
    assert_near(packed, eager, 2e-2 if feature == "bf16" else 1e-5)
    train(alone[2], StopSignals(), lambda text: None)
    assert_identical(packed[2], alone[2])


def assert_near(packed: Sequence[RunDirectory], eager: Sequence[RunDirectory], bound: float = 1e-5) -> None:
    """Losses to a relative bound; they are means over hundreds of images of sums that are rounded in another order."""
    assert trained(packed) == [None] * len(packed)
    for one, other in zip(packed, eager, strict=True):
        train(other, StopSignals(), lambda text: None)
        for mine, theirs in zip(rows(one), rows(other), strict=True):
            for name in (name for name in theirs if name.endswith("loss") and theirs[name] is not None):
                assert mine[name] == pytest.approx(theirs[name], rel=bound), name
        assert content(one).keys() == content(other).keys()
        assert all(value.shape == content(other)[name].shape for name, value in content(one).items())


@pytest.mark.parametrize(
    "model",
    [
        "s_mixer",
        "rp_mixer",
        "pk",
        "sw_mlp",
        "sw_mlp ",
        "block_diagonal",
        "btt",
        "low_rank",
        "mlp",
        "monarch",
        "golubeva_resnet18",
    ],
)
def test_the_program_of_all_runs_at_once_is_that_of_each(model: str, tmp_path: Path) -> None:
    """As a GPU has it: one call for all runs, on stacked tensors."""
    runs = [each.run for each in made(tmp_path, model, "optim.lr=1e-4")]
    splits = share_splits([run.config for run in runs], torch.device("cpu"))

    def losses(at_once: int) -> torch.Tensor:
        pack = Packed(runs, torch.device("cpu"), splits, "auto", [None] * 3, at_once=at_once)
        for number in pack.epoch(1, 0, []):
            if number == 2:
                break
        validated = torch.tensor([found[0] for found in pack.evaluate("validation", lambda: None)])
        return torch.cat([pack.sums[:, 0, :3], validated[:, None]], 1)

    torch.testing.assert_close(losses(3), losses(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("checks", [1, 4, 9, 12, 13])
@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_a_run_stops_in_one_pack_and_goes_on_in_another_or_alone(checks: int, killed: bool, tmp_path: Path) -> None:
    whole, broken = made(tmp_path / "whole", "s_mixer"), made(tmp_path / "broken", "s_mixer")
    trained(whole)
    with pytest.raises(Killed if killed else RunStopped):
        trained(broken, StopAfter(checks, killed=killed))
    states = {read_status(each.path).state for each in broken}
    assert states == ({"failed"} if killed else {"preempted"})
    train(broken[1], StopSignals(), lambda text: None)
    assert trained([broken[2], broken[0]]) == [None, None]
    for one, other in zip(whole, broken, strict=True):
        assert_identical(one, other)


def test_runs_that_stand_apart_catch_up_and_go_on_together(tmp_path: Path) -> None:
    whole, apart = made(tmp_path / "whole", "s_mixer", "epochs=4"), made(tmp_path / "apart", "s_mixer", "epochs=4")
    trained(whole)
    for run, checks in ((apart[0], 8), (apart[1], 20)):  # in the second epoch, and in the third
        with pytest.raises(RunStopped):
            train(run, StopAfter(checks), lambda text: None)
    assert len({len(rows(run)) for run in apart}) == 3
    assert trained(apart) == [None] * 3
    for one, other in zip(whole, apart, strict=True):
        assert_identical(one, other)


def test_one_diverges_and_the_others_go_on_unchanged(tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", "s_mixer")
    trained(whole)
    pack = made(tmp_path / "pack", "s_mixer")
    bad = directory(tmp_path / "pack", *PACKED, "model=s_mixer", *SIZES, "seed=7", "optim.lr=1e30")
    said: list[str] = []
    errors = train_pack([pack[0], bad, *pack[1:]], StopSignals(), said.append)
    assert [type(error) for error in errors] == [type(None), RunDiverged, type(None), type(None)]
    assert "not finite in step 2 of epoch 1" in str(errors[1])
    assert "the output of" in str(errors[1])
    assert read_status(bad.path).state == "diverged"
    assert any(bad.path.name in text for text in said)
    for one, other in zip(whole, pack, strict=True):
        assert_identical(one, other)


def test_one_is_cancelled_and_leaves_at_the_next_epoch(tmp_path: Path) -> None:
    whole, pack = made(tmp_path / "whole", "s_mixer"), made(tmp_path / "pack", "s_mixer")
    trained(whole)

    class CancelOne(StopSignals):
        calls = 0

        def check(self) -> None:
            self.calls += 1
            if self.calls == 2:
                held[1]._cancelled = True

    held = []
    original = loop.Member.hold

    def remembered(member: loop.Member) -> None:
        original(member)
        held.append(member.held)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Member, "hold", remembered)
        errors = trained(pack, CancelOne())
    assert [type(error) for error in errors] == [type(None), RunCancelled, type(None)]
    assert rows(pack[1]) == rows(whole[1])[:1]  # that of the epoch which it was in
    for place in (0, 2):
        assert_identical(whole[place], pack[place])


def test_what_is_held_or_cancelled_before_is_left_alone(tmp_path: Path) -> None:
    pack = made(tmp_path, "s_mixer")
    assert [done for done, _ in cancel([pack[2].path])] == [True]
    with hold(pack[0].path):
        errors = trained(pack)
    assert [type(error) for error in errors] == [RunHeld, type(None), RunCancelled]
    assert pack[1].status().state == "completed"


def test_a_pack_that_does_not_fit_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pack = (made(tmp_path / name, "s_mixer", seeds=range(5)) for name in ("whole", "pack"))
    trained(whole)
    sizes, said = [], []

    class Small(Packed):
        def epoch(self, epoch: int, first: int, sums: Sequence[torch.Tensor | None]) -> Iterator[int]:
            sizes.append(self.count)
            if self.count > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().epoch(epoch, first, sums)

    monkeypatch.setattr(loop, "Packed", Small)
    assert train_pack(pack, StopSignals(), said.append) == [None] * 5
    assert sizes == [5, 3, 2, 2, 2, 2, 1, 1]
    assert "5 runs do not fit into the memory of the device: 3 at a time" in said
    for one, other in zip(whole, pack, strict=True):
        assert_identical(one, other)


def test_runs_that_no_pack_computes_train_one_after_another(tmp_path: Path) -> None:
    """As where a launcher expected a GPU that is not there."""
    runs = made(tmp_path, "s_mixer", "engine=auto", seeds=(0, 1))
    assert trained(runs) == [None, None]
    assert {(run.result() or {})["environment"]["engine"] for run in runs} == {"eager"}
    assert {(run.result() or {})["pack_size"] for run in runs} == {1}


def test_a_full_disk_ends_one_run_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pack = made(tmp_path / "whole", "s_mixer"), made(tmp_path / "pack", "s_mixer")
    trained(whole)
    save = loop.Training._save_run

    def full(training: loop.Training, member: loop.Member) -> None:
        if member.directory is pack[0]:
            raise OSError(28, "No space left on device")
        save(training, member)

    monkeypatch.setattr(loop.Training, "_save_run", full)
    errors = trained(pack)
    assert "make room" in str(errors[0])
    assert errors[1:] == [None, None]
    assert read_status(pack[0].path).state == "failed"
    for place in (1, 2):
        assert_identical(whole[place], pack[place])


def test_probes_see_each_run_as_it_is_alone(tmp_path: Path) -> None:
    probes = "probes=[spectrum,sparsity,gradient_norm,activation_rank]"
    pack, alone = (made(tmp_path / name, "s_mixer", probes, "probe_every=1") for name in ("pack", "alone"))
    trained(pack)
    train(alone[2], StopSignals(), lambda text: None)
    found, expected = (
        [{name: value for name, value in row.items() if name != "seconds"} for row in run.probes()]
        for run in (pack[2], alone[2])
    )
    assert len(found) == 2
    assert found == expected


def test_rows_are_told_only_when_they_are_in_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVING_FRACTION", 0.0)  # as if writing took longer than training
    pack = made(tmp_path, "s_mixer", "epochs=4")
    with pytest.raises(Killed):
        trained(pack, StopAfter(23, killed=True))
    for run in pack:
        kept = torch.load(run.checkpoint, weights_only=True)["rows"] if run.checkpoint.exists() else []
        assert len(run.rows()) == len(kept) < 3
    assert trained(pack) == [None] * 3


# What may be in one pack


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """All settings of the schema, of every choice of its groups."""
    for field in dataclasses.fields(cls):
        name = f"{prefix}{field.name}"
        if cls is Config and field.name in VARIANTS:
            for variant in dict.fromkeys(VARIANTS[field.name].values()):
                yield from leaves(variant, f"{name}.")
        elif dataclasses.is_dataclass(inner := field.default if field.name == "checkpoint" else NESTED.get(field.name)):
            yield from leaves(inner if isinstance(inner, type) else type(inner), f"{name}.")
        else:
            yield name, field


NESTED = {
    name: getattr(__import__("mixersweep.config.schema", fromlist=["schema"]), kind)
    for name, kind in (("data", "Data"), ("augment", "Augment"), ("tracking", "Tracking"), ("seeds", "Seeds"))
}


def test_every_setting_is_on_one_side() -> None:
    known = dict(leaves(Config))
    assert set(known) >= MAY_DIFFER, MAY_DIFFER - set(known)
    run = solve(config_of(["model=sw_mlp", "data=digits"]))
    common = packing._shared_settings(run)
    for name, field in known.items():
        if name.startswith(("model.", "optim.")) and name not in {
            f"model.{f.name}" for f in dataclasses.fields(run.config.model)
        } | {f"optim.{f.name}" for f in dataclasses.fields(run.config.optim)}:
            continue
        sides = [name in common, name in MAY_DIFFER, bool(field.metadata.get("input_only"))]
        assert sum(sides) == 1 or name == "optim.clip_norm", (name, sides)
    assert len(FAMILIES) > 10


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("batch_size=64", "batch_size=64, not 300"),
        ("epochs=3", "epochs=3, not 2"),
        ("depth=3", "depth=3, not 2"),
        ("optim=adamw", "optim."),
        ("optim.clip_norm=1", "optim.clip_norm=True, not False"),
        ("ema=0.9", "ema=0.9, not None"),
        ("accumulation=2", "accumulation=2 trains by itself"),
        ("augment.mixup=0.2", "augment.mixup=0.2 trains by itself"),
        ("optim=beta_lasso", "optim=beta_lasso trains by itself"),
    ],
)
def test_what_keeps_runs_apart_is_said(change: str, reason: str) -> None:
    one, other = (solve(config_of([*PACKED, "model=s_mixer", *SIZES, *more])) for more in ([], [change]))
    assert reason in (why_apart(one, other) or "")


def test_what_may_differ_does_not_keep_runs_apart() -> None:
    one = solve(config_of([*PACKED, "model=s_mixer", *SIZES]))
    settings = ["seed=3", "optim.lr=1", "optim.weight_decay=0", "optim.momentum=0.5", "optim.label_smoothing=0.2"]
    other = solve(config_of([*PACKED, "model=s_mixer", *SIZES, *settings, "seeds.structure=4", "probes=[spectrum]"]))
    assert why_apart(one, other) is None
    assert why_alone(one.config) is None


def test_predictions_are_of_every_image_in_order(tmp_path: Path) -> None:
    (run,) = made(tmp_path, "s_mixer", seeds=(0,))
    (eager,) = made(tmp_path / "eager", "s_mixer", "engine=eager", seeds=(0,))
    for each in (run, eager):
        train(each, StopSignals(), lambda text: None)
    mine, theirs = np.load(run.predictions), np.load(eager.predictions)
    assert np.array_equal(mine["label"], theirs["label"])
    np.testing.assert_allclose(mine["probability_of_label"], theirs["probability_of_label"], atol=1e-3)


# What ends one, and no other: those behind that catch up, those of a group after a split, those one after another


def bad(tmp_path: Path, *more: str) -> RunDirectory:
    return directory(tmp_path, *PACKED, "model=s_mixer", *SIZES, "seed=7", "optim.lr=1e30", *more)


def test_one_that_catches_up_and_diverges_ends_no_other(tmp_path: Path) -> None:
    whole, pack = made(tmp_path / "whole", "s_mixer"), made(tmp_path / "pack", "s_mixer")
    trained(whole)
    with pytest.raises(RunStopped):
        trained(pack, StopAfter(9))
    worse = bad(tmp_path / "pack")
    errors = trained([pack[0], worse, *pack[1:]])
    assert [type(error) for error in errors] == [type(None), RunDiverged, type(None), type(None)]
    for one, other in zip(whole, pack, strict=True):
        assert_identical(one, other)


def test_one_after_another_each_ends_by_itself(tmp_path: Path) -> None:
    fine = made(tmp_path, "s_mixer", "engine=auto", seeds=(0, 1))
    errors = trained([bad(tmp_path, "engine=auto"), *fine])
    assert [type(error) for error in errors] == [RunDiverged, type(None), type(None)]


def test_all_of_a_pack_may_diverge(tmp_path: Path) -> None:
    runs = [bad(tmp_path), directory(tmp_path, *PACKED, "model=s_mixer", *SIZES, "seed=8", "optim.lr=1e30")]
    assert [type(error) for error in trained(runs)] == [RunDiverged, RunDiverged]


def test_a_checkpoint_that_cannot_be_read_ends_its_run_alone(tmp_path: Path) -> None:
    pack = made(tmp_path, "s_mixer")
    pack[1].checkpoint.write_bytes(b"no checkpoint")
    errors = trained(pack)
    assert "move it away to start anew" in str(errors[1])
    assert (errors[0], errors[2]) == (None, None)


def test_rows_of_a_run_that_diverges_late_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVING_FRACTION", 0.0)  # no checkpoint after the first epoch
    pack = made(tmp_path, "s_mixer", "epochs=4")
    poison = Packed.epoch

    def poisoned(self: Packed, epoch: int, first: int, sums: Sequence[torch.Tensor | None]) -> Iterator[int]:
        if epoch == 4:
            self._weights.flat[1] = torch.nan
        return poison(self, epoch, first, sums)

    monkeypatch.setattr(Packed, "epoch", poisoned)
    errors = trained(pack)
    assert [type(error) for error in errors] == [type(None), RunDiverged, type(None)]
    assert [row["epoch"] for row in pack[1].rows()] == [1, 2, 3]
    assert "the last good epoch is 3" in str(errors[1])


@pytest.mark.parametrize("checks", [5, 7], ids=["last-step", "evaluation"])
def test_a_stop_at_the_end_of_an_epoch_keeps_its_time(tmp_path: Path, checks: int) -> None:
    (run,) = made(tmp_path, "s_mixer", "engine=eager", seeds=(0,))
    with pytest.raises(RunStopped):
        train(run, StopAfter(checks), lambda text: None)  # of five steps
    kept = torch.load(run.checkpoint, weights_only=True)
    assert (kept["step"], len(kept["rows"])) == (5, 0)
    assert kept["seconds"] > 0
    train(run, StopSignals(), lambda text: None)
    assert run.rows()[0]["seconds"] >= kept["seconds"]


def test_one_too_large_for_a_pack_of_one_trains_operation_by_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoRoom(Packed):
        def epoch(self, epoch: int, first: int, sums: Sequence[torch.Tensor | None]) -> Iterator[int]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "Packed", NoRoom)
    (run,) = made(tmp_path, "s_mixer", seeds=(0,))
    train(run, StopSignals(), lambda text: None)
    assert (run.result() or {})["environment"]["engine"] == "eager"


def test_where_the_device_is_not_there_the_run_says_so(tmp_path: Path) -> None:
    (run,) = made(tmp_path, "s_mixer", "device=cuda:77", seeds=(0,))
    with pytest.raises(UserError, match="torch sees"):
        train(run, StopSignals(), lambda text: None)
    status = read_status(run.path)
    assert status.state == "failed"
    assert "torch sees" in (status.error or "")
