"""The commands ``mixersweep status``, ``retry``, ``cancel`` and ``logs``, which show runs and change their states."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixersweep import completer
from mixersweep.cli.terminal import say
from mixersweep.errors import DONE, FAILED, UserError
from mixersweep.runs.state import SHOWN, State

if TYPE_CHECKING:
    from mixersweep.runs.listing import Listed

REFRESH_SECONDS = 2.0
"""The least seconds between two updates of ``--watch``; the pause is at least five times as long as an update."""

COLOURS: dict[str, str] = {
    **dict.fromkeys((State.FAILED, State.DIVERGED, State.LOST, State.BROKEN), "31"),
    **dict.fromkeys((State.INTERRUPTED, State.PREEMPTED), "33"),
    **dict.fromkeys((State.PLANNED, State.QUEUED, State.CANCELLED), "2"),
    State.RUNNING: "36",
    State.COMPLETED: "32",
}


def add(verbs: Any) -> None:
    """Add the commands ``status``, ``retry``, ``cancel`` and ``logs`` to the parser."""
    filters = argparse.ArgumentParser(add_help=False)
    group: Any = filters.add_argument_group("which runs")
    group.add_argument("--model", metavar="M,..", help="of these families").completer = completer.models
    group.add_argument("--sweep", metavar="NAME", help="of this sweep").completer = completer.sweeps
    group.add_argument("--where", metavar="TEXT", help="such as 'width>=1000 and optim.lr<0.1' (with the quotes)")

    def state(verb: Any, text: str, *, required: bool = False) -> None:
        verb.add_argument("--state", metavar="S,..", help=text, required=required).completer = completer.states

    verb: Any = verbs.add_parser(
        "status", parents=[filters], help="a line a run: state, epoch, accuracy, speed, time left"
    )
    _add_runs_dirs(verb)
    state(verb, "in these states")
    verb.add_argument("--watch", action="store_true", help="draw it again every few seconds, until Ctrl-C")
    verb.add_argument("--json", action="store_true", help="one object a run")
    verb.add_argument("--sort", metavar="NAME", help="by what --json calls it: test_accuracy, since, job, ...")
    verb.add_argument("--counts", action="store_true", help="how many of each model and width are in each state")
    verb.set_defaults(run=status)

    verb = verbs.add_parser(
        "retry", parents=[filters], help="let the same command take up failed or diverged runs again"
    )
    _add_runs_dirs(verb)
    state(verb, "failed, lost, diverged or cancelled ones", required=True)
    verb.add_argument("--keep-checkpoint", action="store_true", help="a diverged run goes on instead of starting anew")
    verb.set_defaults(run=retry)

    verb = verbs.add_parser("cancel", parents=[filters], help="stop runs, and let no command take them up")
    verb.add_argument(
        "runs", nargs="*", metavar="RUN", type=str, help="runs by path or name"
    ).completer = completer.runs
    state(verb, "in these states")
    verb.set_defaults(run=cancel)

    verb = verbs.add_parser("logs", help="the last lines that a run wrote")
    verb.add_argument("run_name", metavar="RUN", help="a run by path or name").completer = completer.runs
    verb.add_argument("-n", "--lines", type=int, default=40, help="how many (40)")
    verb.add_argument("-f", "--follow", action="store_true", help="go on while the run goes on")
    verb.set_defaults(run=logs)


def status(options: argparse.Namespace) -> int:
    """Print the state of runs (``status [RUNS_DIR ...]``); returns the exit code."""
    if options.watch and (options.json or not sys.stdout.isatty()):
        why = "not with --json" if options.json else "needs a terminal; without it, status prints once"
        raise UserError(f"--watch: {why}")
    if options.watch:
        return _watch(options)

    from mixersweep.sweeps.watch import Line, count_table, sort_by, summary, table

    now = time.time()
    lines = sorted((Line.of(listed, now) for listed in _selected(options)), key=lambda line: line.order)
    if options.sort is not None:
        lines = sort_by(options.sort, lines)
    if options.counts:
        print("\n".join([*count_table(lines), summary(line.record["state"] for line in lines)]))
        return DONE
    if options.json:
        for line in lines:
            print(json.dumps(line.record))
        return DONE
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if lines:
        heading, *texts = table(lines, columns, now)
        print("\n".join([heading, *map(_coloured, texts)]))
    print(summary(line.record["state"] for line in lines))
    return DONE


def retry(options: argparse.Namespace) -> int:
    """Make runs planned again, to be trained by the same command (``retry --state S,.. [RUNS_DIR ...]``)."""
    from mixersweep.runs.status import observe_heartbeats
    from mixersweep.sweeps import mend

    states = [State(state) for state in _split_words(options.state, "--state", mend.RETRIABLE)]
    changed, outcomes, selected = [], [], list(_selected(options))
    observe_heartbeats([listed.path for listed in selected if listed.state in (State.LOST, State.CANCELLED)], say)
    for listed in selected:
        done, text = mend.retry(listed.path, states, keep_checkpoint=options.keep_checkpoint, listed=listed)
        outcomes.append((listed, text))
        if done:
            changed.append(listed)
    _print_outcomes(outcomes)
    if not changed:
        say("no run was changed")
        return DONE
    say(f"{len(changed):,} run{' is' if len(changed) == 1 else 's are'} planned again; to train what is left:")
    for command in mend.resume_commands(changed):
        say(f"    {command}")
    return DONE


def cancel(options: argparse.Namespace) -> int:
    """Stop runs for good, by name or by filters such as ``--state`` (``cancel RUN ...``); returns the exit code."""
    from mixersweep.runs.find import find
    from mixersweep.sweeps import mend
    from mixersweep.sweeps.many import Progress

    by_name = [find(run) for run in options.runs]
    filtered = any((options.where, options.state, options.sweep, options.model))
    if not filtered and not all((path / "config.yaml").exists() for path in by_name):
        raise UserError(f"cancel {options.runs[0]}: a directory of many runs; say which with --where or --state")
    if not filtered and not by_name:
        raise UserError("cancel: name runs, or say which with --state, --sweep, --model or --where")
    options.runs_dirs = by_name
    chosen = list(_selected(options))
    broken = [listed for listed in chosen if listed.state is State.BROKEN]
    for listed in broken:
        say(f"{listed.name}: {listed.reason}")
    runs = [listed for listed in chosen if listed.state is not State.BROKEN]
    found = mend.cancel([listed.path for listed in runs], Progress("cancelled", len(runs), say).step)
    _print_outcomes([(listed, text) for listed, (_, text) in zip(runs, found, strict=True)])
    refused = broken or (not filtered and not all(done for done, _ in found))
    return FAILED if refused else DONE


def _print_outcomes(outcomes: Sequence[tuple[Listed, str]]) -> None:
    """Print what was done to each run; for many runs, a count for each outcome, model and width."""
    from mixersweep.sweeps.many import MOST_LINES

    lines = [f"{listed.name}  {text}" for listed, text in outcomes]
    if len(outcomes) > MOST_LINES:
        kinds = Counter((re.sub(r"\bjob \S+", "its job", text), describe_network(listed)) for listed, text in outcomes)
        lines = [f"{count:,} runs of {kind}  {text}" for (text, kind), count in kinds.items()]
    print("\n".join(lines), end="\n" if lines else "")


def describe_network(listed: Listed) -> str:
    """Describe model and width of a run in words."""
    planned = listed.planned
    return f"{planned['model']} of width {planned['width']}" if "model" in planned else "no known model"


def logs(options: argparse.Namespace) -> int:
    """Print the end of a run's ``log.txt``, to which a launcher sends the run's output (``logs RUN``)."""
    from mixersweep.runs.find import find
    from mixersweep.runs.listing import read_listed

    if options.lines < 0:
        raise UserError(f"--lines {options.lines}: expects a whole number, at least 0")
    path = find(options.run_name)
    file = path / "log.txt"
    if not file.exists() and not options.follow:
        raise UserError(f"{path}: has no log.txt; a launcher writes one, a run in a terminal speaks to that")
    position = 0
    while True:
        listed = read_listed(path)  # before the file, so that an ended run's log is complete
        if file.exists():
            with file.open("rb") as log:
                position = position or _before_last_lines(file, options.lines)
                log.seek(position)
                content = log.read()
            position += len(content)
            sys.stdout.write(content.decode(errors="replace"))
            sys.stdout.flush()
        if not options.follow or listed is None or listed.state not in (State.PLANNED, State.QUEUED, State.RUNNING):
            return DONE
        time.sleep(0.5)


def _watch(options: argparse.Namespace) -> int:
    """Redraw the last lines of the table (runs that need a person), as many as fit on the terminal, until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from mixersweep.sweeps.watch import Line, summary, table

    console = Console()

    def render() -> Text:
        now = time.time()
        lines = sorted((Line.of(listed, now) for listed in _selected(options)), key=lambda line: line.order)
        high, wide = max(4, console.size.height), console.size.width
        hidden = max(0, len(lines) - (high - 3))
        heading, *texts = table(lines[hidden:], wide, now)
        above = [f"… {hidden:,} more above"] if hidden else []
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        end = f"{summary(line.record['state'] for line in lines)}   {clock}"
        return Text.from_ansi("\n".join([heading, *above, *map(_coloured, texts), end[: wide - 1]]))

    first = render()  # so that a mistake is reported before the screen switches
    try:
        with Live(first, console=console, auto_refresh=False, screen=True) as live:
            while True:
                began = time.monotonic()
                live.update(render(), refresh=True)
                time.sleep(max(REFRESH_SECONDS, 5 * (time.monotonic() - began)))
    except KeyboardInterrupt:  # the way to end it
        console.print(render())
        return DONE


def _selected(options: argparse.Namespace) -> Iterator[Listed]:
    """Yield the runs in the given directories that match the filters; raises ``UserError`` for an unknown sweep."""
    from mixersweep.families import FAMILIES
    from mixersweep.runs.find import find_all
    from mixersweep.runs.listing import listing
    from mixersweep.runs.where import parse_where
    from mixersweep.sweeps.launchers.slurm_queue import with_slurm_jobs

    states = set(_split_words(options.state, "--state", SHOWN))
    models = set(_split_words(options.model, "--model", FAMILIES))
    condition = None if options.where is None else parse_where(options.where)
    sweeps: set[str] = set()
    problems: list[str] = []

    def in_sweep() -> Iterator[Listed]:
        for listed in listing(find_all(options.runs_dirs)):
            sweep = listed.planned.get("sweep")
            if options.sweep is None or sweep == options.sweep:
                yield listed
            if sweep is not None:
                sweeps.add(sweep)

    for listed in with_slurm_jobs(in_sweep(), problems):
        if states and listed.state not in states:
            continue
        if models and listed.planned.get("model") not in models:
            continue
        if condition is None or condition(listed.values()):
            yield listed
    for problem in problems:
        say(f"note: what Slurm has of these runs is as they were told last: {problem}")
    if options.sweep is not None and options.sweep not in sweeps:
        near = difflib.get_close_matches(options.sweep, sweeps, 1) or sorted(sweeps)[:5]
        known = f"; there is {', '.join(near)}" if near else ""
        raise UserError(f"--sweep {options.sweep}: no run here is of such a sweep{known}")


def _split_words(text: str | None, flag: str, known: Any) -> list[str]:
    """Split a comma-separated list; raises ``UserError`` for a word that is not in ``known``."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, list(known), 1)
            nearest = f"; the nearest is {near[0]}" if near else ""
            raise UserError(f"{flag} {word or repr('')}: not one of {', '.join(known)}{nearest}")
    return words


def _before_last_lines(file: Path, count: int) -> int:
    """Return the position, in bytes, at which the last ``count`` lines of a file begin."""
    with file.open("rb") as log:
        end = position = log.seek(0, os.SEEK_END)
        tail = b""
        while position and tail.count(b"\n") <= count:
            step = min(1 << 16, position)
            position -= step
            log.seek(position)
            tail = log.read(step) + tail
    lines = tail.splitlines(keepends=True)
    return end - sum(map(len, lines[len(lines) - min(count, len(lines)) :]))


def _add_runs_dirs(verb: Any) -> None:
    verb.add_argument(
        "runs_dirs",
        nargs="*",
        metavar="RUNS_DIR",
        help="directories of runs, or runs by path or name (default: runs)",
    )


def _coloured(line: str) -> str:
    """Colour the first word of a line by the state that it names, if printing to a terminal."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return line
    state = line.partition(" ")[0]
    return f"\x1b[{COLOURS[state]}m{state}\x1b[0m{line[len(state) :]}" if state in COLOURS else line
