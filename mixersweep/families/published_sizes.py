"""MLP-Mixers of published sizes, which their YAML sets (Hayase & Karakida 2024, Table 1; Tolstikhin et al. 2021)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from mixersweep.budget import Request
from mixersweep.families.base import FamilyLook, ImageFacts
from mixersweep.families.mixers import MixerFamily, Pretrainable
from mixersweep.kinds import Auto, Positive, asked


@dataclass(frozen=True, kw_only=True)
class NamedMixer(Pretrainable):
    """An MLP-Mixer of a published size."""

    token_expansion: Positive | Auto = asked()
    channel_expansion: Positive | Auto = asked()
    hidden: ClassVar[bool] = True
    tied: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class MixerSS8(NamedMixer):
    """Mixer-SS/8, the small one of Table 1."""

    name: Literal["mixer_ss_8"]
    look = FamilyLook("sky", "<", "solid")


@dataclass(frozen=True, kw_only=True)
class MixerB16(NamedMixer):
    """Mixer-B/16 (Tolstikhin et al. 2021)."""

    name: Literal["mixer_b16"]
    look = FamilyLook("sky", "H", "solid")


@dataclass(frozen=True, kw_only=True)
class PrintedMixer(MixerFamily):
    """A published size where the table contradicts itself: as its totals say, or as its sizes are printed."""

    as_printed: bool = asked()
    token_expansion: Positive | Auto = asked()
    channel_expansion: Positive | Auto = asked()
    hidden: ClassVar[bool] = True
    tied: ClassVar[bool] = True

    @property
    @abstractmethod
    def sizes(self) -> Mapping[str, int | float]:
        """The one setting that the two readings differ in."""

    def request(self, asked: Request, images: ImageFacts) -> Request:
        """With the size of the reading, where none was asked for."""
        request = super().request(asked, images)
        open_sizes: dict[str, Any] = {name: size for name, size in self.sizes.items() if getattr(request, name) is None}
        return replace(request, **open_sizes)


@dataclass(frozen=True, kw_only=True)
class MixerSSW(PrintedMixer):
    """Mixer-SS-W, the small wide one of Table 1."""

    name: Literal["mixer_ss_w"]
    look = FamilyLook("gold", ">", "dots")

    @property
    def sizes(self) -> Mapping[str, int | float]:
        """Its channels."""
        return {"channels": 487 if self.as_printed else 467}


@dataclass(frozen=True, kw_only=True)
class MixerBW(PrintedMixer):
    """Mixer-B-W, the large wide one of Table 1."""

    name: Literal["mixer_b_w"]
    look = FamilyLook("gold", "H", "long")

    @property
    def sizes(self) -> Mapping[str, int | float]:
        """Its expansion."""
        return {"expansion": 4.57 if self.as_printed else 4.10}
