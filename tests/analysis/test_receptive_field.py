"""Receptive fields against what autograd says reaches a unit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mixersweep.analysis.receptive_field import count, receptive_fields, through
from mixersweep.cli import main
from mixersweep.compose import config_of
from mixersweep.layers import SparseMap
from mixersweep.layers.effective import to_sparse
from mixersweep.models import build
from mixersweep.runs import solve

SOME = 100
"""Units of a layer at most, evenly over it."""

FAMILIES = [
    ["model=s_mixer", "tokens=4", "channels=3"],
    ["model=s_mixer", "tokens=5", "channels=3"],
    ["model=rp_s_mixer", "tokens=16", "channels=3", "model.skip_layer=never"],
    ["model=rp_mixer", "tokens=4", "channels=3"],
    ["model=pk", "model.tied=false", "tokens=4", "channels=3", "model.stem=resize"],
    ["model=monarch", "tokens=4", "channels=3"],
    ["model=sw_mlp", "width=14", "model.head=linear", "connections=20"],
    ["model=sw_mlp", "model.head=linear", "model.hidden=true", "width=12", "connections=18", "expansion=2"],
    ["model=block_diagonal", "width=15", "model.head=linear", "connections=45"],
    ["model=btt", "width=15", "model.head=linear", "connections=120"],
    ["model=butterfly", "width=16", "model.head=linear", "connections=128"],
    ["model=low_rank", "width=15", "model.head=linear", "connections=45"],
    ["model=shallow_kronecker"],
    ["model=golubeva_mlp", "width=80", "augment=none", "depth=1"],
    ["model=golubeva_resnet18", "width=32", "model.base_width=8", "depth=8", "image_size=21", "patch_size=1"],
]


def small(overrides: list[str]) -> nn.Module:
    config = config_of(["data=digits", "image_size=8", "depth=2", *overrides])
    network = build(config, solve(config).architecture).double().eval()
    for layer in network.modules():  # every connection counts, and no path cancels another
        if isinstance(layer, SparseMap):
            with torch.no_grad():
                layer.weight.abs_().add_(0.1)
    return network


def without_norms(network: nn.Module) -> nn.Module:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GELU, nn.ReLU)):
                setattr(module, name, nn.Identity())
    return network


def brute_force(network: nn.Module, image_size: int = 8) -> dict[str, list[int]]:
    """How many pixels the gradient of each unit of the stream reaches, after each block."""
    image = torch.ones(1, 1, image_size, image_size, dtype=torch.float64, requires_grad=True)  # no ReLU is off
    kept: dict[str, torch.Tensor] = {}
    with torch.enable_grad():
        blocks = getattr(network, "blocks", None) or getattr(network, "layers", None)
        if blocks is None:
            blocks = {"hidden": network.hidden}
        items = blocks.items() if isinstance(blocks, dict) else enumerate(blocks)
        hooks = [
            block.register_forward_hook(lambda m, i, y, name=str(name): kept.__setitem__(name, y))
            for name, block in items
        ]
        network(image)
        for hook in hooks:
            hook.remove()
        found = {}
        for name, output in kept.items():
            jacobian = [
                torch.autograd.grad(unit, image, retain_graph=True)[0].abs().sum(1).flatten() > 0
                for unit in output.reshape(-1)[:: 1 + output.numel() // SOME]
            ]
            found[name] = [int(row.sum()) for row in jacobian]
    return found


@pytest.mark.parametrize("overrides", FAMILIES, ids=lambda o: "-".join(o[:2]))
def test_as_autograd_says(overrides: list[str]) -> None:
    network = small(overrides)
    size = 21 if "image_size=21" in overrides else 8  # odd: a stride of 2 rounds up
    found = receptive_fields(network, size, 1)
    reached = brute_force(without_norms(network).requires_grad_(True), size)
    checked = 0
    for name, pixels in reached.items():
        mine = [reach for layer, reach in found.items() if layer.split(".")[:2] == ["blocks", name]]
        mine = mine or [reach for layer, reach in found.items() if layer.split(".")[:2] == ["layers", name]]
        mine = mine or ([found[name]] if name in found else [])
        if mine:
            assert count(mine[-1])[:: 1 + len(mine[-1]) // SOME].tolist() == pixels, name
            checked += 1
    assert checked >= 1


@pytest.mark.parametrize("overrides", [FAMILIES[0], FAMILIES[2], FAMILIES[6]], ids=lambda o: "-".join(o[:2]))
def test_norms_pass_on_what_they_normalise_together(overrides: list[str]) -> None:
    network = small(overrides)
    for module in network.modules():  # activations off zero, where a derivative could vanish
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GELU):
                setattr(module, name, nn.Identity())
    found = receptive_fields(network, 8, 1, norms=True)
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(1, 1, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    blocks = network.blocks if hasattr(network, "blocks") else network.layers
    kept = {}
    network.requires_grad_(True)
    hook = blocks[-1].register_forward_hook(lambda m, i, y: kept.__setitem__("y", y))
    network(image)
    hook.remove()
    last = list(found.values())[-1]
    for unit, mine in zip(kept["y"].reshape(-1), count(last), strict=True):
        gradient = torch.autograd.grad(unit, image, retain_graph=True)[0].flatten()
        assert int((gradient.abs() > 1e-12).sum()) == mine


def test_or_over_connections_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixersweep.analysis import receptive_field
    from tests.analysis.test_spectrum import sparse

    pattern = to_sparse(sparse(50, 40, 60))
    reach = np.packbits(np.random.default_rng(0).random((40, 33)) < 0.2, axis=1)
    wanted = (abs(pattern) > 0).astype(int) @ np.unpackbits(reach, axis=1) > 0
    assert np.array_equal(np.unpackbits(through(pattern, reach), axis=1), wanted)
    monkeypatch.setattr(receptive_field, "_CHUNK", 7)
    assert np.array_equal(np.unpackbits(through(pattern, reach), axis=1), wanted)
    assert (count(through(pattern, reach)) == 0).any(), "a row without connections is reached by nothing"


def test_random_permutations_see_farther_with_depth(tmp_path: Path) -> None:
    settings = ["model=rp_s_mixer,s_mixer,sw_mlp", "tokens=64", "channels=8", "depth=2", "image_size=32"]
    assert main(["analyze", "receptive_field", *settings, "match=mixer", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "receptive_field.json").read_text())["layers"]
    for model in ("rp_s_mixer", "s_mixer"):
        pixels = [row["pixels"] for row in rows if row["network"].startswith(f"{model} ")]
        assert pixels[0] == 16 and pixels == sorted(pixels) and pixels[-1] == 1024
    assert all(row["pixels"] <= row["pixels_with_norms"] for row in rows)
    assert (tmp_path / "receptive_field.svg").exists()
