"""Parse a composed mapping into a ``Config``, with errors in one line that name the setting and what would work.

Imports pydantic, which checks types and bounds, only when a mapping is parsed: shell completion needs only the keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from mixersweep.config.images import check_folder_facts, check_images
from mixersweep.config.schema import SGD, VARIANTS, AnyOptim, Config, Rewired
from mixersweep.config.sweep import Search, Sweep
from mixersweep.errors import Infeasible, UserError
from mixersweep.families import FAMILIES
from mixersweep.kinds import FromEnvironment, Percentage

T = TypeVar("T")


def parse(values: Mapping[str, Any]) -> Config:
    """Parse a composed mapping into a checked ``Config``.

    Raises ``UserError`` in one line that names the key, the value, the reason and the nearest valid choice.
    """
    values = dict(values)
    for group, variants in VARIANTS.items():
        chosen = values.get(group)
        name = chosen.get("name") if isinstance(chosen, Mapping) else chosen
        if not isinstance(chosen, Mapping) or not isinstance(name, str) or name not in variants:
            raise UserError(f"{group}={_as_typed(name)}: no such {group}; there are {', '.join(variants)}")
    schema = {group: variants[values[group]["name"]] for group, variants in VARIANTS.items()}
    _check_keys(values, schema)
    check_folder_facts(values.get("data", {}))
    parts: dict[str, Any] = {group: _validate(cls, values[group], f"{group}.") for group, cls in schema.items()}
    config = _validate(Config, values, "", parts)
    _check_values(config)
    return config


def parse_sweep(values: Mapping[str, Any]) -> Sweep:
    """Parse the composed mapping under ``sweep``; raises ``UserError`` in one line."""
    for name in values:
        check_key(f"sweep.{name}", values[name])
    parts: dict[str, Any] = {"search": None}
    if values.get("search") is not None:
        parts["search"] = settings(Search, values["search"], "sweep.search.")
    return _validate(Sweep, values, "sweep.", parts)


def settings(cls: type[T], values: Any, prefix: str) -> T:
    """Parse a mapping into a dataclass whose settings are spelled ``<prefix><name>``; raises ``UserError``."""
    known = _field_names(typing.cast(Any, cls))
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix[:-1]}={_as_typed(values)}: a group of settings; set {prefix}<setting>")
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            tail = f"; the nearest is {prefix}{near[0]}" if near else f"; there are {', '.join(known)}"
            raise UserError(f"{prefix}{name}={_as_typed(value)}: no such setting{tail}")
    return _validate(cls, values, prefix)


def keys(config_class: type = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of the schema with its type annotation; keys that several variants have come several times."""
    for name, annotation in typing.get_type_hints(config_class, include_extras=True).items():
        if typing.get_origin(annotation) is ClassVar or name.startswith("__"):
            continue
        if not prefix and name in VARIANTS:
            yield name, Literal[tuple(VARIANTS[name])]
            for variant in VARIANTS[name].values():
                yield from keys(variant, f"{name}.")
        elif dataclasses.is_dataclass(annotation):
            yield name, annotation
            yield from keys(typing.cast(type, annotation), f"{name}.")
        else:
            yield prefix + name, annotation


@cache
def owners(key: str) -> list[str]:
    """The choices of a config group that have the setting ``key``, e.g. the families with ``model.tied``."""
    group, _, name = key.partition(".")
    return [choice for choice, cls in VARIANTS.get(group, {}).items() if name in _field_names(cls)]


def check_key(key: str, value: object, choice: str | None = None) -> None:
    """Raise ``UserError`` for a dotted key that does not exist, or that the chosen variant of its group lacks."""
    known = _known_keys()
    if key.startswith("sweep.over."):  # the settings that all grids are crossed with
        return check_key(key.removeprefix("sweep.over."), value, choice)
    if key in known and (choice is None or not owners(key) or choice in owners(key)):
        return None
    above = key.rpartition(".")[0]
    if "." in above and any(typing.get_origin(part) is dict for part in typing.get_args(known.get(above))):
        return check_key(above, value, choice)  # a setting whose value is a mapping with free keys
    text = f"{key}={_as_typed(value)}"
    if key in known:
        group, _, name = key.partition(".")
        others = ", ".join(owners(key))
        own_settings = ", ".join(f for f in _field_names(VARIANTS[group][typing.cast(str, choice)]) if f != "name")
        raise UserError(f"{text}: {choice} has no setting {name} (it belongs to {others}). It has {own_settings}")
    tail = {k.rpartition(".")[2]: k for k in known}
    near = difflib.get_close_matches(key, known, 1) or [
        tail[k] for k in difflib.get_close_matches(key.rpartition(".")[2], tail, 1)
    ]
    raise UserError(f"{text}: no such setting" + (f"; the nearest is {near[0]}" if near else ""))


def describe(annotation: Any) -> str:
    """The values that a type annotation allows, in words: ``a whole number, at least 1, or auto``."""
    if annotation == Percentage:
        return "a percentage such as 50%"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = {Ge: "at least {0.ge:g}", Gt: "above {0.gt:g}", Le: "at most {0.le:g}", Lt: "below {0.lt:g}"}
        bounds_in_words = [
            text.format(m) for m in arguments[1:] for kind, text in bounds.items() if isinstance(m, kind)
        ]
        return ", ".join([describe(arguments[0]), " and ".join(bounds_in_words)])
    if origin is Literal:
        return " or ".join(str(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(describe(part) for part in arguments)
    if origin is dict:
        return "a mapping such as {name: value}"
    if origin is list:
        choices = typing.get_args(arguments[0]) if typing.get_origin(arguments[0]) is Literal else (1, 2)
        return f"a list such as [{choices[0]},{choices[1]}] of {describe(arguments[0])}"
    if dataclasses.is_dataclass(annotation):
        return "a group of settings"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "null"}
    return plain.get(annotation, str(annotation))


def _as_typed(value: object) -> str:
    """A value as it is typed in an override, on one line."""
    if isinstance(value, (dict, list, bool)) or value is None:
        return json.dumps(value, default=str)
    return " ".join(str(value).split())


@cache
def _known_keys() -> dict[str, Any]:
    search = {"sweep.search": Search, **dict(keys(Search, "sweep.search."))}
    return {**dict(keys()), "sweep": Sweep, **dict(keys(Sweep, "sweep.")), **search}


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


@cache
def _field_names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


def _check_keys(values: Mapping[str, Any], schema: Mapping[str, type]) -> None:
    """Raise ``UserError`` for the first unknown key, or group that is not a mapping."""
    hints = _hints(Config)
    for name, value in values.items():
        cls = schema.get(name, hints.get(name))
        if cls is None or not dataclasses.is_dataclass(cls):
            check_key(name, value)
            continue
        choice = value.get("name") if name in VARIANTS else None
        if not isinstance(value, Mapping):
            raise UserError(
                f"{name}={_as_typed(value)}: a group of settings; choose one of its files, or set {name}.<setting>"
            )
        for inner, deep in value.items():
            check_key(f"{name}.{inner}", deep, choice)


def _validate(cls: type[T], values: Mapping[str, Any], prefix: str, parts: Mapping[str, Any] | None = None) -> T:
    import pydantic

    plain = {name: value for name, value in values.items() if name not in (parts or {})}
    hints = _hints(typing.cast(Any, cls))
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    checked = dict(parts or {})
    for name, f in fields.items():
        if name in checked:
            continue
        if name not in plain:
            if f.default is dataclasses.MISSING:
                raise UserError(f"{prefix}{name}: missing; it takes {describe(hints[name])}")
            continue
        if dataclasses.is_dataclass(hints[name]):
            checked[name] = _validate(typing.cast(type, hints[name]), plain[name], f"{prefix}{name}.")
            continue
        adapter, value = _adapter(typing.cast(Any, cls), name), plain[name]
        try:
            checked[name] = adapter.validate_python(
                _evaluate_power(str(value) if isinstance(value, FromEnvironment) else value)
            )
        except pydantic.ValidationError:
            if isinstance(value, FromEnvironment):
                with contextlib.suppress(ValueError):  # pydantic's error is a ValueError
                    checked[name] = adapter.validate_python(json.loads(value))
                    continue
            raise UserError(_describe_mistake(f"{prefix}{name}", plain[name], hints[name])) from None
    return cls(**checked)


@cache
def _adapter(cls: type, name: str) -> Any:
    import pydantic

    annotation = _hints(cls)[name]
    return pydantic.TypeAdapter(annotation, config={"strict": True, "allow_inf_nan": False})


def _evaluate_power(value: Any) -> Any:
    """Evaluate a power such as ``2**15``; return anything else unchanged."""
    if isinstance(value, str):
        base, stars, exponent = value.partition("**")
        if stars and base.isdecimal() and exponent.isdecimal() and len(base) <= 3 and len(exponent) <= 2:
            return int(base) ** int(exponent)
    return value


def _describe_mistake(key: str, value: Any, annotation: Any) -> str:
    text = f"{key}={_as_typed(value)}: expects {describe(annotation)}"
    choices = [str(c) for part in _literals(annotation) for c in typing.get_args(part) if isinstance(c, str)]
    given = value if isinstance(value, list) else [value]
    wrong = next((one for one in given if isinstance(one, str) and one not in choices), None)
    near = difflib.get_close_matches(wrong, choices, 1) if wrong is not None else []
    if not near:
        return text
    return f"{text}; the nearest {f'to {wrong} ' if isinstance(value, list) else ''}is {near[0]}"


def _literals(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list):
        return [inner for part in typing.get_args(annotation) for inner in _literals(part)]
    return [annotation] if typing.get_origin(annotation) is Literal else []


def _check_values(config: Config) -> None:
    """Raise ``UserError`` for settings that are each valid but impossible together."""
    check_images(config)
    _check_optim(config.optim, config.epochs)
    has_skips = config.model.has_skips
    if config.stochastic_depth and not (has_skips and config.depth > 1):
        why = "depth=1 is the first block, where it is 0" if has_skips else f"{config.model.name} has no skips"
        raise UserError(f"stochastic_depth={config.stochastic_depth:g}: {why}; set it to 0")
    if config.gradient_checkpointing and not has_skips:
        why = f"{config.model.name} has no blocks to compute again"
        raise UserError(f"gradient_checkpointing=true: {why}; set it to false")
    if isinstance(config.optim, Rewired) and config.optim.rewire != "none":
        _check_rewire(config, config.optim)
    config.model.check(config.depth)


def _check_rewire(config: Config, optim: Rewired) -> None:
    setting = f"optim.rewire={optim.rewire}"
    if not config.model.can_rewire:
        those = " or ".join(f"model={name}" for name, family in FAMILIES.items() if family.can_rewire)
        raise UserError(f"{setting}: {config.model.name} has no masked weights to move; use {those}, or set it to none")
    if config.compile:
        raise UserError(
            f"compile=true: a compiled network keeps its connections, which {setting} moves; set it to false"
        )
    if config.precision == "fp16" and optim.rewire != "set":
        raise UserError(f"precision=fp16: its gradients may overflow, which {setting} chooses by; use bf16 or fp32")
    steps = math.ceil(round(config.data.train_images * (1 - config.validation)) / config.batch_size)
    every, end = optim.rewire_pace(steps, config.epochs)
    if every >= end:
        near = f"the nearest is {math.ceil(end) - 1}" if end > 1 else "raise epochs"
        raise Infeasible(
            f"optim.rewire_every={optim.rewire_every}: the first rewiring, at step {every}, is none of the {end:g} in "
            f"which connections move; {near}"
        )


def _check_optim(optim: AnyOptim, epochs: int) -> None:
    if isinstance(optim, SGD) and optim.nesterov and not optim.momentum:
        raise UserError("optim.momentum=0: Nesterov needs momentum; set optim.nesterov=false, or 0.9")
    if optim.warmup_epochs > epochs:
        raise Infeasible(f"optim.warmup_epochs={optim.warmup_epochs:g}: longer than epochs={epochs}")
    if optim.warmup_lr and not optim.warmup_epochs:
        raise UserError(f"optim.warmup_lr={optim.warmup_lr:g}: there is no warm-up; set it to 0, or warmup_epochs")
    for name in ("warmup_lr", "min_lr"):
        if getattr(optim, name) > optim.lr:
            raise UserError(f"optim.{name}={getattr(optim, name):g}: above optim.lr={optim.lr:g}, the highest rate")
    if optim.min_lr and optim.schedule != "cosine":
        raise UserError(f"optim.min_lr={optim.min_lr:g}: is where schedule=cosine ends; set it to 0")
    if (optim.schedule == "step") != bool(optim.milestones):
        shown, step = _as_typed(optim.milestones), optim.schedule == "step"
        why = "schedule=step needs the epochs of its steps" if step else f"schedule={optim.schedule} has none; use null"
        raise UserError(f"optim.milestones={shown}: {why}")
    if sorted(set(optim.milestones or [])) != (optim.milestones or []):
        raise UserError(f"optim.milestones={optim.milestones}: epochs in rising order, each once")
