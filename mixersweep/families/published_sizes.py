"""MLP-Mixers of published sizes (Hayase & Karakida 2024, Table 1; Tolstikhin et al. 2021), as set in their YAML."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mixersweep.budget import Request
from mixersweep.families.base import FamilyLook, ImageFacts
from mixersweep.families.mixers import MLPMixerFamily, Pretrainable
from mixersweep.kinds import input_only


@dataclass(frozen=True, kw_only=True)
class NamedMixer(MLPMixerFamily, Pretrainable):
    """An MLP-Mixer of a published size."""


@dataclass(frozen=True, kw_only=True)
class MixerSS8(NamedMixer):
    """Mixer-SS/8, the small Mixer of Table 1."""

    name: Literal["mixer_ss_8"]
    look = FamilyLook("sky", "<", "solid")


@dataclass(frozen=True, kw_only=True)
class MixerB16(NamedMixer):
    """Mixer-B/16 (Tolstikhin et al. 2021)."""

    name: Literal["mixer_b16"]
    look = FamilyLook("sky", "H", "solid")


@dataclass(frozen=True, kw_only=True)
class PrintedMixer(MLPMixerFamily):
    """An MLP-Mixer of Table 1 whose printed sizes contradict its printed totals.

    ``as_printed`` takes the size as printed, else the size that gives the totals.
    """

    as_printed: bool = input_only()

    @property
    @abstractmethod
    def sizes(self) -> Mapping[str, int | float]:
        """The one size in which the two readings of the table differ."""

    def request(self, asked: Request, images: ImageFacts) -> Request:
        """Add the size of the chosen reading to the request, unless another was asked for."""
        request = super().request(asked, images)
        open_sizes: dict[str, Any] = {name: size for name, size in self.sizes.items() if getattr(request, name) is None}
        return replace(request, **open_sizes)


@dataclass(frozen=True, kw_only=True)
class MixerSSW(PrintedMixer):
    """Mixer-SS-W, the small wide Mixer of Table 1."""

    name: Literal["mixer_ss_w"]
    look = FamilyLook("gold", ">", "dots")

    @property
    def sizes(self) -> Mapping[str, int | float]:
        """The number of channels."""
        return {"channels": 487 if self.as_printed else 467}


@dataclass(frozen=True, kw_only=True)
class MixerBW(PrintedMixer):
    """Mixer-B-W, the large wide Mixer of Table 1."""

    name: Literal["mixer_b_w"]
    look = FamilyLook("gold", "H", "long")

    @property
    def sizes(self) -> Mapping[str, int | float]:
        """The expansion of its hidden layers."""
        return {"expansion": 4.57 if self.as_printed else 4.10}
