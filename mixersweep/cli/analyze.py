"""``mixersweep analyze VERB [RUNS ...]``: look inside finished networks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from mixersweep import completer
from mixersweep.cli.terminal import say
from mixersweep.errors import DONE, UserError
from mixersweep.paths import analysis_dir
from mixersweep.runs.state import State

VERBS = {
    "cka": "how alike the hidden features of groups of runs are",
    "spectrum": "singular values of effective weights, at the start, at kept checkpoints, at the end",
    "sparsity": "how sparse trained effective weights are, and how training moved that",
    "receptive_field": "how many pixels reach a unit after each layer",
    "effective": "the patterns of the effective matrices: drawn, exported, counted",
    "cost": "parameters, memory, FLOPs and time of networks, measured here",
    "landscape": "loss under perturbations of the weights",
    "coordinates": "how far features move in the first steps, over widths: the coordinate check of learning rates",
}


def add(verbs: Any) -> None:
    """Declare ``analyze cka|spectrum|sparsity|receptive_field|effective|cost|landscape|coordinates [RUNS ...]``."""
    parser = verbs.add_parser("analyze", help="look inside finished networks: similarity, spectra, sparsity, ...")
    inner = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    parsers = {}
    for name, description in VERBS.items():
        sentence = f"{description[0].upper()}{description[1:]}."
        verb = parsers[name] = inner.add_parser(name, help=description, description=sentence)
        what = "directories of runs, or runs by path or name (default: runs)"
        if name in ("effective", "receptive_field", "cost", "coordinates"):
            what = "directories of runs, runs by path or name, or settings as of train, several values with commas"
        if name == "coordinates":
            what += " (default: four small families under SGD and AdamW with each optim.lr_scaling)"
        verb.add_argument("arguments", nargs="*", metavar="RUNS", help=what).completer = completer.runs
        verb.add_argument("--where", metavar="CONDITION", help="only runs such as 'width>=1000 and model=sw_mlp'")
        verb.add_argument("--out", metavar="DIR", type=Path, help=f"where the files go (default: analysis/{name})")
        verb.add_argument("--no-figure", action="store_true", help="numbers alone")
        verb.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one")
        verb.set_defaults(run=analyze, verb=name)
    parsers["cka"].add_argument(
        "--reference", metavar="CONDITION", help="the group that all others are compared with (default: the first)"
    )
    parsers["spectrum"].add_argument(
        "--epochs", choices=("all", "first", "last"), default="all", help="which kept weights (all)"
    )
    parsers["cost"].add_argument("--no-measure", action="store_true", help="count only, train no step")
    landscape = parsers["landscape"]
    landscape.add_argument("--draws", type=int, default=4, help="random directions (4)")
    landscape.add_argument("--images", type=int, default=2000, help="of each split, the first so many (2000)")
    landscape.add_argument("--layers", action="store_true", help="perturb each layer by itself, too")
    _add_coordinates(parsers["coordinates"])


def _add_coordinates(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--over", choices=("width", "density"), default="width", help="what sizes are drawn against (width)"
    )
    verb.add_argument(
        "--sizes", metavar="S,S,...", help="tokens = channels of networks whose settings name no shape (8,16,32,64)"
    )
    verb.add_argument("--steps", default="1,2,4,8", metavar="N,N,...", help="steps after which to look (1,2,4,8)")
    verb.add_argument("--seeds", type=int, default=3, help="networks drawn of each (3)")
    verb.add_argument("--images", type=int, default=64, help="of the one batch that is trained on (64)")


def analyze(options: argparse.Namespace) -> int:
    """``analyze VERB``: run an analysis and print the path of its JSON."""
    import torch

    from mixersweep.analysis.output import folder, write
    from mixersweep.training.environment import choose_device, choose_threads, keep_freed_memory

    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(choose_threads("auto"))
    device = choose_device(options.device)
    out = folder(options.out or analysis_dir(options.verb))
    document, rows, draw = _ANALYSES[options.verb](options, device, out)
    path = write(out, options.verb, document, rows)
    if not options.no_figure:
        draw(document, out)
    print(path, flush=True)
    return DONE


def _select(options: argparse.Namespace, *, completed: bool = True) -> list[Any]:
    from mixersweep.analysis.subjects import chosen
    from mixersweep.runs.find import find_all

    found, notes = chosen(find_all(options.arguments), options.where, completed=completed)
    for note in notes:
        say(note)
    return found


def _cka(options: argparse.Namespace, device: Any, _out: Path) -> Any:
    from mixersweep.analysis import cka
    from mixersweep.runs.where import parse_where

    subjects = _select(options)
    reference = None
    if options.reference is not None:
        condition = parse_where(options.reference)
        reference = [subject for subject in subjects if condition(subject.listed.values())]
        if not reference:
            raise UserError(f"--reference {options.reference}: none of the {len(subjects)} runs")
    document, rows = cka.analyze(subjects, reference, device)
    return document, rows, cka.draw


def _spectrum(options: argparse.Namespace, _device: Any, _out: Path) -> Any:
    from mixersweep.analysis import spectrum

    return *spectrum.analyze(_select(options), options.epochs), spectrum.draw


def _sparsity(options: argparse.Namespace, _device: Any, _out: Path) -> Any:
    from mixersweep.analysis import sparsity

    return *sparsity.analyze(_select(options)), sparsity.draw


def _landscape(options: argparse.Namespace, device: Any, _out: Path) -> Any:
    from mixersweep.analysis import landscape

    if options.draws < 1 or options.images < 1:
        raise UserError(f"--draws {options.draws} --images {options.images}: at least 1 of each")
    found = landscape.analyze(
        _select(options), device, draws=options.draws, images=options.images, by_layer=options.layers
    )
    return *found, landscape.draw


def _receptive_field(options: argparse.Namespace, _device: Any, _out: Path) -> Any:
    from mixersweep.analysis import receptive_field
    from mixersweep.models import build

    networks = {
        name: (build(run.config, run.architecture), run.config.image_size, run.config.data.image_channels)
        for name, run in _networks(options).items()
    }
    return *receptive_field.analyze(networks), receptive_field.draw


def _effective(options: argparse.Namespace, _device: Any, out: Path) -> Any:
    from mixersweep.analysis import effective
    from mixersweep.models import build

    if _are_settings(options.arguments):
        networks = {name: build(run.config, run.architecture) for name, run in _networks(options).items()}
    else:
        subjects = _first_of_each_group(_select(options, completed=False))
        networks = {
            name: subject.network(None if subject.listed.state is State.COMPLETED else 0)
            for name, subject in subjects.items()
        }
    networks = dict(zip(effective.names_of(list(networks)), networks.values(), strict=True))
    document, rows = effective.analyze(networks, out)
    from mixersweep.analysis.output import markdown

    say("\n" + markdown([{k: v for k, v in row.items() if k != "file"} for row in rows]).rstrip())
    return document, rows, lambda _document, folder: effective.draw(networks, folder)


def _cost(options: argparse.Namespace, device: Any, _out: Path) -> Any:
    from mixersweep.analysis import cost

    return *cost.analyze(_networks(options), device, measured=not options.no_measure), cost.draw


def _coordinates(options: argparse.Namespace, device: Any, _out: Path) -> Any:
    from mixersweep.analysis import coordinates
    from mixersweep.analysis.output import markdown

    steps = _parse_counts("--steps", options.steps)
    if options.seeds < 1 or options.images < 2:
        raise UserError(f"--seeds {options.seeds} --images {options.images}: at least 1 seed and 2 images")
    networks = _coordinate_networks(options)
    document, rows = coordinates.analyze(
        networks, device, over=options.over, steps=steps, seeds=options.seeds, images=options.images
    )
    say("\n" + markdown(coordinates.brief(document)).rstrip())
    return document, rows, coordinates.draw


def _coordinate_networks(options: argparse.Namespace) -> list[Any]:
    """The networks of a coordinate check, from run directories, settings or defaults.

    Settings without a shape apply to the Mixers of ``--sizes``, and to MLPs of their width and connections.
    """
    from mixersweep.analysis.coordinates import DEFAULT, SIZES, SMALL

    has_sizes = options.sizes is not None
    sizes = _parse_counts("--sizes", options.sizes) if has_sizes else list(SIZES)
    arguments = options.arguments
    has_shapes = bool(arguments) and (
        not _are_settings(arguments) or any(text.partition("=")[0].lstrip("+") in _SHAPE_SETTINGS for text in arguments)
    )
    if has_shapes or options.over != "width":
        if has_sizes:
            raise UserError(f"--sizes {options.sizes}: the networks have shapes of their own; leave it out")
        return list(_networks(options).values())
    grids = [list(arguments)] if arguments else [[*grid, *SMALL] for grid in DEFAULT]
    return [
        run
        for grid in grids
        for size in sizes
        for run in _networks(options, [*grid, f"tokens={size}", f"channels={size}"]).values()
    ]


_SHAPE_SETTINGS = ("width", "tokens", "channels", "connections", "weights", "flops", "density", "budget", "experiment")
"""The settings that determine a network's shape."""


def _parse_counts(flag: str, text: str) -> list[int]:
    """Parse comma-separated rising whole numbers; raises ``UserError`` for anything else."""
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise UserError(f"{flag} {text}: takes whole numbers of at least 1 with commas between them, e.g. 1,2,4")
    return found


def _are_settings(arguments: list[str]) -> bool:
    """Whether the arguments of a verb are settings; raises ``UserError`` where only some are."""
    settings = ["=" in argument and not Path(argument).exists() for argument in arguments]
    if any(settings) and not all(settings):
        raise UserError(f"{arguments[settings.index(False)]}: give run directories or key=value settings, not both")
    return any(settings)


def _networks(options: argparse.Namespace, settings: list[str] | None = None) -> dict[str, Any]:
    """The solved runs that settings mean, or one run of each group that differs only in seeds.

    ``settings`` replace the arguments of the verb.
    """
    from mixersweep.analysis.cost import named

    arguments = options.arguments if settings is None else settings
    if not _are_settings(arguments):
        subjects = _first_of_each_group(_select(options, completed=False))
        return {name: subject.directory.run for name, subject in subjects.items()}
    from mixersweep.compose import parse_overrides
    from mixersweep.sweeps.expand import expand

    if options.where is not None:
        raise UserError(f"--where {options.where}: is for run directories, not for settings")
    several = any(override.is_sweep_override() for override in parse_overrides(arguments))
    points = expand(arguments, multirun=several or None).points
    for point in points:
        if point.run is None:
            say(f"left out: {point.infeasible or point.waiting}")
    runs = [point.run for point in points if point.run is not None]
    if not runs:
        raise UserError(f"{' '.join(arguments)}: no network meets these settings")
    return named([(f"{run.config.model.name} w{run.architecture.width}", run) for run in runs])


def _first_of_each_group(subjects: list[Any]) -> dict[str, Any]:
    from mixersweep.analysis.subjects import groups

    return {label: runs[0] for label, runs in groups(subjects).items()}


_ANALYSES = {
    "cka": _cka,
    "spectrum": _spectrum,
    "sparsity": _sparsity,
    "receptive_field": _receptive_field,
    "effective": _effective,
    "cost": _cost,
    "landscape": _landscape,
    "coordinates": _coordinates,
}
