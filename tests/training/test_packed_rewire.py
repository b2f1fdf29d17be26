"""Connections that move in a pack: those of each run as if it were alone, and within the memory of the pack."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mixersweep.compose import config_of
from mixersweep.data.splits import share_splits
from mixersweep.errors import RunDiverged, RunStopped
from mixersweep.layers.sparse import indices_of
from mixersweep.runs import RunDirectory, solve
from mixersweep.training.packed import Packed
from mixersweep.training.packing import why_alone, why_apart
from mixersweep.training.rewire import masked_layers
from mixersweep.training.schedule import rewired_share, updates_before
from mixersweep.training.signals import StopSignals
from mixersweep.training.trainer import train
from tests.training.small import DIGITS, SIZES, Killed, StopAfter, assert_identical, content, directory, rows
from tests.training.test_packs import trained

CPU = torch.device("cpu")
PACKED = (*DIGITS, "engine=packed")
EPS = "optim.eps=1e-4"
"""With AdamW's usual one, what is rounded of a gradient near zero is a step of the whole learning rate."""
CASES = {
    "set": ("model=sw_mlp", *SIZES, "optim.rewire=set", "optim.rewire_every=2"),
    "set, adamw, ema": (
        *("model=golubeva_mlp", "width=80", "optim=adamw", "optim.lr=0.01", EPS),
        *("optim.rewire=set", "optim.rewire_every=3", "ema=0.9"),
    ),
    "rigl": ("model=sw_mlp", *SIZES, "optim.rewire=rigl", "optim.rewire_every=2", "optim.label_smoothing=0.1"),
    "rigl, adamw, ema, dense": (
        *("model=sw_mlp", *SIZES, "model.storage=dense", "optim=adamw", "optim.lr=0.01", "optim.clip_norm=1", EPS),
        *("optim.rewire=rigl", "optim.rewire_every=2", "ema=0.9", "augment.flip=true"),
    ),
    "srigl, bf16": (
        *("model=sw_mlp", *SIZES, "model.mask=fixed_fan_in", "precision=bf16"),
        *("optim.rewire=srigl", "optim.rewire_every=1", "optim.rewire_until=0.5"),
    ),
}


@pytest.fixture(autouse=True)
def _data(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXERSWEEP_DATA", str(digits))


def made(tmp_path: Path, case: str, *more: str, seeds: Sequence[int] = (0, 1, 2)) -> list[RunDirectory]:
    """Runs with a seed and a share of their own, of five steps an epoch."""
    return [
        directory(tmp_path, *PACKED, *CASES[case], f"optim.rewire_share={0.3 / (1 + seed)}", *more, f"seed={seed}")
        for seed in seeds
    ]


@pytest.mark.parametrize("case", CASES)
def test_alone_and_in_another_order_every_bit_is_the_same(case: str, tmp_path: Path) -> None:
    pack, alone, other = (made(tmp_path / name, case) for name in ("pack", "alone", "other"))
    assert trained(pack) == [None] * 3
    train(alone[1], StopSignals(), lambda text: None)
    assert trained([other[2], other[1]]) == [None] * 2
    assert_identical(pack[1], alone[1])
    assert_identical(pack[1], other[1])
    assert_identical(pack[2], other[2])
    assert (pack[1].result() or {})["environment"]["engine"] == "packed"
    assert (pack[1].result() or {})["pack_size"] == 3


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_killed_a_run_goes_on_in_another_pack_or_alone(case: str, tmp_path: Path) -> None:
    whole, broken = made(tmp_path / "whole", case), made(tmp_path / "broken", case, "checkpoint.minutes=1e-6")
    assert trained(whole) == [None] * 3
    with pytest.raises(RunStopped):
        trained(broken, StopAfter(3))  # once they have moved
    with pytest.raises(Killed):
        trained([broken[2], broken[0]], StopAfter(7, killed=True))  # in the second epoch
    train(broken[1], StopSignals(), lambda text: None)
    assert trained([broken[0], broken[2]]) == [None] * 2
    for one, other in zip(whole, broken, strict=True):
        assert_identical(one, other)


@pytest.mark.parametrize("case", CASES)
def test_packed_and_eager_agree(case: str, tmp_path: Path) -> None:
    """The positions are the same; weights, moments and averages are to rounding, each at its position."""
    lr = "optim.lr=1e-3"  # at which roundings are carried on as they are
    packed, eager = (made(tmp_path / engine, case, f"engine={engine}", lr) for engine in ("packed", "eager"))
    assert trained(packed) == [None] * 3
    for one, other in zip(packed, eager, strict=True):
        assert one.run.fingerprint == other.run.fingerprint
        train(other, StopSignals(), lambda text: None)
        for mine, theirs in zip(rows(one), rows(other), strict=True):
            for name in (name for name in theirs if name.endswith("loss")):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-5), name
        found, expected = content(one), content(other)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert value.dtype == expected[name].dtype
            assert not name.endswith("positions") or torch.equal(value, expected[name]), name
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def pack_of(directories: Sequence[RunDirectory], at_once: int) -> Packed:
    runs = [each.run for each in directories]
    splits = share_splits([run.config for run in runs], CPU)
    storage = runs[0].config.model.storage  # type: ignore[union-attr]
    return Packed(runs, CPU, splits, storage, [None] * len(runs), at_once=at_once)


@pytest.mark.parametrize("case", ["set", "rigl", "rigl, adamw, ema, dense"])
def test_the_program_of_all_runs_at_once_is_that_of_each(case: str, tmp_path: Path) -> None:
    """As a GPU has it: one call for all runs, on stacked tensors."""
    directories, found = made(tmp_path, case, "optim.lr=1e-4"), []
    for at_once in (3, 1):
        pack = pack_of(directories, at_once)
        for _ in pack.epoch(1, 0, []):
            pass
        validated = [pack.evaluate("validation", lambda: None, averaged=bool(pack._averages))]
        positions = [pack._buffers[name] for name in pack._stored if name.endswith("positions")]
        found.append(([*pack.sums[:, 0].flatten(1).tolist(), *validated], torch.stack(positions)))
    (losses, positions), (expected, same) = found
    assert torch.equal(positions, same)
    for mine, theirs in zip(losses[:3], expected[:3], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert [loss for loss, _ in losses[3]] == pytest.approx([loss for loss, _ in expected[3]], rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_all_that_moves_stays_in_the_memory_that_a_captured_step_reads(case: str, tmp_path: Path) -> None:
    pack = pack_of(made(tmp_path, case), 3)

    def memory() -> list[tuple[int, torch.Size]]:
        tensors = [pack._weights.flat, *pack._optimizer.state, *pack._averages.values(), *pack._buffers.values()]
        return [(each.data_ptr(), each.shape) for each in [*tensors, *pack._leaves[0].values()]]

    before, first = memory(), {name: buffer.clone() for name, buffer in pack._buffers.items()}
    for _ in pack.epoch(1, 0, []):
        pass
    assert memory() == before
    layers = masked_layers(pack._network)
    assert pack._rewiring is not None
    for network in pack._rewiring._networks:
        assert all(layer.storage == layers[name].storage for name, layer in masked_layers(network).items())
    for name, layer in layers.items():
        positions = pack._buffers[f"{name}.positions"]
        assert bool((positions.diff(dim=1) > 0).all())
        assert bool((positions != first[f"{name}.positions"]).any(1).all())  # of every run
        for run_index in range(3):
            indices = indices_of(positions[run_index], layer.in_width, layer.out_width)
            assert all(torch.equal(pack._buffers[f"{name}.{key}"][run_index], each) for key, each in indices.items())
    assert layers


def test_one_diverges_and_the_others_go_on_unchanged(tmp_path: Path) -> None:
    whole, pack = made(tmp_path / "whole", "rigl"), made(tmp_path / "pack", "rigl")
    assert trained(whole) == [None] * 3
    (bad,) = made(tmp_path / "pack", "rigl", "optim.lr=1e30", seeds=(7,))
    errors = trained([pack[0], bad, *pack[1:]])
    assert [type(error) for error in errors] == [type(None), RunDiverged, type(None), type(None)]
    for one, other in zip(whole, pack, strict=True):
        assert_identical(one, other)


def test_shares_may_differ_in_a_pack_and_kinds_and_steps_may_not() -> None:
    one, share, kind, every, until = (
        solve(config_of([*PACKED, *CASES["rigl"], *more]))
        for more in (
            [],
            ["optim.rewire_share=0.1", "seed=3"],
            ["optim.rewire=srigl"],
            ["optim.rewire_every=3"],
            ["optim.rewire_until=0.6"],
        )
    )
    assert why_alone(one.config) is why_apart(one, share) is None
    assert why_apart(one, kind) == "optim.rewire=srigl, not rigl"
    assert why_apart(one, every) == "optim.rewire_every=3, not 2"
    assert why_apart(one, until) == "optim.rewire_until=0.6, not auto"


@pytest.mark.parametrize("kind", ["none", "set", "rigl", "srigl"])
def test_rewiring_by_gradients_takes_the_place_of_an_update(kind: str) -> None:
    optim = config_of(["model=sw_mlp", f"optim.rewire={kind}", "optim.rewire_every=3"]).optim
    count = 0
    for step in range(40):
        assert updates_before(optim, step, 10, 4) == count
        count += kind in ("none", "set") or not rewired_share(optim, step, 10, 4)
    assert count == (40 if kind in ("none", "set") else 31)  # of 30 steps, every third but the first
