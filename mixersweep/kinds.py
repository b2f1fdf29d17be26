"""Types and marks of settings: the values that they take, and whether they enter an experiment's fingerprint.

A setting added after runs exist is declared with ``neutral(value)``, where ``value`` means "as before": while it has
that value it stays out of the fingerprint. ``execution()`` marks settings that never change a run's numbers (where and
how it runs), ``input_only()`` those that only determine other settings; both stay out of the fingerprint.
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
MaskKind = Literal[
    "exact", "bernoulli", "fixed_fan_in", "degree_regular", "n_of_m", "block", "expansion", "local", "diagonal"
]
"""The kinds of random masks that ``layers.masks`` draws, a function each."""


def is_percentage(text: str) -> bool:
    """Whether a text is a positive percentage: ``50%``, ``12.5%``, ``400%``."""
    return re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?%", text) is not None and float(text[:-1]) > 0


Percentage = Annotated[str, Predicate(is_percentage)]
"""A percentage of the widest Mixer's size: ``channels=50%`` is half its channels."""

T = TypeVar("T")


class FromEnvironment(str):
    """A text read from an environment variable; it may stand for a number."""


def neutral(value: T) -> T:
    """Declare a setting added after runs exist; its default ``value`` means what they did without it."""
    return field(default=value, metadata={"neutral": value})


def execution(default: Any = dataclasses.MISSING) -> Any:
    """Declare a setting of where and how a run is executed, which stays out of the fingerprint.

    One added later needs a ``default``, for runs that were stored without it.
    """
    return field(default=default, metadata={"execution": True})


def input_only(default: Any = dataclasses.MISSING) -> Any:
    """Declare a setting that only determines others, which are in the fingerprint in its place.

    One added later needs a ``default``, for runs that were stored without it.
    """
    return field(default=default, metadata={"input_only": True})
