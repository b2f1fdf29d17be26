"""Connections that move: as many as before, with what belongs to them, where a plain dense mask would have them."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.stats import chisquare
from torch import Tensor, nn

from mixersweep.analysis.subjects import chosen
from mixersweep.compose import config_of
from mixersweep.config.schema import SGD, AdamW, Rewired
from mixersweep.data.splits import open_splits
from mixersweep.families import FAMILIES
from mixersweep.layers import SparseConv, SparseWeights, draw_mask
from mixersweep.layers.masks import exact
from mixersweep.layers.sparse import indices_of
from mixersweep.models import build
from mixersweep.runs import solve
from mixersweep.seeds import derive
from mixersweep.training import rewire
from mixersweep.training.learner import Learner
from mixersweep.training.parallel import World
from mixersweep.training.rewire import Rewiring, at_random, largest, move
from mixersweep.training.schedule import rewired_share
from mixersweep.training.steps import Step
from tests.training.small import DIGITS, directory, finished
from tests.training.small import SIZES as SMALL

KINDS = ["set", "rigl", "srigl"]
SIZES = ((9, 7, 20), (7, 4, 11))
"""Inputs, outputs and connections of two layers."""

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=1e-2),
}


def settings(kind: str, optim: str = "sgd", **more: object) -> Rewired:
    """The settings of an optimiser that rewires."""
    overrides = ["model=sw_mlp", f"optim={optim}", f"optim.rewire={kind}", *(f"{k}={v}" for k, v in more.items())]
    found = config_of(overrides).optim
    assert isinstance(found, SGD | AdamW)
    return found


def network(mask: str = "exact") -> nn.Sequential:
    """Two layers in float64 with an activation between."""
    generator = torch.Generator().manual_seed(1)
    made = nn.Sequential()
    for inputs, outputs, connections in SIZES:
        positions = draw_mask(outputs, inputs, connections, mask, generator)  # type: ignore[arg-type]
        layer = SparseWeights(inputs, outputs, positions)
        layer.initialize(generator)
        layer.make_movable()
        made.extend([layer, nn.Tanh()])
    return made[:-1].double()


def masked(made: nn.Module) -> list[SparseWeights]:
    return [layer for layer in made.modules() if isinstance(layer, SparseWeights)]


def batches(steps: int, share: float, every: int) -> Iterator[Step]:
    """Steps on random images, of which each ``every``-th rewires."""
    generator = torch.Generator().manual_seed(2)
    for index in range(steps):
        x = torch.randn(8, SIZES[0][0], generator=generator, dtype=torch.float64)
        labels = torch.randint(SIZES[-1][1], (8,), generator=generator)
        yield Step(1, index, index, x, labels, 8, 0.1, 0, rewired=share if index and index % every == 0 else 0.0)


class Trained:
    """A network with its optimiser, whose connections move."""

    def __init__(self, kind: str, optim: str = "sgd", mask: str = "exact") -> None:
        self.network = network(mask)
        self.optimizer = OPTIMIZERS[optim](list(self.network.parameters()))
        layers = dict(self.network.named_modules())

        def moments(name: str) -> list[Tensor]:
            weight = layers[name].weight
            assert isinstance(weight, Tensor)
            return [*self.optimizer.state[weight].values()]

        self.rewiring = Rewiring(self.network, moments, kind, seed=5)  # type: ignore[arg-type]

    @property
    def layers(self) -> list[SparseWeights]:
        """The masked layers."""
        return masked(self.network)

    def step(self, step: Step) -> None:
        """One step, as the learner does it."""
        if not self.rewire(step):
            self.optimizer.step()

    def rewire(self, step: Step) -> bool:
        """The gradients of a step, and its rewiring, without its update."""
        self.optimizer.zero_grad()
        with self.rewiring.during(step):
            F.cross_entropy(self.network(step.images), step.labels).backward()
        return self.rewiring.instead_of_update(step)


# --- exact counts, and nothing left of what went -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_over_1000_steps_connections_move_and_their_number_stays(kind: str, optim: str) -> None:
    made = Trained(kind, optim)
    seen: list[set[int]] = [set() for _ in SIZES]
    for step in batches(1000, 0.3, 4):
        made.step(step)
        if not step.rewired:
            continue
        for layer, (inputs, outputs, connections), places in zip(made.layers, SIZES, seen, strict=True):
            positions = layer.positions
            assert positions is not None
            assert layer.weight.numel() == positions.numel() == connections
            assert bool((positions.diff() > 0).all())
            assert 0 <= int(positions[0]) <= int(positions[-1]) < inputs * outputs
            for name, indices in indices_of(positions, inputs, outputs).items():
                assert torch.equal(getattr(layer, name), indices)
            places.update(positions.tolist())
    for (inputs, outputs, connections), places in zip(SIZES, seen, strict=True):
        assert len(places) == inputs * outputs if kind == "set" else len(places) > 1.5 * connections


@pytest.mark.parametrize("mask", ["fixed_fan_in", "exact"])
def test_srigl_keeps_the_number_of_inputs_of_every_unit(mask: str) -> None:
    made = Trained("srigl", mask=mask)
    before = [(layer.row_starts.clone(), layer.column_of.clone()) for layer in made.layers]
    for step in batches(100, 0.3, 4):
        made.step(step)
    for layer, (starts, columns) in zip(made.layers, before, strict=True):
        assert torch.equal(layer.row_starts, starts)
        assert not torch.equal(layer.column_of, columns)
        fan_in = starts.diff()
        assert mask == "exact" or int(fan_in.max() - fan_in.min()) <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_what_grows_has_no_weight_and_no_moment_and_what_stays_keeps_its_own(kind: str, optim: str) -> None:
    made = Trained(kind, optim)

    def stored() -> list[dict[int, tuple[float, ...]]]:
        """For each layer, the weight and the moments at each position."""
        found = []
        for layer in made.layers:
            assert layer.positions is not None
            state = [v for v in made.optimizer.state[layer.weight].values() if v.shape == layer.weight.shape]
            assert len(state) == {"sgd": 1, "adamw": 2}[optim]
            rows = torch.stack([layer.weight.detach(), *state], 1).tolist()
            found.append(dict(zip(layer.positions.tolist(), map(tuple, rows), strict=True)))
        return found

    for step in batches(40, 0.3, 4):
        before = stored() if step.rewired else []
        if step.rewired:
            made.rewire(step)
            for old, new, (_, _, connections) in zip(before, stored(), SIZES, strict=True):
                grown = new.keys() - old.keys()
                assert 0 < len(grown) <= round(0.3 * connections)
                assert all(value == 0 for position in grown for value in new[position])
                assert all(new[position] == old[position] for position in new.keys() & old.keys())
                weakest = sorted(old, key=lambda position: abs(old[position][0]))[: round(0.3 * connections)]
                assert old.keys() - new.keys() <= set(weakest)
        else:
            made.step(step)


# --- against dense matrices and their masks ----------------------------------------------------------------------


class Dense:
    """The same network as full matrices with masks, written down as plainly as can be."""

    def __init__(self, layers: list[SparseWeights], optim: str) -> None:
        self.weights = [nn.Parameter(layer.to_dense().detach().clone()) for layer in layers]
        self.masks = [layer.to_dense().detach() != 0 for layer in layers]
        self.biases = [nn.Parameter(layer.bias.detach().clone()) for layer in layers]  # type: ignore[union-attr]
        self.optimizer = OPTIMIZERS[optim]([*self.weights, *self.biases])

    def loss(self, step: Step) -> Tensor:
        """The loss; the gradients of the full matrices are those of the loss at absent positions, too."""
        x = step.images
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(x if index == 0 else x.tanh(), weight, bias)
        return F.cross_entropy(x, step.labels)

    def update(self) -> None:
        for weight, mask in zip(self.weights, self.masks, strict=True):
            assert weight.grad is not None
            weight.grad *= mask
        self.optimizer.step()

    def rewire(self, share: float, grow: Callable[[int, list[int], list[int]], list[int]]) -> None:
        """``grow`` takes the layer's number, the positions that are absent and those that go."""
        for number, (weight, mask) in enumerate(zip(self.weights, self.masks, strict=True)):
            flat, columns = weight.detach().flatten(), weight.shape[1]
            present = mask.flatten().nonzero().squeeze(1).tolist()
            gone = sorted(present, key=lambda p: abs(float(flat[p])))[: round(share * len(present))]
            kept = sorted(set(present) - set(gone))
            grown = grow(number, sorted(set(range(flat.numel())) - set(kept)), gone)
            new = torch.zeros_like(mask)
            for position in (*kept, *grown):
                new[position // columns, position % columns] = True
            self.masks[number] = new
            state = [v for v in self.optimizer.state[weight].values() if v.shape == weight.shape]
            for values in (weight.detach(), *state):
                values *= mask & new


def assert_same(made: Trained, dense: Dense) -> None:
    for layer, weight, mask in zip(made.layers, dense.weights, dense.masks, strict=True):
        assert torch.equal(layer.positions, mask.flatten().nonzero().squeeze(1))  # type: ignore[arg-type]
        torch.testing.assert_close(layer.to_dense(), weight * mask, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_set_is_what_a_dense_mask_does(optim: str) -> None:
    made = Trained("set", optim)
    dense = Dense(made.layers, optim)
    names = [name for name, layer in made.network.named_modules() if isinstance(layer, SparseWeights)]
    for step in batches(60, 0.3, 5):
        made.step(step)

        def grow(number: int, absent: list[int], gone: list[int], index: int = step.index) -> list[int]:
            generator = torch.Generator().manual_seed(derive(5, "rewire", names[number], index))
            return [absent[rank] for rank in exact(1, len(absent), len(gone), generator).tolist()]

        if step.rewired:
            dense.rewire(step.rewired, grow)
        dense.optimizer.zero_grad()
        dense.loss(step).backward()
        dense.update()
        assert_same(made, dense)


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("entries", [1, 30, 2**22])
@pytest.mark.parametrize("kind", ["rigl", "srigl"])
def test_rigl_is_what_a_dense_mask_does(kind: str, optim: str, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever part of the gradient is computed at once."""
    monkeypatch.setattr(rewire, "SLICE", entries)
    made = Trained(kind, optim)
    dense = Dense(made.layers, optim)

    def grow(number: int, absent: list[int], gone: list[int]) -> list[int]:
        gradient = dense.weights[number].grad
        assert gradient is not None
        flat, columns = gradient.flatten().abs().tolist(), gradient.shape[1]
        absent.sort(key=lambda position: -flat[position])
        if kind == "rigl":
            return absent[: len(gone)]
        lost = Counter(position // columns for position in gone)
        return [p for row in lost for p in [p for p in absent if p // columns == row][: lost[row]]]

    for step in batches(60, 0.3, 5):
        made.step(step)
        dense.optimizer.zero_grad()
        dense.loss(step).backward()
        if step.rewired:
            dense.rewire(step.rewired, grow)
        else:
            dense.update()
        assert_same(made, dense)


@pytest.mark.parametrize(
    "overrides",
    [
        ["depth=2", "tokens=12", "channels=10", "patch_size=8", "model.storage=sparse"],
        ["depth=2", "tokens=12", "channels=10", "patch_size=8", "model.storage=dense", "accumulation=3"],
        [
            "depth=2",
            "tokens=12",
            "channels=10",
            "patch_size=8",
            "model.hidden=true",
            "expansion=2",
            "model.rescale=forward",
            "stochastic_depth=0.5",
            "gradient_checkpointing=true",
        ],
        ["model=golubeva_mlp", "width=90"],
    ],
    ids=" ".join,
)
def test_what_is_seen_of_a_step_is_the_gradient_of_its_weights(overrides: list[str]) -> None:
    """At the positions that have a weight, in proportion to the gradient that autograd finds for it."""
    common = ["batch_size=30", "optim.rewire=rigl", "device=cpu"]
    run = solve(config_of(["model=sw_mlp", *common, *overrides]))
    learner = Learner(run, torch.device("cpu"), World(), getattr(run.config.model, "storage", "auto"))
    learner.train()
    generator = torch.Generator().manual_seed(0)
    size, found = run.config.image_size, {}
    images, labels = torch.randn(30, 1, size, size, generator=generator), torch.arange(30) % 10
    rewiring = learner.rewiring
    assert rewiring is not None

    def look(step: Step) -> bool:
        found.update({name: rewiring.gradient(name)(slice(None)) for name in rewire.masked_layers(learner.network)})
        return step.rewired > 0

    rewiring.instead_of_update = look  # type: ignore[method-assign]
    learner.step(Step(1, 0, 0, images, labels, 30, 0.1, 0, rewired=0.3))
    assert found
    for name, layer in rewire.masked_layers(learner.network).items():
        factor = layer.values().norm() / layer.weight.norm()
        assert layer.weight.grad is not None
        at_weights = found[name].flatten()[layer.positions] * factor
        torch.testing.assert_close(at_weights, layer.weight.grad, rtol=1e-4, atol=1e-6)


# --- the parts ---------------------------------------------------------------------------------------------------


def test_growth_is_uniform_over_absent_positions() -> None:
    """Chi-squared over 4,000 draws, and over the pairs that are drawn together."""
    kept = torch.tensor([0, 3, 4, 5, 11])
    absent = [p for p in range(12) if p not in kept.tolist()]
    draws = [at_random(kept, torch.zeros(2), size=12, seed=derive(0, n)).tolist() for n in range(4000)]
    pairs = [tuple(sorted(draw)) for draw in draws]
    every = [(a, b) for a in absent for b in absent if a < b]
    counts = [pairs.count(pair) for pair in every]
    assert sum(counts) == len(draws)
    assert chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("kept", [[], [0], [5], [0, 1, 2, 3, 4, 5]])
def test_all_absent_positions_can_grow_at_once(kept: list[int]) -> None:
    absent = [p for p in range(6) if p not in kept]
    found = at_random(torch.tensor(kept, dtype=torch.int64), torch.zeros(len(absent)), size=6, seed=0)
    assert sorted(found.tolist()) == absent


def test_of_equal_scores_the_first_are_largest() -> None:
    scores = torch.tensor([[1.0, 3, 3, 3, 0], [2, 2, 2, 2, 2], [5, 4, 3, 2, 1], [1, torch.inf, torch.inf, 0, 2]])
    found = largest(scores, torch.tensor([2, 3, 0, 1]))
    assert [row.nonzero().squeeze(1).tolist() for row in found] == [[1, 2], [0, 1, 2], [], [1]]
    assert not largest(scores, torch.zeros(4, dtype=torch.int64)).any()


def test_a_share_of_nothing_moves_nothing_and_one_of_all_moves_all() -> None:
    weight, positions = torch.tensor([1.0, -2.0, torch.nan]), torch.tensor([1, 3, 8])
    same = move(weight, positions, 0.1, lambda kept, gone: gone)
    assert torch.equal(same.positions, positions)
    assert bool(same.stays.all())
    other = move(weight, positions, 1.0, lambda kept, gone: torch.tensor([0, 3, 9]))
    assert (other.positions.tolist(), other.stays.tolist()) == ([0, 3, 9], [False, True, False])
    assert other.of(weight).tolist() == [0, -2, 0]
    weakest = move(weight, positions, 0.4, lambda kept, gone: gone + 1)
    assert weakest.positions.tolist() == [2, 3, 8]  # the one that is not a number is not small
    empty = move(weight[:0], positions[:0], 0.5, lambda kept, gone: gone)
    assert empty.of(weight[:0]).numel() == 0


def test_a_gradient_that_is_not_a_number_leaves_the_number_of_connections() -> None:
    kept, gone = torch.tensor([1, 2, 7]), torch.tensor([0, 3])
    gradient = torch.tensor([[0.0, 9, 9], [1, torch.nan, -2], [-torch.inf, 9, torch.nan]])
    found = rewire.by_gradient(kept, gone, shape=(3, 3), gradient=lambda rows: gradient[rows])
    assert found.tolist() == [4, 6]  # infinite, and the first of them


def test_when_rewiring_is_due() -> None:
    by_epoch, by_steps = settings("set", epochs=4), settings("rigl")
    found = [rewired_share(by_epoch, step, 3, 4) for step in range(12)]
    assert [step for step, share in enumerate(found) if share] == [3, 6, 9]  # after each epoch but the last
    assert set(found) == {0.0, 0.3}
    assert rewired_share(by_steps, 100, 100, 4) == 0.15 * (1 + math.cos(math.pi / 3))
    assert [step for step in range(1000) if rewired_share(by_steps, step, 250, 4)] == list(range(100, 750, 100))
    halved = settings("set", **{"optim.rewire_every": 2, "optim.rewire_until": 0.5, "optim.rewire_share": 0.2})
    assert [rewired_share(halved, step, 3, 4) for step in range(12)] == [0, 0, 0.2, 0, 0.2, *[0] * 7]
    for overrides in ([], ["optim=timm"]):
        other = config_of(overrides).optim
        assert not any(rewired_share(other, step, 3, 4) for step in range(12))


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_families_say_whether_their_connections_can_move(family: str) -> None:
    run = solve(config_of([f"model={family}", *(["width=80"] if family == "golubeva_mlp" else [])]))
    modules = list(build(run.config, run.architecture).modules())
    has_masks = any(type(module) is SparseWeights for module in modules)  # hashed weights are shared, and stay
    assert FAMILIES[family].can_rewire == (has_masks and not any(isinstance(m, SparseConv) for m in modules))


def test_only_a_run_that_rewires_keeps_positions_and_has_another_fingerprint() -> None:
    plain, other, moving = (
        solve(config_of(["model=sw_mlp", *more]))
        for more in ([], ["optim.rewire=none", "optim.rewire_share=0.3"], ["optim.rewire=set"])
    )
    assert plain.fingerprint == other.fingerprint != moving.fingerprint
    names = [[*build(run.config, run.architecture).state_dict()] for run in (plain, moving)]
    added = {name for name in names[1] if name.endswith(".positions")}
    assert len(added) == plain.architecture.mixing_layers
    assert set(names[1]) - added == set(names[0])


# --- a whole run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_of_a_finished_run_is_found_where_its_connections_have_gone(
    kind: str, tmp_path: Path, digits: Path
) -> None:
    settings = (*DIGITS, "model=sw_mlp", *SMALL, f"optim.rewire={kind}", "optim.rewire_every=2", f"data_dir={digits}")
    made = finished(directory(tmp_path, *settings, "checkpoint.keep=[1]"))
    ((subject,), _) = chosen([tmp_path], None)
    layers = [list(rewire.masked_layers(subject.network(epoch)).values()) for epoch in (0, 1, 2)]
    for first, second, third in zip(*layers, strict=True):
        assert len({tuple(layer.positions.tolist()) for layer in (first, second, third)}) > 1
        assert first.connections == second.connections == third.connections
    images = open_splits(made.run.config, torch.device("cpu")).test
    logits = torch.cat([subject.network()(x) for x, _ in images.batches(100, None, None)])
    assert np.array_equal(logits.argmax(1).numpy(), np.load(made.predictions)["prediction"])
