"""``mixersweep analyze VERB [RUNS ...]``: look inside finished networks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mixersweep import completer
from mixersweep.cli.terminal import report as say
from mixersweep.errors import DONE, UserError

VERBS = {
    "cka": "how alike the hidden features of groups of runs are",
    "spectrum": "singular values of effective weights, at the start, at kept checkpoints, at the end",
    "sparsity": "what trained effective weights look like, and whether training pulls them as an L1 penalty would",
    "receptive_field": "how many pixels reach a unit after each layer",
    "effective": "the patterns of the effective matrices: drawn, exported, counted",
    "cost": "parameters, memory, FLOPs and time of networks, measured here",
    "landscape": "loss under perturbations of the weights",
}


def add(verbs: Any) -> None:
    """``analyze cka|spectrum|sparsity|receptive_field|effective|cost|landscape [RUNS ...]``."""
    parser = verbs.add_parser("analyze", help="look inside finished networks: similarity, spectra, sparsity, ...")
    inner = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    made = {}
    for name, said in VERBS.items():
        verb = made[name] = inner.add_parser(name, help=said, description=f"{said[0].upper()}{said[1:]}.")
        what = "run directories, or directories of runs (default: runs)"
        if name in ("effective", "receptive_field", "cost"):
            what = "run directories, directories of runs, or key=value settings as of train, several values with commas"
        verb.add_argument("places", nargs="*", metavar="RUNS", help=what).completer = completer.run_dirs
        verb.add_argument("--where", metavar="CONDITION", help="only runs such as 'width>=1000 and model=sw_mlp'")
        verb.add_argument("--out", metavar="DIR", type=Path, help=f"where the files go (default: analysis/{name})")
        verb.add_argument("--no-figure", action="store_true", help="numbers alone, without matplotlib")
        verb.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one")
        verb.set_defaults(run=analyze, verb=name)
    made["cka"].add_argument(
        "--reference", metavar="CONDITION", help="the group that all others are compared with (default: the first)"
    )
    made["spectrum"].add_argument(
        "--epochs", choices=("all", "first", "last"), default="all", help="which kept weights (all)"
    )
    sparsity = made["sparsity"]
    sparsity.add_argument("--no-test", action="store_true", help="leave out the test of proposition 3.3")
    sparsity.add_argument("--lambdas", type=int, default=5, help="strengths of the penalty in it (5)")
    sparsity.add_argument("--seeds", type=int, default=5, help="seeds in it (5)")
    made["landscape"].add_argument("--draws", type=int, default=4, help="random directions (4)")
    made["landscape"].add_argument("--images", type=int, default=2000, help="of each split, the first so many (2000)")
    made["landscape"].add_argument("--layers", action="store_true", help="perturb each layer by itself, too")


def analyze(options: argparse.Namespace) -> int:
    """``analyze VERB``: the path of its JSON on stdout."""
    from mixersweep.analysis.output import folder, write
    from mixersweep.training.environment import choose_device, choose_threads, keep_freed_memory

    if not options.no_figure:
        from mixersweep.analysis.drawing import require

        require()
    import torch

    keep_freed_memory()
    torch.set_num_threads(choose_threads("auto"))
    device = choose_device(options.device)
    out = folder(options.out or Path("analysis") / options.verb)
    document, rows, draw = _RUN[options.verb](options, device, out)
    path = write(out, options.verb, document, rows)
    if not options.no_figure:
        draw(document, out)
    print(path, flush=True)
    return DONE


def _chosen(options: argparse.Namespace, *, completed: bool = True) -> list[Any]:
    from mixersweep.analysis.subjects import chosen

    places = [Path(place) for place in options.places] or [completer.runs_dir()]
    found, notes = chosen(places, options.where, completed=completed)
    for note in notes:
        say(note)
    return found


def _cka(options: argparse.Namespace, device: Any, _out: Path) -> Any:
    from mixersweep.analysis import cka
    from mixersweep.runs.where import parse_where

    subjects = _chosen(options)
    reference = None
    if options.reference is not None:
        condition = parse_where(options.reference)
        reference = [subject for subject in subjects if condition(subject.listed.values())]
        if not reference:
            raise UserError(f"--reference {options.reference}: none of the {len(subjects)} runs")
    document, rows = cka.analyze(subjects, reference, device)
    return document, rows, cka.draw


_RUN = {"cka": _cka}
