"""Make a single mixing block from plain sizes, for use in other networks, without Hydra, a run or images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml
from torch import nn

from mixersweep.budget import Request, solve
from mixersweep.config import settings
from mixersweep.errors import UserError
from mixersweep.families import FAMILIES
from mixersweep.families.base import ImageFacts
from mixersweep.models import initialize, network_class
from mixersweep.models.parts import StructureSeed
from mixersweep.paths import config_dir
from mixersweep.seeds import derive


def mixing_block(
    family: str,
    *,
    tokens: int | None = None,
    channels: int | None = None,
    width: int | None = None,
    connections: int | None = None,
    density: float | None = None,
    expansion: float | None = None,
    seed: int = 0,
    **choices: Any,
) -> nn.Module:
    """One block of a family, with its skips and norms, as a module on vectors of m features: (B, m) to (B, m).

    The sizes are the settings of the command line, and those left out are derived by the same rules; a Mixer's m
    features are its (tokens, channels) matrix, row by row. ``choices`` are settings of the family without the prefix
    ``model.``, such as ``tied=False`` or ``activation="relu"``, with the family's defaults. Structure and weights are
    those of the first square block of a run with this seed. Raises ``UserError`` for sizes or settings that make no
    block.
    """
    networks = {name: network_class(cls) for name, cls in FAMILIES.items()}
    with_blocks = {name: network for name, network in networks.items() if hasattr(network, "block_alone")}
    if family not in with_blocks:
        reason = "its network is not made of square blocks" if family in networks else "no such family"
        raise UserError(f"family={family}: {reason}; there are {', '.join(with_blocks)}")
    defaults = yaml.safe_load((config_dir() / "model" / f"{family}.yaml").read_text(encoding="utf-8"))
    model: Any = settings(FAMILIES[family], {**defaults["model"], **choices}, "")
    if model.structure == "dense" and connections is None:
        density = density or 1.0
    expansion = defaults["expansion"] if expansion is None else expansion
    asked = Request(
        structure=model.structure,
        tokens=tokens,
        channels=channels,
        width=width,
        connections=connections,
        density=density,
        expansion=None if expansion == "auto" else expansion,
        depth=1,
        patches=1,
        classes=1,
    )
    request = model.request(asked, ImageFacts(1, 1, 1, 1))
    sizes = solve(replace(request, stem="none", skip_layer="auto", head="linear"))
    block: nn.Module = with_blocks[family].block_alone(model, sizes, StructureSeed(derive(seed, "structure")))
    initialize(block, derive(seed, "initialization"))
    return block
