"""``mixersweep report`` and ``mixersweep diff``: compare the results of many runs, and the settings of a few."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mixersweep import completer
from mixersweep.cli.terminal import say
from mixersweep.errors import DONE, UserError
from mixersweep.paths import report_dir, runs_dir


def add(verbs: Any) -> None:
    """Declare ``report [RUNS_DIR ...]`` and ``diff RUN RUN ...``."""
    verb = verbs.add_parser("report", help="compare completed runs: statistics, figures, one page")
    verb.add_argument(
        "runs_dirs", nargs="*", metavar="RUNS_DIR", help="directories of runs, or runs by path or name (default: runs)"
    )
    verb.add_argument("--where", metavar="CONDITION", help="only runs such as 'width>=1000 and model=sw_mlp'")
    help_text = "settings that name lines of their own: seeds.structure, optim.weight_decay, ..."
    verb.add_argument("--by", metavar="SETTING[,SETTING]", default="", help=help_text)
    verb.add_argument("--out", metavar="DIR", type=Path, help="where the files go (default: report)")
    help_text = "x axis of the main figure: width, parameters, ..."
    verb.add_argument("--x", default="width", metavar="NAME", help=help_text).completer = completer.x_axes
    help_text = "accuracy, error, train_loss, ..."
    verb.add_argument("--y", default="accuracy", metavar="NAME", help=help_text).completer = completer.y_axes
    verb.add_argument("--published", action="store_true", help="lay the papers' curves beside one's own, dashed")
    shapes = verb.add_mutually_exclusive_group()
    for shape, help_text in (
        ("markdown", "print Markdown"),
        ("latex", "print LaTeX tables"),
        ("terminal", "draw the curve and the table here"),
    ):
        shapes.add_argument(f"--{shape}", action="store_true", help=f"{help_text}; files only with --out")
    verb.set_defaults(run=report)

    verb = verbs.add_parser("diff", help="what differs between runs, in settings and result, side by side")
    help_text = "runs by path or name; or sweeps by name, whose test accuracy stands side by side"
    verb.add_argument("runs", nargs="+", metavar="RUN", help=help_text).completer = completer.runs_and_sweeps
    verb.add_argument("--runs-dir", type=Path, default=runs_dir(), help="where names are looked for")
    verb.add_argument("--json", action="store_true", help="one object and nothing else")
    verb.set_defaults(run=diff)


def report(options: argparse.Namespace) -> int:
    """``report``: write the report and print the path of its page, or print what a flag asks for."""
    from mixersweep.report import build
    from mixersweep.runs.find import find_all

    printed = options.markdown or options.latex or options.terminal
    out = options.out or (None if printed else report_dir())
    by = [name for name in options.by.split(",") if name]
    built = build(
        find_all(options.runs_dirs), options.where, out, x=options.x, y=options.y, published=options.published, by=by
    )
    if options.terminal:
        from mixersweep.report.terminal import show

        show(built, options.x, options.y, sys.stdout)
    elif printed:
        print(built.markdown if options.markdown else built.latex, flush=True)
    else:
        from mixersweep.report.text import count_runs

        say(built.answer)
        say(count_runs(built.table, built.all_statistics))
        for name, reason in built.left_out.items():
            say(f"{name}: not drawn, {reason}")
        print(built.page, flush=True)
    return DONE


def diff(options: argparse.Namespace) -> int:
    """``diff``: print settings and sizes that differ between runs, and all results; or compare sweeps by cell."""
    from mixersweep.report.diff import differences, of_sweeps, read

    if len(options.runs) < 2:
        raise UserError(f"{options.runs[0]}: diff takes two runs or more, or two sweeps")
    cells = of_sweeps(options.runs, options.runs_dir)
    if cells is not None:
        return _diff_sweeps(options.runs, cells, as_json=options.json)
    rows = read(options.runs, options.runs_dir)
    found = differences(rows)
    if options.json:
        names = [row["name"] for row in rows]
        groups = {group: dict(lines) for group, lines in found.items()}
        print(json.dumps({"runs": names, **groups}), flush=True)
        return DONE
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(80, 30 + 64 * len(rows)))
    for group, lines in found.items():
        table = Table(title=group, title_justify="left", box=None, pad_edge=False, header_style="bold")
        table.add_column("")
        for row in rows:
            table.add_column(row["name"], overflow="fold")
        for name, values in lines:
            table.add_row(name, *(_format_value(value) for value in values))
        console.print(table if lines else f"{group}: no difference")
        console.print()
    return DONE


def _diff_sweeps(names: list[str], cells: list[Any], *, as_json: bool) -> int:
    """A line a model and width: of each sweep how many runs completed, mean and deviation of their test accuracy."""
    from mixersweep.sweeps.text import align

    if as_json:
        for model, width, per_sweep in cells:
            sweeps = {name: _moments(found) for name, found in zip(names, per_sweep, strict=True)}
            print(json.dumps({"model": model, "width": width, **sweeps}))
        return DONE
    rows = [("model", "width", *names, *(["difference"] if len(names) == 2 else []))]
    for model, width, per_sweep in cells:
        texts = [_format_moments(found) for found in per_sweep]
        if len(names) == 2:
            both = all(count for count, _, _ in per_sweep)
            texts.append(f"{per_sweep[1][1] - per_sweep[0][1]:+.4f}" if both else "-")
        rows.append((model, str(width), *texts))
    print("\n".join(align(rows, set(rows[0]) - {"model"})))
    say("test accuracy: mean ± sample deviation (runs)" if cells else "no run of these sweeps is completed")
    return DONE


def _format_moments(found: tuple[int, float, float]) -> str:
    count, mean, deviation = found
    if count > 1:
        return f"{mean:.4f} ± {deviation:.4f} ({count})"
    return f"{mean:.4f} (1)" if count else "-"


def _moments(found: tuple[int, float, float]) -> dict[str, float | None]:
    count, mean, deviation = found
    return {"runs": count, "mean": mean if count else None, "deviation": deviation if count > 1 else None}


def _format_value(value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return escape(json.dumps(value) if isinstance(value, (bool, list, dict)) else str(value))
