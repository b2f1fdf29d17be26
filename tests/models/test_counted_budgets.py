"""Budgets of what is really there against the nonzeros of built networks: every family, 30 random shapes of each."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from mixersweep.compose import config_of
from mixersweep.config import Config
from mixersweep.errors import Infeasible
from mixersweep.families.mlps import MLPFamily
from mixersweep.layers import Factors, SparseMap
from mixersweep.models import build
from mixersweep.models.branches import mixing_maps
from mixersweep.models.mixer import TokenMap
from mixersweep.runs import Run, solve

FAMILIES = {
    "s_mixer": ["model=s_mixer"],
    "rp_s_mixer": ["model=rp_s_mixer"],
    "mixer": ["model=mixer"],
    "rp_mixer": ["model=rp_mixer"],
    "pk untied": ["model=pk", "model.tied=false"],
    "pk untied hidden": ["model=pk", "model.tied=false", "model.hidden=true"],
    "monarch": ["model=monarch"],
    "sw_mlp": ["model=sw_mlp"],
    "sw_mlp hidden": ["model=sw_mlp", "model.hidden=true"],
    "hashed": ["model=hashed", "model.sharing=5"],
    "block_diagonal": ["model=block_diagonal"],
    "btt": ["model=btt"],
    "btt of rank 2": ["model=btt", "model.rank=2"],
    "butterfly": ["model=butterfly"],
    "butterfly of 3 factors": ["model=butterfly", "model.factors=3"],
    "low_rank": ["model=low_rank"],
    "mlp": ["model=mlp"],
}
PRODUCTS = ("block_diagonal", "btt", "btt of rank 2", "butterfly", "butterfly of 3 factors", "low_rank")
SHAPES = 30


@cache
def base(name: str) -> Config:
    """Composing takes longer than all the rest."""
    return config_of([*FAMILIES[name], "image_size=32", "model.head=signed_groups", "model.readout_dimension=8"])


def drawn(name: str, number: int, **sizes: Any) -> Config:
    """A random depth, patch size, expansion, skip and stem, and the sizes or budget."""
    choose = random.Random(f"{name} {number}")
    config = base(name)
    model = config.model
    if not isinstance(model, MLPFamily):
        skip, stem = choose.choice([("auto", "patch"), ("always", "patch"), ("auto", "resize")])
        model = replace(model, skip_layer=skip, stem=stem)  # type: ignore[arg-type,call-arg]
    expansion = choose.choice([0.5, 1.5, 2.0]) if model.hidden else 1.0
    plain = {"depth": choose.randint(1, 3), "patch_size": choose.choice([4, 8, 16]), "expansion": expansion}
    return replace(config, model=model, **plain, **sizes)


def built(config: Config) -> tuple[Run, nn.Module]:
    run = solve(config)
    return run, build(run.config, run.architecture)


def counted(run: Run, network: nn.Module) -> dict[str, Any]:
    """By the matrices themselves, all of whose entries are made nonzero."""
    a = run.architecture
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, SparseMap):
                layer.weight.fill_(1.0)
    maps = mixing_maps(network)
    nonzeros = sum(int((layer.to_dense() != 0).sum()) for layer in maps.values())
    weights = sum(layer.weight.numel() for layer in maps.values())
    token_maps = {name: m for name, m in network.named_modules() if isinstance(m, TokenMap)}
    skips = [m.map.weight.numel() for name, m in token_maps.items() if ".skip." in name]
    resized = [m.map.weight.numel() for name, m in token_maps.items() if ".skip." not in name]
    channels = a.embedding_channels
    stem = a.patches * network.get_submodule("embedding.projection").weight.numel()
    head = network.get_submodule("head").weight.numel()
    return {
        "matrices": len(maps) - sum(len(m.factors) - 1 for m in network.modules() if isinstance(m, Factors)),
        "connections": nonzeros + channels * sum(skips),
        "weights": weights + sum(skips),
        "flops": 2 * (stem + nonzeros + channels * sum(skips + resized) + head),
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_counted_is_what_is_there(name: str) -> None:
    for number in range(SHAPES):
        choose = random.Random(f"shape {name} {number}")
        sizes = {"tokens": choose.randint(4, 20), "channels": choose.randint(4, 20)}
        if name in PRODUCTS:  # whose sizes are few
            sizes = {"connections": choose.choice([4096, 5184])}
        run, network = built(drawn(name, number, **sizes))
        a, there = run.architecture, counted(run, network)
        assert a.connections_real == there["connections"] / there["matrices"]
        assert a.weights_real == there["weights"] / there["matrices"]
        assert a.flops_per_image == there["flops"]
        assert (a.connections_real_target, a.weights_real_target, a.flops_target) == (None, None, None)


@pytest.mark.parametrize("budget", ["connections", "weights", "flops"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_budget_of_what_is_there_is_met_by_what_is_there(name: str, budget: str) -> None:
    """Within 2%, or it is refused; what a refusal names as nearest works."""
    found = 0
    for number in range(SHAPES // 3):
        choose = random.Random(f"budget {name} {number}")
        scale = 2 if name in PRODUCTS else 1  # their sizes are few
        target = round(2 ** choose.uniform(11, 12.5)) * (30 if budget == "flops" else 1) * scale
        setting: dict[str, Any] = {
            "connections": {"count": "real", "connections": target},
            "weights": {"count": "real", "budget": "parameters", "weights": target // 8},
            "flops": {"budget": "flops", "flops": target},
        }[budget]
        if choose.random() < 0.5 and name not in PRODUCTS:
            setting["channels"] = choose.randint(2, 20)
        try:
            run, network = built(drawn(name, number, **setting))
        except Infeasible as refusal:
            if not refusal.nearest:
                assert "stem and head" in str(refusal) or "none is within 2% of that" in str(refusal)
                continue
            try:
                run, network = built(drawn(name, number, **{**setting, **refusal.nearest}))
            except Infeasible as of_mlp:  # a Mixer of those channels exists, with more connections than an MLP can hold
                assert "channels" in refusal.nearest and "do not fit into its" in str(of_mlp)
                continue
            target = 0
        a, there = run.architecture, counted(run, network)
        asked = {"connections": a.connections_real_target, "weights": a.weights_real_target, "flops": a.flops_target}
        goal = asked[budget]
        assert goal is not None
        has = there[budget] / (1 if budget == "flops" else there["matrices"])
        close = 0.35 if name == "mlp" else 0.02  # a dense one has the width that it has
        assert abs(has / goal - 1) <= close + 1e-9, (name, number, setting, has, goal)
        found += target > 0
    assert found >= SHAPES // 10
