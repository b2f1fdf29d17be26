"""``mixersweep bench``: measure speed, as ratios to named alternatives."""

from __future__ import annotations

import argparse
from typing import Any

from mixersweep.errors import DONE


def add(verbs: Any) -> None:
    """Declare ``bench SUITE``."""
    verb = verbs.add_parser("bench", help="measure speed against named alternatives")
    verb.add_argument("suite", choices=("layers", "step", "loader", "train", "pack"), help="what is measured")
    verb.add_argument("--json", action="store_true", help="one object a line and nothing else")
    verb.add_argument("--all", action="store_true", help="also what takes minutes")
    verb.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one")
    verb.set_defaults(run=bench)


def bench(options: argparse.Namespace) -> int:
    """``bench SUITE``: measure layers, steps, loaders, training or packs against their named alternatives."""
    import json

    import torch

    from mixersweep.bench import SUITES, measure, verdict
    from mixersweep.training.environment import choose_device, choose_threads

    device = choose_device(options.device)
    torch.set_num_threads(choose_threads("auto"))
    records = []
    for case in SUITES[options.suite](options.all):
        record = measure(case, device)
        records.append(record)
        if options.json:
            print(json.dumps(record), flush=True)
            continue
        sizes = " ".join(f"{key}={value}" for key, value in case.sizes.items() if value is not None)
        print(f"{record['ratio']:8.3g}x  {case.benchmark:28} {case.mode:9} {sizes}", flush=True)
    if (found := verdict(records)) is not None:
        print(json.dumps(found) if options.json else describe_verdict(found), flush=True)
    return DONE


def describe_verdict(verdict: dict[str, Any]) -> str:
    """Say in one line which code paths of ours were slower than torch's own."""
    compared, slower, unsure = verdict["compared"], verdict["slower"], verdict["unsure"]
    parts = [
        f"torch's own is faster in {len(slower) or 'none'} of {compared} paths (lowest {verdict['lowest_ratio']:.2g}x)"
    ]
    for heading, records in (("", slower), ("cannot tell, the machine is too busy: ", unsure)):
        named = [
            f"{one['benchmark']} width={one['width']} batch_size={one['batch_size']} {one['ratio']:.2g}x "
            f"({one['ratio_low']:.2g} to {one['ratio_high']:.2g})"
            for one in records
        ]
        if named:
            parts.append(heading + ", ".join(named))
    return "; ".join(parts)
