"""Optimisers: their groups, timm's factory, and learning rates by width against the table of their documentation."""

import copy
import dataclasses
import io
import random
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
from torch import Tensor, nn

from mixersweep.compose import config_of
from mixersweep.config import warnings
from mixersweep.errors import UserError
from mixersweep.layers import PermutedKronecker, SparseMap
from mixersweep.models import build
from mixersweep.runs import Run, solve
from mixersweep.training.optimizer import make_optimizer
from mixersweep.training.refusal import refuse
from mixersweep.training.width_scaling import tied_factor

SMALL = ["tokens=6", "channels=5", "depth=2", "patch_size=16"]


def made(*overrides: str) -> tuple[Run, nn.Module]:
    run = solve(config_of(list(overrides)))
    return run, build(run.config, run.architecture)


def refusal(*overrides: str) -> str:
    run, network = made(*SMALL, *overrides)
    with pytest.raises(UserError) as refused:
        make_optimizer(network, run.config.optim)
    assert "\n" not in refused.value.args[0]
    return str(refused.value)


# --- groups ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["sgd", "adamw", "timm"])
def test_weights_decay_and_the_rest_does_not(optim: str) -> None:
    run, network = made("model=pk", *SMALL, f"optim={optim}", "optim.weight_decay=0.25")
    decayed, free = make_optimizer(network, run.config.optim).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.25, 0.0)
    assert decayed["lr_scale"] == free["lr_scale"] == 1.0
    weights = {id(layer.weight) for layer in network.modules() if isinstance(layer, SparseMap)}
    assert {id(parameter) for parameter in decayed["params"]} == weights
    both = [id(parameter) for group in (decayed, free) for parameter in group["params"]]
    assert sorted(both) == sorted(id(parameter) for parameter in network.parameters())


# --- timm --------------------------------------------------------------------------------------------------------

HERE = [
    name
    for name in timm.optim.list_optimizers()
    if not isinstance(timm.optim.get_optimizer_info(name).opt_class, str)
    and not timm.optim.get_optimizer_info(name).second_order
]


def timms(name: str, **arguments: Any) -> tuple[Run, nn.Module]:
    run, network = made("model=pk", *SMALL, "optim=timm", "optim.lr=1e-3")
    optim = dataclasses.replace(run.config.optim, optimizer=name, arguments=arguments or None)  # type: ignore[call-arg]
    return dataclasses.replace(run, config=dataclasses.replace(run.config, optim=optim)), network


def steps(network: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 1, 32, 32, generator=generator)
    labels = torch.randint(10, (8,), generator=generator)
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """Kron compiles its parts, which takes most of a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", [*HERE, "lookahead_radam"])
@pytest.mark.usefixtures("nothing_compiled")
def test_every_optimiser_of_timm_trains_and_goes_on_to_the_same_numbers(name: str) -> None:
    run, network = timms(name)
    start = copy.deepcopy(network)
    optimizer = make_optimizer(network, run.config.optim)
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    steps(network, optimizer, 3)
    file = io.BytesIO()
    torch.save((network.state_dict(), optimizer.state_dict()), file)
    steps(network, optimizer, 5)  # past lookahead's sixth
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])

    resumed = copy.deepcopy(start)
    again = make_optimizer(resumed, run.config.optim)
    file.seek(0)
    model, state = torch.load(file, weights_only=True)
    resumed.load_state_dict(model)
    again.load_state_dict(state)
    steps(resumed, again, 5)
    for before, one, other in zip(start.parameters(), network.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()
        assert not torch.equal(one, before)


def test_an_optimiser_of_timm_is_timms_with_our_groups_and_arguments() -> None:
    run, network = timms("lamb", betas=[0.8, 0.9], trust_clip=True)
    twin = copy.deepcopy(network)
    weights = [layer.weight for layer in twin.modules() if isinstance(layer, SparseMap)]
    rest = [parameter for parameter in twin.parameters() if not any(parameter is weight for weight in weights)]
    groups = [{"params": weights, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    expected = timm.optim.Lamb(groups, lr=1e-3, betas=(0.8, 0.9), trust_clip=True)
    optimizer = make_optimizer(network, run.config.optim)
    assert type(optimizer) is timm.optim.Lamb
    steps(network, optimizer, 3)
    steps(twin, expected, 3)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), twin.parameters(), strict=True))


def test_arguments_come_from_the_command_line() -> None:
    for setting in (["optim.arguments={betas:[0.8,0.9],trust_clip:true}"], ["+optim.arguments.betas=[0.8,0.9]"]):
        run, network = made(*SMALL, "optim=timm", *setting)
        assert make_optimizer(network, run.config.optim).defaults["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optim.optimizer=lmab"], "optim.optimizer=lmab: timm has no such optimiser; the nearest is lamb"),
        (["optim.optimizer=lookahead_lamn"], "optim.optimizer=lookahead_lamn: timm has no such optimiser; the nearest"),
        (["optim.optimizer=zzzz"], "optim.optimizer=zzzz: timm has no such optimiser; timm.optim.list_optimizers()"),
        (["optim.optimizer=adahessian"], "optim.optimizer=adahessian: needs second derivatives"),
        (["optim.optimizer=fusedlamb"], "optim.optimizer=fusedlamb: "),
        (
            ["optim.arguments={beta:[0.9,0.99]}"],
            "optim.arguments.beta=[0.9, 0.99]: lamb has no such argument; the nearest is betas; it has bias_correction",
        ),
        (["optim.arguments={lr:1}"], "optim.arguments.lr=1: set optim.lr"),
        (["optim.arguments={betas:0.9}"], "optim.arguments.betas=0.9: lamb takes something like [0.9, 0.999]"),
        (["optim.arguments={betas:[0.9]}"], "optim.arguments.betas=[0.9]: lamb takes something like [0.9, 0.999]"),
        (["optim.arguments={eps:small}"], "optim.arguments.eps=small: lamb takes something like 1e-06"),
        (["optim.arguments={eps:true}"], "optim.arguments.eps=True: lamb takes something like 1e-06"),
        (["optim.arguments={trust_clip:1}"], "optim.arguments.trust_clip=1: lamb takes something like False"),
        (["optim.optimizer=adamw", "optim.arguments={betas:[2,3]}"], "optim.optimizer=adamw: Invalid beta parameter"),
        (["optim.arguments={max_grad_norm:1,params:3}"], "optim.arguments.params=3: lamb has no such argument"),
    ],
)
def test_what_timm_does_not_have_is_refused_in_one_line(overrides: list[str], said: str) -> None:
    assert refusal("optim=timm", *overrides).startswith(said)
    with pytest.raises(UserError) as early:  # before there is a network
        refuse(config_of(["optim=timm", *overrides]))
    assert str(early.value).startswith(said)


# --- learning rates by width -------------------------------------------------------------------------------------

N = 32.0


def scales(*overrides: str) -> dict[str, tuple[float, float]]:
    """The scale of the learning rate and the weight decay of every parameter by its name."""
    run, network = made(*overrides, f"optim.base_fan_in={N}", "optim.weight_decay=0.25")
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = make_optimizer(network, run.config.optim).param_groups
    found = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert set(found) == set(names.values())
    return found


MIXER = ["model=mixer", "tokens=12", "channels=10", "expansion=2", "depth=2", "patch_size=8"]  # 16 patches of 64
SPARSE = ["model=sw_mlp", "width=160", "connections=3200", "depth=1", "patch_size=8"]  # 10 of each patch; fan-in 20
FANS = {  # (fan-in, fan-out) of every weight, written down from the sizes
    "mixer": {
        "embedding.projection.weight": (64, 10),
        "blocks.0.skip.0.map.weight": (16, 12),
        "blocks.0.token_mixing.0.weight": (16, 24),
        "blocks.0.token_mixing.2.weight": (24, 12),
        "blocks.1.channel_mixing.0.weight": (10, 20),
        "blocks.1.channel_mixing.2.weight": (20, 10),
        "head.weight": (10, 10),
    },
    "sw_mlp": {
        "embedding.projection.weight": (64, 10),
        "layers.0.mixing.0.weight": (20, 160),
        "layers.1.mixing.0.weight": (20, 160),
        "head.weight": (10, 10),
    },
}
LENGTHS = {
    "mixer": {"embedding.projection.bias": 10, "blocks.1.token_mixing.0.bias": 24, "norm.weight": 10, "head.bias": 10},
    "sw_mlp": {"embedding.projection.bias": 10, "layers.0.mixing.0.bias": 160, "layers.0.norm.bias": 160},
}


@pytest.mark.parametrize(("model", "overrides"), [("mixer", MIXER), ("sw_mlp", SPARSE)])
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("rule", ["none", "fan_in", "mup"])
def test_the_rates_are_those_of_the_table(model: str, overrides: list[str], optim: str, rule: str) -> None:
    found = scales(*overrides, f"optim={optim}", f"optim.lr_scaling={rule}")
    for name, (fan_in, fan_out) in FANS[model].items():
        role = {"embedding": "first", "head": "head"}.get(name.partition(".")[0], "hidden")
        expected = {
            ("none", "first"): 1,
            ("none", "hidden"): 1,
            ("none", "head"): 1,
            ("fan_in", "first"): N / fan_in,
            ("fan_in", "hidden"): N / fan_in,
            ("fan_in", "head"): N / fan_in,
            ("mup", "first"): fan_out / N if optim == "sgd" else 1,
            ("mup", "hidden"): fan_out / fan_in if optim == "sgd" else N / fan_in,
            ("mup", "head"): N / fan_in,
        }[rule, role]
        rate, decay = found[name]
        assert rate == pytest.approx(expected), name
        assert rate * decay == pytest.approx(0.25), name  # what a step takes off a weight stays
    for name, length in LENGTHS[model].items():
        follows_width = rule == "mup" and optim == "sgd" and name != "head.bias"
        assert found[name] == (pytest.approx(length / N if follows_width else 1), 0.0), name


def test_untied_weights_count_every_unit() -> None:
    fan_in, fan_out = 10, 12 * 10
    found = scales("model=pk", "model.tied=false", *MIXER[1:3], "depth=2", "patch_size=8", "optim.lr_scaling=mup")
    assert found["blocks.0.channel_mixing.0.weight"][0] == pytest.approx(fan_out / fan_in)


S0, S, C = 16, 12, 10  # of MIXER
TIED = {  # the copies of what a tied Mixer shares, by name, and its factor under SGD and AdamW
    "rp_s_mixer": {
        "embedding.projection.weight": ((S / S0) ** 0.5, 1),  # read by S tokens in place of S0
        "embedding.projection.bias": ((S / S0) ** 0.5, 1),
        "blocks.0.skip.0.map.weight": (C**0.5, 1),
        "blocks.0.skip.1.bias": (S**0.5, 1),
        "blocks.0.token_mixing.0.weight": (C / (1 + (C - 1) / S0) ** 0.5, (C / (1 + (C - 1) / S0)) ** 0.5),
        "blocks.1.token_mixing.0.weight": (C / (1 + (C - 1) / S) ** 0.5, (C / (1 + (C - 1) / S)) ** 0.5),
        "blocks.1.token_mixing.0.bias": (C**0.5, 1),
        "blocks.1.channel_norm.weight": (S**0.5, 1),
        "blocks.1.channel_mixing.0.weight": (S / (1 + (S - 1) / C) ** 0.5, (S / (1 + (S - 1) / C)) ** 0.5),
        "norm.weight": (S**0.5, 1),
        "head.weight": (1, 1),
        "head.bias": (1, 1),
    },
    "mixer": {
        "blocks.0.token_mixing.0.weight": (C**0.5, 1),
        "blocks.1.token_mixing.2.weight": (C**0.5, 1),
        "blocks.1.channel_mixing.0.weight": (S**0.5, 1),
        "blocks.1.channel_mixing.2.bias": (S**0.5, 1),
    },
    "pk": {
        "blocks.1.token_mixing.0.weight": (1, 1),
        "blocks.1.channel_mixing.0.bias": (1, 1),
        "norm.bias": (S**0.5, 1),
    },
}


@pytest.mark.parametrize(("index", "optim"), [(0, "sgd"), (1, "adamw")])
@pytest.mark.parametrize("model", TIED)
def test_mup_tied_is_mup_with_a_factor_for_what_is_shared(model: str, index: int, optim: str) -> None:
    more = {"mixer": ["expansion=2"], "pk": ["model.tied=false"]}.get(model, [])
    settings = [f"model={model}", *MIXER[1:3], *more, "depth=2", "patch_size=8", f"optim={optim}"]
    mup, tied = (scales(*settings, f"optim.lr_scaling={rule}") for rule in ("mup", "mup_tied"))
    for name, factors in TIED[model].items():
        assert tied[name][0] / mup[name][0] == pytest.approx(factors[index]), name
        assert tied[name][0] * tied[name][1] == pytest.approx(mup[name][0] * mup[name][1]), name


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_without_shared_weights_mup_tied_is_mup(optim: str) -> None:
    mup, tied = (scales(*SPARSE, f"optim={optim}", f"optim.lr_scaling={rule}") for rule in ("mup", "mup_tied"))
    assert mup == tied
    networks = [made(*SPARSE, f"optim={optim}", f"optim.lr_scaling={rule}")[1] for rule in ("mup", "mup_tied")]
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("sgd", [True, False])
@pytest.mark.parametrize("alike", [True, False])
def test_a_step_on_shared_weights_moves_features_alike_however_many_blocks_share_them(alike: bool, sgd: bool) -> None:
    """The derivation in ``width_scaling``, by one layer in float64 whose gradients have independent signs.

    Adam's first step goes by the signs of the gradient.
    """
    size, seeds = 16, 60

    def moved(copies: int, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        layer = PermutedKronecker(copies, size, size, bias=False).double()
        x = torch.randn(1, 1 if alike else copies, size, generator=generator, dtype=torch.float64)
        x = (x / x.square().mean(-1, keepdim=True).sqrt()).expand(1, copies, size).reshape(1, -1)
        signs = torch.randn(1, copies * size, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((layer(x) * signs).sum() / layer.out_width, layer.weight)
        factor = tied_factor(copies, 1.0 if alike else 1 / size, sgd=sgd)
        step = gradient if sgd else gradient.sign() / size
        with torch.no_grad():
            layer.weight.copy_(factor * step)
        return float(layer(x).detach().square().mean())

    few, many = ([moved(copies, seed) for seed in range(seeds)] for copies in (1, 64))
    means, errors = zip(*((statistics.mean(v), statistics.stdev(v) / seeds**0.5) for v in (few, many)), strict=True)
    if sgd:
        assert abs(means[0] - means[1]) < 4 * sum(errors)
    else:  # signs of sums are not sums: up to the constant 2/pi
        assert 1 / 2 < means[1] / means[0] < 2


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["model=s_mixer", "optim.lr_scaling=mup"], "optim.lr_scaling=mup takes blocks"),
        (["model=rp_mixer", "optim=adamw", "optim.lr_scaling=mup_tied"], "optim.lr_scaling=mup_tied: where blocks"),
        (["model=s_mixer", "optim.lr_scaling=fan_in"], None),
        (["model=pk", "model.tied=false", "optim.lr_scaling=mup"], None),
        (["model=sw_mlp", "optim.lr_scaling=mup_tied"], None),
    ],
)
def test_a_rule_of_width_says_what_it_does_not_do_for_shared_weights(overrides: list[str], rule: str | None) -> None:
    run, _ = made(*overrides, "depth=1")
    said = [text for text in warnings(run.config, run.architecture) if text.startswith("optim.lr_scaling")]
    assert [text.startswith(str(rule)) for text in said] == ([] if rule is None else [True])


def test_only_mup_changes_initial_weights_and_only_the_heads() -> None:
    states = {}
    for rule in ("none", "fan_in", "mup"):
        _, network = made(*SPARSE, f"optim.lr_scaling={rule}", f"optim.base_fan_in={N}")
        states[rule] = network.state_dict()
    for name, weight in states["none"].items():
        factor = (N / 10) ** 0.5 if name == "head.weight" else 1.0
        assert torch.equal(states["fan_in"][name], weight)
        torch.testing.assert_close(states["mup"][name], weight * factor)


GROUPS = ["model.head=signed_groups", "model.readout_dimension=40"]  # of 160 units, 4 each


@pytest.mark.parametrize(
    ("optim", "rule", "rate"),
    [("sgd", "fan_in", N / 40), ("adamw", "fan_in", N / 40), ("sgd", "mup", N / 160), ("adamw", "mup", N / 80)],
)
def test_a_head_of_groups_has_the_units_behind_its_weights_as_fan_in_under_mup(
    optim: str, rule: str, rate: float
) -> None:
    """From a weight of variance n/m² of each unit; a step of Adam moves that by the rate over sqrt(4): n/m again."""
    assert scales(*SPARSE, *GROUPS, f"optim={optim}", f"optim.lr_scaling={rule}")["head.weight"][0] == (
        pytest.approx(rate)
    )
    _, network = made(*SPARSE, *GROUPS, "optim.lr_scaling=mup", f"optim.base_fan_in={N}")
    spread = network.get_submodule("head").to_dense().detach().std().item()  # type: ignore[operator]
    assert spread == pytest.approx(N**0.5 / 160, rel=0.15)


def moved(width: int, model: str, optim: str, rule: str, head: str = "pool") -> float:
    """How far the features before the head move in 4 steps, rms, mean of 3 seeds."""
    distances = []
    lr = {"sgd": 0.05, "adamw": 0.003}[optim]
    sizes = [f"connections={width**2}"] if model == "mlp" else [f"width={width}", f"connections={width**2 // 8}"]
    plain = ["optim.momentum=0", "optim.nesterov=false"] if optim == "sgd" else []
    for seed in range(3):
        run, network = made(
            f"model={model}",
            *sizes,
            "depth=2",
            "patch_size=8",
            f"seed={seed}",
            f"optim={optim}",
            "optim.weight_decay=0",
            f"optim.lr_scaling={rule}",
            f"model.head={head}",
            *plain,
        )
        optimizer = make_optimizer(network, run.config.optim)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        features: list[Tensor] = []
        norm = network.get_submodule("norm")
        norm.register_forward_pre_hook(lambda _, inputs, kept=features: kept.append(inputs[0].detach().clone()))
        steps(network, optimizer, 5)
        distances.append((features[-1] - features[0]).square().mean().sqrt().item())
    return sum(distances) / 3


@pytest.mark.parametrize("head", ["pool", "signed_groups"])
@pytest.mark.parametrize("model", ["mlp", "sw_mlp"])
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_under_mup_features_move_as_far_in_wide_networks_as_in_narrow_ones(model: str, optim: str, head: str) -> None:
    """The coordinate check of Tensor Programs V, appendix D.1: what the rule is for."""
    narrow, wide = (moved(width, model, optim, "mup", head) for width in (64, 512))
    assert 0.7 < wide / narrow < 1.3
    if optim == "adamw":
        narrow, wide = (moved(width, model, optim, "none", head) for width in (64, 512))
        assert wide / narrow > 2
