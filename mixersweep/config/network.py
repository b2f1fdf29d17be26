"""From settings to the rule: the network that a ``Config`` means."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

from mixersweep import budget
from mixersweep.config.families import SWMLP, AnyModel, LayeredFamily, MixerFamily, MLPFamily, PrintedMixer, Shallow
from mixersweep.config.schema import Config, WidthScaled


def architecture(config: Config) -> budget.Architecture:
    """The network that the rule gives for this config; raises ``UserError`` where there is none."""
    request, model = request_of(config), config.model
    if isinstance(model, LayeredFamily):
        layers = model.layered(config.data.image_channels, config.image_size, config.data.classes)
        return budget.solve_layered(request, layers)
    solved = budget.solve(request)
    budget.check_readout(request, solved)
    return solved


def warnings(config: Config, solved: budget.Architecture) -> list[str]:
    """What a reader of this run's accuracy has to know."""
    model = config.model
    mask = model.mask if isinstance(model, SWMLP) else "exact"
    found = budget.warnings(solved, structure(model), config.data.classes, mask=mask, pooled=model.head == "pool")
    if mask == "bernoulli":
        found.append(
            f"model.mask=bernoulli draws how many connections there are: connections={solved.connections} is their "
            "mean, and connections_drawn of the record what was drawn"
        )
    if structure(model) == "kronecker" and isinstance(config.optim, WidthScaled):
        found += [_SHARED[rule] for rule in [config.optim.lr_scaling] if rule in _SHARED]
    return found


_SHARED = {
    "mup": "optim.lr_scaling=mup takes blocks that share weights to push them alike, which at first they do not: where "
    "they do, as in this family, features or logits move less the wider it is; mup_tied corrects that of features",
    "mup_tied": "optim.lr_scaling=mup_tied: where blocks share weights no rate moves features and logits alike at all "
    "widths; this one keeps the move of features, and logits may move less the wider it is (analyze coordinates)",
}
"""Notes on what learning rates by width do to weights that blocks share (``training.width_scaling``)."""


def structure(model: AnyModel) -> budget.Structure:
    """How the effective weight matrices of a family are sparse."""
    if isinstance(model, LayeredFamily):
        return "layered"
    if isinstance(model, MLPFamily):
        return "sparse" if isinstance(model, SWMLP) else "dense"
    return "kronecker" if model.tied else "block_diagonal"


def request_of(config: Config) -> budget.Request:
    """What the settings ask of the rule."""

    def given(value: Any) -> Any:
        return None if value == "auto" else value

    model = config.model
    asked = {name: given(getattr(config, name)) for name in ("width", "tokens", "channels")}
    shares = {name: Fraction(text[:-1]) / 100 for name, text in asked.items() if isinstance(text, str)}
    sizes = {name: size for name, size in asked.items() if isinstance(size, int)}
    request = budget.Request(
        structure=structure(model),
        hidden=model.hidden,
        budget=config.budget,
        count=config.count,
        weights=given(config.weights),
        flops=given(config.flops),
        shares=shares,
        connections=given(config.connections),
        density=given(config.density),
        expansion=given(config.expansion),
        branch=config.branch,
        match=config.match,
        depth=config.depth,
        layers_per_block=model.layers_per_block,
        norms_per_block=model.norms_per_block,
        patches=config.patches,
        patch_values=config.data.image_channels * config.patch_size**2,
        classes=config.data.classes,
        head=model.head,
        readout_dimension=getattr(model, "readout_dimension", budget.DEFAULT_READOUT),
        bias=model.bias,
        width=sizes.get("width"),
        tokens=sizes.get("tokens"),
        channels=sizes.get("channels"),
    )
    if isinstance(model, MixerFamily):
        request = dataclasses.replace(
            request,
            stem=model.stem,
            skip_layer=model.skip_layer,
            token_expansion=given(model.token_expansion),
            channel_expansion=given(model.channel_expansion),
        )
    if isinstance(model, PrintedMixer):
        open_sizes = {name: size for name, size in model.sizes.items() if getattr(request, name) is None}
        request = dataclasses.replace(request, **open_sizes)  # type: ignore[arg-type]
    if isinstance(model, Shallow):  # the pixels themselves, as a matrix
        rows, columns = config.data.image_channels * config.image_size, config.image_size
        request = dataclasses.replace(request, stem="none", tokens=rows, channels=columns, patches=rows, patch_values=0)
    return request
