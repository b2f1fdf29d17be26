"""All settings of a run and of the families, the way into them (``parse``) and on to the rule (``network``)."""

from mixersweep.config.families import (
    FAMILIES,
    AnyMixer,
    AnyModel,
    LayeredFamily,
    MixerFamily,
    MLPFamily,
    Pretrainable,
)
from mixersweep.config.network import architecture, request_of, structure, warnings
from mixersweep.config.parse import check_key, keys, owners, parse, parse_sweep, settings
from mixersweep.config.schema import OPTIMIZERS, VARIANTS, Config, Data
from mixersweep.config.sweep import Search, Sweep

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
    "Search",
    "Sweep",
    "architecture",
    "check_key",
    "keys",
    "owners",
    "parse",
    "parse_sweep",
    "request_of",
    "settings",
    "structure",
    "warnings",
]
