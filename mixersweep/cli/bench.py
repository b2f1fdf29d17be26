"""``mixersweep bench``: speed, as ratios."""

from __future__ import annotations

import argparse
from typing import Any

from mixersweep.errors import DONE


def add(verbs: Any) -> None:
    """``bench SUITE``."""
    verb = verbs.add_parser("bench", help="measure speed against named alternatives")
    verb.add_argument("suite", choices=("layers", "step", "loader", "train", "pack"))
    verb.add_argument("--json", action="store_true", help="one object a line and nothing else")
    verb.add_argument("--all", action="store_true", help="also what takes minutes")
    verb.add_argument("--device", default="auto")
    verb.set_defaults(run=bench)


def bench(options: argparse.Namespace) -> int:
    """``bench SUITE``: measure layers, steps, loaders, training or packs against their named alternatives."""
    import json

    import torch

    from mixersweep.bench import SUITES, measure
    from mixersweep.training.environment import choose_device, choose_threads, keep_freed_memory

    keep_freed_memory()
    device = choose_device(options.device)
    torch.set_num_threads(choose_threads("auto"))
    for case in SUITES[options.suite](options.all):
        record = measure(case, device)
        if options.json:
            print(json.dumps(record), flush=True)
            continue
        sizes = " ".join(f"{key}={value}" for key, value in case.sizes.items() if value is not None)
        print(f"{record['ratio']:8.3g}x  {case.benchmark:28} {case.mode:9} {sizes}", flush=True)
    return DONE
