"""All settings of a run (``schema``), their checks (``parse``) and the network that they mean (``network``)."""

from mixersweep.config.network import architecture, image_facts, request_of, warnings
from mixersweep.config.parse import check_key, keys, owners, parse, parse_sweep, settings
from mixersweep.config.schema import OPTIMIZERS, VARIANTS, Config, Data
from mixersweep.config.sweep import Search, Sweep

__all__ = [
    "OPTIMIZERS",
    "VARIANTS",
    "Config",
    "Data",
    "Search",
    "Sweep",
    "architecture",
    "check_key",
    "image_facts",
    "keys",
    "owners",
    "parse",
    "parse_sweep",
    "request_of",
    "settings",
    "warnings",
]
