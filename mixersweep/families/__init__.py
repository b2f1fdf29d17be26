"""The model families, one line each: what ``model=<name>`` means, in the order of tables and legends.

To add one: a file here, ``configs/model/<name>.yaml`` and a line below. ``base`` says what a family is.
"""

from __future__ import annotations

import importlib
from typing import Any

from mixersweep.families.base import Family, FamilyLook


def _found(place: str) -> type[Family]:
    """Import the class that ``file.Class`` names in this folder."""
    module, _, name = place.partition(".")
    family: type[Family] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return family


FAMILIES: dict[str, type[Family]] = {
    "s_mixer": _found("mixers.SMixer"),
    "rp_s_mixer": _found("mixers.RPSMixer"),
    "mixer": _found("mixers.Mixer"),
    "rp_mixer": _found("mixers.RPMixer"),
    "pk": _found("mixers.PK"),
    "monarch": _found("monarch.Monarch"),
    "sw_mlp": _found("mlps.SWMLP"),
    "hashed": _found("mlps.Hashed"),
    "block_diagonal": _found("products.BlockDiagonal"),
    "btt": _found("products.BTT"),
    "butterfly": _found("products.Butterfly"),
    "low_rank": _found("products.LowRank"),
    "mlp": _found("mlps.MLP"),
    "mixer_ss_8": _found("published_sizes.MixerSS8"),
    "mixer_ss_w": _found("published_sizes.MixerSSW"),
    "mixer_b16": _found("published_sizes.MixerB16"),
    "mixer_b_w": _found("published_sizes.MixerBW"),
    "shallow_monarch": _found("monarch.ShallowMonarch"),
    "shallow_kronecker": _found("monarch.ShallowKronecker"),
    "golubeva_mlp": _found("golubeva.GolubevaMLP"),
    "golubeva_resnet18": _found("golubeva.GolubevaResNet18"),
    "s_fc": _found("s_fc.SFC"),
}


def look_of(name: str) -> FamilyLook | None:
    """How a family is drawn in figures; None for an unknown name, as in a record made by another version."""
    family: Any = FAMILIES.get(name)
    return None if family is None else family.look


def order_of(name: str) -> int:
    """The rank of a family in tables and legends, from 0; unknown names come last."""
    return list(FAMILIES).index(name) if name in FAMILIES else len(FAMILIES)


def matrix_rank_of(name: str, width: int, connections: int) -> int:
    """The rank of a layer's matrix in a family (``Family.matrix_rank``); the width for an unknown name."""
    family: Any = FAMILIES.get(name)
    rank: int = width if family is None else family.matrix_rank(width, connections)
    return rank
