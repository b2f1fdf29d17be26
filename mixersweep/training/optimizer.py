"""The optimiser of a run, with its parameters in groups."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from mixersweep.config.schema import SGD, AdamW, AnyOptim, BetaLasso, Timm, WidthScaled
from mixersweep.errors import UserError
from mixersweep.layers import SparseConv, SparseMap
from mixersweep.training.beta_lasso import BetaLassoSGD
from mixersweep.training.width_scaling import parameters, scales

Groups = list[dict[str, Any]]
T = TypeVar("T", bound=torch.optim.Optimizer)


def make_optimizer(network: nn.Module, settings: AnyOptim) -> torch.optim.Optimizer:
    """The optimiser over all parameters; weight decay and penalties act on weights, not on biases and norms.

    The learning rate of a group is the schedule's times its ``lr_scale``, 1 where it has none. Raises ``UserError`` for
    an optimiser or an argument of it that timm does not have.
    """
    if isinstance(settings, BetaLasso):
        return _beta_lasso(network, settings)
    groups = _groups(network, settings)
    if isinstance(settings, SGD):
        momentum, nesterov = settings.momentum, settings.nesterov
        return _apart(torch.optim.SGD)(groups, lr=settings.lr, momentum=momentum, nesterov=nesterov)
    if isinstance(settings, AdamW):
        betas = settings.beta1, settings.beta2
        return _apart(torch.optim.AdamW)(groups, lr=settings.lr, betas=betas, eps=settings.eps)
    return _timm(groups, settings)


def _apart(kind: type[T]) -> type[T]:
    """A subclass of an optimiser without torch's wrappers, which import the compiler: 1.5 s at the first call.

    The wrappers exclude these methods from compilation; here only networks are compiled, so they are not needed.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "step": step})


def pruned(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The ``density`` of the weights under beta-LASSO, for the epoch's row; empty for other optimisers."""
    return {"density": optimizer.density()} if isinstance(optimizer, BetaLassoSGD) else {}


def _groups(network: nn.Module, settings: SGD | AdamW | Timm) -> Groups:
    """The parameter groups: weights, which decay, before all others, each split by its factor of the learning rate."""
    scale = scales(network, settings) if isinstance(settings, WidthScaled) else {}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter, weight, _ in parameters(network):
        groups.setdefault((weight, scale.get(parameter, 1.0)), []).append(parameter)
    return [
        {"params": members, "weight_decay": settings.weight_decay / factor if weight else 0.0, "lr_scale": factor}
        for (weight, factor), members in sorted(groups.items(), key=lambda item: not item[0][0])
    ]


def _beta_lasso(network: nn.Module, settings: BetaLasso) -> BetaLassoSGD:
    """beta-LASSO with ``conv_lambda`` for convolutions and the first layer, a convolution's stand-in in S-FC.

    All other weights have ``fc_lambda``; biases and norms are not penalised.
    """
    maps = [module for module in network.modules() if isinstance(module, SparseMap)]
    kernels = {layer.weight for layer in maps if layer is maps[0] or isinstance(layer, SparseConv)}
    weights = [parameter for parameter, weight, _ in parameters(network) if weight]
    groups: Groups = [
        {"params": [w for w in weights if w in kernels], "lasso": settings.conv_lambda},
        {"params": [w for w in weights if w not in kernels], "lasso": settings.fc_lambda},
    ]
    groups = [{**group, "weight_decay": settings.weight_decay} for group in groups]
    free = [parameter for parameter, weight, _ in parameters(network) if not weight]
    return _apart(BetaLassoSGD)([*groups, {"params": free}], lr=settings.lr, beta=settings.beta)


def _timm(groups: Groups, settings: Timm) -> torch.optim.Optimizer:
    """Make timm's optimiser after checking its name and arguments, since timm silently drops some unknown ones."""
    timm: Any = importlib.import_module("timm.optim")
    said = f"optim.optimizer={settings.optimizer}"
    name, known = settings.optimizer.lower().removeprefix("lookahead_"), timm.list_optimizers()
    if name not in known:
        raise UserError(
            f"{said}: timm has no such optimiser{_nearest(name, known)}; timm.optim.list_optimizers() has all"
        )
    if timm.get_optimizer_info(name).second_order:
        raise UserError(f"{said}: needs second derivatives, which training does not compute")
    try:
        accepted = inspect.signature(timm.get_optimizer_class(name, bind_defaults=False)).parameters
    except (ImportError, AssertionError) as error:  # of a library beside timm
        raise UserError(f"{said}: {' '.join(str(error).split())}") from None

    arguments: dict[str, Any] = {}
    for argument, value in (settings.arguments or {}).items():
        if argument in ("lr", "weight_decay"):
            raise UserError(f"optim.arguments.{argument}={value}: set optim.{argument}")
        own = [name for name in accepted if name not in ("params", "lr", "weight_decay")]
        if argument not in own:
            raise UserError(
                f"optim.arguments.{argument}={value}: {settings.optimizer} has no such argument"
                f"{_nearest(argument, own)}; it has {', '.join(own)}"
            )
        arguments[argument] = tuple(value) if isinstance(value, list) else value
        default = accepted[argument].default
        if not _resembles(arguments[argument], default):
            like = list(default) if isinstance(default, tuple) else default
            raise UserError(f"optim.arguments.{argument}={value}: {settings.optimizer} takes something like {like}")
    if "deterministic" in accepted:  # Kron's, which else draws from the global random state
        arguments.setdefault("deterministic", True)
    try:
        optimizer: torch.optim.Optimizer = timm.create_optimizer_v2(
            groups, settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay, **arguments
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{said}: {' '.join(str(error).split())} (optim.arguments={settings.arguments})") from None
    return optimizer


def _resembles(value: object, default: object) -> bool:
    """Whether a value has the type of a default: None always has, and any value if there is no default."""
    if value is None or default is None or default is inspect.Parameter.empty:
        return True
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) == len(default)
    if isinstance(default, bool | str):
        return type(value) is type(default)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"; the nearest is {near[0]}" if near else ""
