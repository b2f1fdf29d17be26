"""``mixersweep wandb sync | report | workspace``: upload runs and reports to W&B after training."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixersweep import paths
from mixersweep.cli.terminal import say
from mixersweep.errors import DONE, FAILED, MixersweepError, UserError
from mixersweep.runs.state import State

if TYPE_CHECKING:
    from mixersweep.tracking.identity import Destination


def add(verbs: Any) -> None:
    """Declare ``wandb`` and its three actions."""
    verb = verbs.add_parser("wandb", help="upload runs, a sweep's report or a view of the project to W&B")
    actions = verb.add_subparsers(title="actions", metavar="ACTION", required=True)
    project = argparse.ArgumentParser(add_help=False)
    project.add_argument("--project", type=_project, metavar="NAME", help="of W&B (default: that of the runs)")
    project.add_argument("--entity", metavar="NAME", help="user or team (default: that of the runs, or of the key)")

    action = actions.add_parser("sync", parents=[project], help="upload what is not at W&B yet of all runs")
    action.add_argument("runs_dirs", nargs="*", metavar="RUNS_DIR", help="directories of runs, or runs by path or name")
    action.add_argument("--where", metavar="CONDITION", help="only runs such as 'width>=1000 and model=sw_mlp'")
    action.add_argument("--again", action="store_true", help="also runs that are known to be there")
    action.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="to wait for an answer (60)")
    action.add_argument("--jobs", type=int, default=4, metavar="N", help="runs that go up at once (4)")
    action.set_defaults(run=sync)

    action = actions.add_parser("report", parents=[project], help="upload the figures, tables, statistics of a sweep")
    action.add_argument("sweep", metavar="SWEEP", help="its name, as train -m and status show it").completer = sweeps
    action.add_argument("--runs-dir", type=Path, metavar="DIR", help="where the sweep was trained")
    action.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="to wait for an answer (60)")
    action.add_argument("--where-online", action="store_true", help="do nothing where W&B is offline or without a key")
    action.set_defaults(run=report)

    action = actions.add_parser("workspace", parents=[project], help="save a view of the project: width, accuracy, ...")
    action.add_argument("--experiment", action="append", default=[], metavar="NAME", help="show its runs only")
    action.add_argument("--view", metavar="URL", help="change this saved view instead of making one")
    action.set_defaults(run=workspace)


def _project(name: str) -> str:
    from mixersweep.tracking.identity import check_project

    check_project(name, "--project ")
    return name


def sweeps(prefix: str, **_: object) -> list[str]:
    """Complete the names of sweeps in the shell."""
    return [name for name in _sweep_names(paths.runs_dir()) if name.startswith(prefix)]


def sync(options: argparse.Namespace) -> int:
    """``wandb sync``: upload runs and print their directories; returns 1 if an upload failed."""
    from mixersweep.runs.find import find_all
    from mixersweep.runs.listing import listing
    from mixersweep.runs.where import parse_where
    from mixersweep.tracking.upload import SyncOptions, sync

    if options.jobs < 1 or options.timeout <= 0:
        raise UserError(f"--jobs {options.jobs} --timeout {options.timeout:g}: both are above 0")
    condition = parse_where(options.where) if options.where is not None else None
    found = listing(find_all(options.runs_dirs))
    runs = (run for run in found if condition is None or condition(run.values()))

    def print_result(run_dir: Path, problem: str | None) -> None:
        if problem is None:
            print(run_dir, flush=True)
        else:
            say(f"{run_dir.name}: not uploaded, {problem}")

    wanted = SyncOptions(options.project, options.entity, options.again, options.timeout, options.jobs)
    synced = sync(runs, wanted, print_result)
    parts = [
        f"{len(synced.uploaded)} uploaded",
        f"{len(synced.already_there)} there already",
        f"{len(synced.failed)} not uploaded",
    ]
    parts += [f"{len(synced.training)} in training, mirrored meanwhile"] if synced.training else []
    parts += [f"{len(synced.empty)} with nothing yet"] if synced.empty else []
    say(f"W&B: {', '.join(parts)}")
    return FAILED if synced.failed else DONE


def report(options: argparse.Namespace) -> int:
    """``wandb report``: upload a sweep's report and print the URL of its run."""
    from mixersweep.runs.listing import listing
    from mixersweep.tracking.identity import Destination

    runs_dir = options.runs_dir or paths.runs_dir()
    folder, sweep = _read_sweep(runs_dir, options.sweep)
    names = set(sweep["runs"])
    runs = [run for run in listing([runs_dir]) if run.name in names]
    completed = [run for run in runs if run.state is State.COMPLETED]
    if not completed:
        raise MixersweepError(f"{options.sweep}: none of its {len(runs)} runs in {runs_dir} is completed")
    settings = completed[0].config["tracking"]
    destination = Destination(options.project or settings["project"], options.entity or settings["entity"])
    url = _send(folder, {**sweep, "runs": len(runs)}, [run.path for run in runs], destination, options)
    if url is not None:
        print(url, flush=True)
    return DONE


def _send(
    folder: Path, sweep: dict[str, Any], runs: list[Path], destination: Destination, options: argparse.Namespace
) -> str | None:
    """Build the report and upload it; returns its URL, or None if W&B is offline and it was only for online."""
    from mixersweep.report.build import build, write
    from mixersweep.tracking import REPORT_LOG, leave_agent, processes

    if options.where_online and os.environ.get("WANDB_MODE", "online") not in ("online", "run"):
        return None
    leave_agent()
    processes.prepare_environment(os.environ)

    from wandb.errors import CommError, UsageError

    from mixersweep.report.to_wandb import open_run, send
    from mixersweep.tracking.client import append_output_to, first_line, is_refused, lacks_key, user_error

    code = FAILED
    try:
        with append_output_to(folder / "wandb" / REPORT_LOG):
            run = open_run(folder, sweep, destination, options.timeout)
            try:
                built = dataclasses.replace(build(runs), command=f"mixersweep wandb report {sweep['name']}")
                send(run, write(built, folder / "report", "width", "accuracy", published=False), options.timeout)
                code = DONE
            finally:
                run.finish(exit_code=code)
            if is_refused(run):
                raise MixersweepError("W&B refused the report; it may have been deleted there, or the key be read-only")
    except UsageError as error:
        if options.where_online and lacks_key(error):
            return None
        raise user_error(error) from None
    except (CommError, TimeoutError, ValueError) as error:  # a failed artifact raises ValueError
        raise MixersweepError(f"W&B: {first_line(error)}") from None
    return str(run.url)


def workspace(options: argparse.Namespace) -> int:
    """``wandb workspace``: print the URL of the view."""
    from mixersweep.tracking.identity import Destination
    from mixersweep.tracking.workspace import save

    print(
        save(Destination(options.project or "mixersweep", options.entity), options.experiment, options.view), flush=True
    )
    return DONE


def _sweep_names(runs_dir: Path) -> list[str]:
    folder = paths.sweeps_dir(runs_dir)
    return sorted(str(file.parent.relative_to(folder)) for file in folder.rglob("sweep.json"))


def _read_sweep(runs_dir: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a sweep and the content of its ``sweep.json``."""
    from mixersweep.runs.files import read_json

    names = _sweep_names(runs_dir)
    folder = paths.sweeps_dir(runs_dir) / name
    stored = read_json(folder / "sweep.json") if name in names else None
    if not isinstance(stored, dict):
        near = difflib.get_close_matches(name, names, 1)
        nearest = f"the nearest is {near[0]}" if near else f"there are {', '.join(names) or 'none'}"
        raise UserError(f"{name}: no such sweep in {runs_dir}; {nearest}")
    return folder, stored
