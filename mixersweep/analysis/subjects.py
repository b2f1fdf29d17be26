"""Load the runs to analyse, and their networks with the weights of any epoch that was kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixersweep.config import Config
from mixersweep.errors import MixersweepError, UserError
from mixersweep.models import build
from mixersweep.models.branches import Features, mixing_maps
from mixersweep.models.mlp import choose_storage
from mixersweep.models.timm import start_from
from mixersweep.runs import RunDirectory
from mixersweep.runs.experiment import experiment
from mixersweep.runs.listing import Listed, listing
from mixersweep.runs.state import State
from mixersweep.runs.where import parse_where
from mixersweep.training.checkpoint import load_checkpoint

__all__ = ["Features", "Subject", "chosen", "groups", "mixing_maps", "same_data", "settings_of"]

SIZES = ("width", "connections", "tokens", "channels", "expansion", "depth")
_KEPT = re.compile(r"checkpoint-(\d{4,})\.pt$")


@dataclass(frozen=True)
class Subject:
    """One run and its network at any kept epoch; epoch 0 is initialised again from the run's seeds."""

    listed: Listed

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.listed.path

    @cached_property
    def directory(self) -> RunDirectory:
        """The opened run directory; raises ``UserError`` where it cannot be read."""
        return RunDirectory.open(self.path)

    @property
    def config(self) -> Config:
        """The settings of the run."""
        return self.directory.run.config

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.listed.name

    @property
    def record(self) -> Mapping[str, Any]:
        """The record, with every key of ``result.json``; None for what is not known."""
        return self.listed.record

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.config.seed

    @property
    def epochs(self) -> list[int]:
        """The epochs whose weights are available in rising order, from 0; the last epoch only of a completed run."""
        kept = {int(found[1]) for file in self.path.iterdir() if (found := _KEPT.search(file.name))}
        is_whole = self.listed.state is State.COMPLETED and self.directory.checkpoint.exists()
        return sorted({0, *kept, *([self.config.epochs] if is_whole else [])})

    def network(self, epoch: int | None = None, device: torch.device | str = "cpu") -> nn.Module:
        """Load the network after ``epoch`` epochs, in evaluation mode; None is the end of training.

        Raises ``UserError`` where the weights of that epoch are not there.
        """
        config, run = self.config, self.directory.run
        network = build(config, run.architecture)
        if epoch == 0:
            start_from(network, config.model)
        else:
            network.load_state_dict(self._weights(config.epochs if epoch is None else epoch))
        device = torch.device(device)
        network.to(device)
        choose_storage(network, "auto", device, config.batch_size)
        return network.requires_grad_(False).eval()

    def _weights(self, epoch: int) -> dict[str, Any]:
        end = self.directory.checkpoint
        kept = end.with_name(f"checkpoint-{epoch:04d}.pt")
        path = kept if kept.exists() else end
        state = load_checkpoint(path, self.directory.run.fingerprint)
        if state is None:
            raise UserError(f"{self.path}: has no {path.name}; its weights at epoch {epoch} are gone")
        if len(state.rows) != epoch or state.step:
            raise UserError(
                f"{self.path}: {path.name} is of epoch {len(state.rows)}, not {epoch}; there are "
                f"{', '.join(map(str, self.epochs))} (train with checkpoint.keep=[{epoch}] to keep it)"
            )
        return state.model

    def rows(self) -> dict[int, dict[str, Any]]:
        """The rows of ``metrics.jsonl`` by epoch."""
        return {row["epoch"]: row for row in self.directory.rows()}


def chosen(places: Sequence[Path], where: str | None, *, completed: bool = True) -> tuple[list[Subject], list[str]]:
    """Select runs by ``where`` from run directories and directories of runs; returns them and notes on those left out.

    Raises ``UserError`` for an invalid place or condition, and ``MixersweepError`` where no run is left.
    """
    condition = None if where is None else parse_where(where)
    found: list[Subject] = []
    out: dict[str, int] = {}
    for listed in listing(places):
        if condition is not None and not condition(listed.values()):
            continue
        fits = listed.state is State.COMPLETED if completed else listed.state is not State.BROKEN
        if fits:
            found.append(Subject(listed))
        else:
            out[listed.state] = out.get(listed.state, 0) + 1
    notes = [f"{count} run{'s are' if count > 1 else ' is'} {state}, and left out" for state, count in out.items()]
    if not found:
        what = "completed run" if completed else "run"
        text = f"{', '.join(map(str, places))}: no {what}" + (f" where {where}" if where else "")
        raise MixersweepError("; ".join([text, *notes]))
    return found, notes


def groups(subjects: Iterable[Subject]) -> dict[str, list[Subject]]:
    """Group runs that differ only in their seeds, under a label that says how the groups differ."""
    described = [(subject, _described(subject)) for subject in subjects]
    first = described[0][1]
    every = dict.fromkeys(key for _, settings in described for key in settings)
    varied = [key for key in every if any(settings.get(key) != first.get(key) for _, settings in described)]
    sizes = [key for key in SIZES if key in varied]
    found: dict[str, list[Subject]] = {}
    for subject, settings in described:
        words = [str(settings["model.name"])]
        words += [f"{key}={_short(settings[key])}" for key in sizes if settings[key] is not None]
        others = [key for key in varied if key not in (*SIZES, "model.name") and settings.get(key) is not None]
        alike = [key for key in others if _differs_within_model(key, settings["model.name"], described)]
        words += [f"{key}={_short(settings[key])}" for key in alike]
        found.setdefault(" ".join(words), []).append(subject)
    for label in found:
        found[label].sort(key=lambda subject: (subject.seed, subject.name))
    return found


def _differs_within_model(key: str, model: Any, described: list[tuple[Subject, dict[str, Any]]]) -> bool:
    values = [str(settings.get(key)) for _, settings in described if settings["model.name"] == model]
    return len(set(values)) > 1


def _described(subject: Subject) -> dict[str, Any]:
    """All settings in the fingerprint but seeds, by dotted name, with the network's sizes."""
    sizes = subject.directory.run.architecture
    return {**settings_of(subject.config), **{key: getattr(sizes, key) for key in SIZES}}


def settings_of(config: Config) -> dict[str, Any]:
    """All settings in the fingerprint but seeds, by dotted name as on the command line."""
    settings = experiment(config).flat
    return {key: value for key, value in settings.items() if key.partition(".")[0] not in ("seed", "seeds")}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def same_data(subjects: Iterable[Subject]) -> None:
    """Raise ``UserError`` where runs use different images."""
    seen: dict[tuple[Any, ...], str] = {}
    for subject in subjects:
        data = subject.config.data
        content = tuple(getattr(data, name) for name in ("name", "fit", "content", "crop_share", "interpolation"))
        seen.setdefault((*content, subject.config.image_size), subject.name)
    if len(seen) > 1:
        (one, first), (other, second) = list(seen.items())[:2]
        raise UserError(
            f"{second}: its images are {other[0]} at {other[-1]} pixels, those of {first} {one[0]} at {one[-1]}; "
            f"compare runs on the same images, --where data.name={one[0]}"
        )
