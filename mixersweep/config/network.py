"""The network that a ``Config`` means: its settings as a request to ``mixersweep.budget`` ("the rule")."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from mixersweep import budget
from mixersweep.config.schema import Config, Rewired, WidthScaled
from mixersweep.families.base import ImageFacts


def image_facts(config: Config) -> ImageFacts:
    """The facts about images that a family needs."""
    return ImageFacts(config.data.image_channels, config.image_size, config.patch_size, config.data.classes)


def architecture(config: Config) -> budget.Architecture:
    """Solve a config for all sizes of its network; raises ``UserError`` where no network meets it."""
    return config.model.solve(request_of(config), image_facts(config))


def warnings(config: Config, solved: budget.Architecture) -> list[str]:
    """Caveats for interpreting this run's accuracy, one sentence each."""
    found = config.model.warnings(solved, config.data.classes)
    if config.model.structure == "kronecker" and isinstance(config.optim, WidthScaled):
        found += [_SHARED_WEIGHTS[rule] for rule in [config.optim.lr_scaling] if rule in _SHARED_WEIGHTS]
    if isinstance(config.optim, Rewired) and config.optim.rewire != "none":
        mask, rewire = getattr(config.model, "mask", "exact"), config.optim.rewire
        if mask not in ("exact", "bernoulli") and (mask, rewire) != ("fixed_fan_in", "srigl"):
            found.append(f"model.mask={mask} is where connections begin; optim.rewire={rewire} moves them out of it")
    return found


_SHARED_WEIGHTS = {
    "mup": "optim.lr_scaling=mup takes blocks that share weights to push them alike, which at first they do not: where "
    "they do, as in this family, features or logits move less the wider it is; mup_tied corrects that of features",
    "mup_tied": "optim.lr_scaling=mup_tied: where blocks share weights no rate moves features and logits alike at all "
    "widths; this one keeps the move of features, and logits may move less the wider it is (analyze coordinates)",
}
"""Caveats on width-scaled learning rates for weights that blocks share (``training.width_scaling``)."""


def request_of(config: Config) -> budget.Request:
    """The sizes that the settings ask for, as a request to ``mixersweep.budget``."""

    def or_none(value: Any) -> Any:
        return None if value == "auto" else value

    requested = {name: or_none(getattr(config, name)) for name in ("width", "tokens", "channels")}
    shares = {name: Fraction(text[:-1]) / 100 for name, text in requested.items() if isinstance(text, str)}
    sizes = {name: size for name, size in requested.items() if isinstance(size, int)}
    images = image_facts(config)
    request = budget.Request(
        structure=config.model.structure,
        budget=config.budget,
        count=config.count,
        weights=or_none(config.weights),
        flops=or_none(config.flops),
        shares=shares,
        connections=or_none(config.connections),
        density=or_none(config.density),
        expansion=or_none(config.expansion),
        branch=config.branch,
        match=config.match,
        depth=config.depth,
        patches=config.patches,
        patch_values=images.patch_values,
        classes=images.classes,
        width=sizes.get("width"),
        tokens=sizes.get("tokens"),
        channels=sizes.get("channels"),
    )
    return config.model.request(request, images)
