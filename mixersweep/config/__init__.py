"""The schema of all settings (``schema``) and the way into it (``parse``)."""

from mixersweep.config.parse import check_key, keys, owners, parse
from mixersweep.config.schema import (
    FAMILIES,
    OPTIMIZERS,
    VARIANTS,
    AnyMixer,
    AnyModel,
    Config,
    Data,
    LayeredFamily,
    MixerFamily,
    MLPFamily,
    Pretrainable,
    architecture,
    structure,
    warnings,
)

__all__ = [
    "FAMILIES",
    "OPTIMIZERS",
    "VARIANTS",
    "AnyMixer",
    "AnyModel",
    "Config",
    "Data",
    "LayeredFamily",
    "MLPFamily",
    "MixerFamily",
    "Pretrainable",
    "architecture",
    "check_key",
    "keys",
    "owners",
    "parse",
    "structure",
    "warnings",
]
