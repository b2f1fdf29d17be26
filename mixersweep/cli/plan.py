"""``mixersweep plan``: list the runs that overrides mean, and what training them would cost."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixersweep import completer
from mixersweep.cli.terminal import say
from mixersweep.errors import DONE, USER_MISTAKE
from mixersweep.runs.state import State

if TYPE_CHECKING:
    from mixersweep.sweeps.expand import Expansion
    from mixersweep.sweeps.plan import PlannedRun


def add(verbs: Any) -> None:
    """Declare ``plan [-m] [key=value ...]``, with the overrides of ``train``."""
    verb = verbs.add_parser(
        "plan", help="what train with the same overrides would cost: sizes, memory, time; trains nothing"
    )
    verb.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings, as for train"
    ).completer = completer.overrides
    verb.add_argument("-m", "--multirun", action="store_true", help="as for train; several values mean it anyway")
    verb.add_argument("--config-dir", metavar="DIR", help="as for train: more choices, e.g. DIR/experiment/NAME.yaml")
    verb.add_argument("--json", action="store_true", help="one object a run and nothing else")
    verb.add_argument("--figure", type=Path, metavar="FILE", help="draw width and density against channels (png, svg)")
    verb.add_argument("--measure", action="store_true", help="time a few steps of each shape, and keep what they took")
    verb.set_defaults(run=plan)


def plan(options: argparse.Namespace) -> int:
    """``plan [-m] [key=value ...]``: print the runs, their cost and their state; nothing is trained."""
    from mixersweep.compose import config_dir_arguments, find_user_dir
    from mixersweep.config import warnings
    from mixersweep.sweeps.cluster import estimate
    from mixersweep.sweeps.expand import expand
    from mixersweep.sweeps.plan import plan as planned
    from mixersweep.sweeps.plan import slow_reasons

    config_dir = [] if options.config_dir is None else config_dir_arguments(find_user_dir(options.config_dir))
    expansion = expand(
        [*config_dir, *options.overrides], multirun=options.multirun or _has_several_values(options.overrides) or None
    )
    rows = planned(expansion)
    runs = [row.run for row in rows if row.run is not None]
    if options.figure is not None:
        from mixersweep.sweeps.figure import draw

        draw(runs, options.figure)
        say(f"drawn: {options.figure}")
    if options.measure:
        _measure(expansion, rows)
        rows = planned(expansion)
    if options.json:
        for row in rows:
            if row.run is not None:
                print(json.dumps(row.record))
    else:
        _print(expansion, rows)
    of_slurm = estimate(expansion, rows)
    for notice in [*expansion.notices, *slow_reasons(expansion, rows), *(of_slurm.notes if of_slurm else [])]:
        say(f"note: {notice}")
    warned = Counter(warning for run in runs for warning in warnings(run.config, run.architecture))
    for warning, count in warned.items():
        say(f"note: {warning} ({count} of {len(runs)} runs)")
    for reason, count in Counter(row.point.infeasible for row in rows if row.state is State.INFEASIBLE).items():
        say(f"infeasible: {reason}" + (f" ({count} points)" if count > 1 else ""))
    return DONE if runs or not rows else USER_MISTAKE


def _print(expansion: Expansion, rows: list[PlannedRun]) -> None:
    from mixersweep.sweeps.cluster import estimate
    from mixersweep.sweeps.plan import concurrency, plan_packs, table, totals

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if any(row.run is not None for row in rows):
        print("\n".join(table(rows, columns)))
    packed = plan_packs(expansion, rows)
    print("\n".join(totals(rows, concurrency(expansion, rows)[0], packed)))
    if (of_slurm := estimate(expansion, rows, packed)) is not None:
        print("\n".join(of_slurm.lines))
    waiting = {row.point.waiting: None for row in rows if row.point.waiting is not None}
    for reason in waiting:
        say(f"waiting {reason}")


def _measure(expansion: Expansion, rows: list[PlannedRun]) -> None:
    """Time the network shapes that no completed run has timed."""
    from mixersweep.sweeps.measure import measure
    from mixersweep.sweeps.plan import concurrency
    from mixersweep.sweeps.times import Times

    runs = [row.run for row in rows if row.run is not None and row.state is not State.COMPLETED]
    times = Times(expansion.runs_dir, runs)
    unknown = [run for run in runs if not times.is_from_runs(run)]
    if not unknown:
        say("nothing to measure: completed runs tell how long each takes")
        return
    jobs, threads = concurrency(expansion, rows)
    times.calibration.add([])  # an unwritable file should fail before minutes are spent
    say(f"measuring {jobs} at once, {threads} thread{'' if threads == 1 else 's'} each")
    for entry in measure(unknown, jobs, threads, say):
        times.calibration.add([entry])


def _has_several_values(overrides: list[str]) -> bool:
    """Whether an override has several values, for which ``train`` needs ``-m``."""
    from mixersweep.compose import parse_overrides

    return any(override.is_sweep_override() for override in parse_overrides(overrides))
