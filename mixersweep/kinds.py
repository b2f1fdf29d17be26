"""The kinds of settings: what values they take, and whether they make the experiment.

A setting that is added later is declared with ``neutral(value)``, the value that means "as before this setting
existed": it is left out of the fingerprint while it has it. ``execution()`` marks what never changes the numbers of
an experiment (where and how it runs), ``asked()`` what only led to other settings: neither is in the fingerprint.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import field
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt, Predicate

Auto = Literal["auto"]
Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Probability = Annotated[float, Ge(0), Le(1)]
Density = Annotated[float, Gt(0), Le(1)]


def is_percentage(text: str) -> bool:
    """Whether it is a positive percentage: ``50%``, ``12.5%``, ``400%``."""
    return re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?%", text) is not None and float(text[:-1]) > 0


Percentage = Annotated[str, Predicate(is_percentage)]
"""Of the widest Mixer's size: ``channels=50%`` is half as many as it has."""

T = TypeVar("T")


class FromEnvironment(str):
    """A text that came from a variable of the environment, where there are only texts: it may mean a number."""


def neutral(value: T) -> T:
    """A setting added after runs existed; ``value`` means what they did."""
    return field(default=value, metadata={"neutral": value})


def execution(default: Any = dataclasses.MISSING) -> Any:
    """A setting of where and how a run is executed: not part of the experiment, not in the fingerprint.

    One that is added later has a ``default``, for the runs that were frozen without it.
    """
    return field(default=default, metadata={"execution": True})


def asked(default: Any = dataclasses.MISSING) -> Any:
    """A setting that only says how others were asked for; what came of it is in the fingerprint instead.

    One that is added later has a ``default``, for the runs that were frozen without it.
    """
    return field(default=default, metadata={"asked": True})
