"""Search for learning rates on validation data, by the same rule for all models.

For each combination of all settings but learning rate and seed, each learning rate is trained with each search seed.
While the best mean validation accuracy lies at an edge of the grid, a value a factor of √10 beyond it is added. Among
the values within one standard error of the best, the middle one is taken. A diverged run counts as accuracy 0.

The results are read from the run directories, so that every process comes to the same choice. The chosen ``lr`` is then
a setting like any other: it is frozen into the runs' configs, and their fingerprints cover it.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixersweep import config as settings
from mixersweep.errors import UserError
from mixersweep.runs import fingerprint, read_status
from mixersweep.runs.files import read_json
from mixersweep.runs.state import State
from mixersweep.sweeps.point import Point, with_settings

STEP = math.sqrt(10)


@dataclass(frozen=True)
class Trial:
    """The results of one learning rate: the validation accuracy of each search seed, None if the run diverged."""

    lr: float
    accuracies: tuple[float | None, ...]

    @property
    def mean(self) -> float:
        """The mean validation accuracy; a diverged run counts as 0."""
        return statistics.fmean(accuracy or 0.0 for accuracy in self.accuracies)

    @property
    def diverged(self) -> int:
        """The number of runs that diverged."""
        return sum(accuracy is None for accuracy in self.accuracies)


@dataclass(frozen=True)
class Decision:
    """The learning rate to take (``lr``) or to try next (``next_lr``).

    ``at_edge`` means that the best is the smallest or largest value tried.
    """

    lr: float | None = None
    next_lr: float | None = None
    at_edge: bool = False


def decide(trials: Sequence[Trial], first: Sequence[float], grow: int) -> Decision:
    """Choose a learning rate, or the next to try, from finished trials; ``first`` are the values of the original grid.

    At most ``grow`` values are added at either end. ``lr`` and ``next_lr`` are both None if all runs diverged.
    """
    trials = sorted(trials, key=lambda trial: trial.lr)
    best = max(trials, key=lambda trial: (trial.mean, -trial.lr))
    above = sum(trial.lr > max(first) for trial in trials)
    below = sum(trial.lr < min(first) for trial in trials)
    all_diverged = all(trial.diverged == len(trial.accuracies) for trial in trials)  # then only smaller values may help
    if best is trials[-1] and above < grow and not all_diverged:
        return Decision(next_lr=_next_value(best.lr, STEP))
    if best is trials[0] and below < grow:
        return Decision(next_lr=_next_value(best.lr, 1 / STEP))
    if all_diverged:
        return Decision()
    standard_error_of_mean = standard_error(trials)
    near_best = [trial for trial in trials if trial.mean >= best.mean - standard_error_of_mean]
    middle = near_best[(len(near_best) - 1) // 2 : len(near_best) // 2 + 1]  # one, or the two in the middle
    return Decision(
        lr=max(middle, key=lambda trial: (trial.mean, -trial.lr)).lr, at_edge=best in (trials[0], trials[-1])
    )


def standard_error(trials: Sequence[Trial]) -> float:
    """Standard error of a mean over search seeds, with the variance pooled over the values at which no run diverged.

    Two seeds alone give a poor estimate of the variance; all values together give a useful one. 0 without any.
    """
    undiverged = [[a for a in trial.accuracies if a is not None] for trial in trials if not trial.diverged]
    spreads = [statistics.variance(accuracies) for accuracies in undiverged if len(accuracies) > 1]
    return math.sqrt(statistics.fmean(spreads) / len(undiverged[0])) if spreads else 0.0


def _next_value(lr: float, factor: float) -> float:
    """Return ``lr * factor`` to three digits, snapped to the grid 10^(k/2) if it is within 1 % of it."""
    value = lr * factor
    power = 10 ** (round(2 * math.log10(value)) / 2)
    return float(f"{power if abs(value / power - 1) < 0.01 else value:.3g}")


class Search:
    """The search for one combination of all settings but learning rate and seed: its runs so far, and their results."""

    def __init__(self, key: str, label: str, options: settings.Search, point_of: Callable[[float, int], Point]) -> None:
        self.label = label
        self.lr: float | None = None
        self.failed: str | None = None
        self.at_edge = False
        self.points: list[Point] = []
        self.trials: list[Trial] = []
        self.notices: list[str] = []
        self._key = key
        first = sorted(set(options.lr))
        values = list(first)
        while values:  # until a result is missing, since the next values depend on it
            tried = [self._read_trial(lr, [point_of(lr, seed) for seed in options.seeds]) for lr in values]
            self.trials += [trial for trial in tried if trial is not None]
            if None in tried:
                break
            decision = decide(self.trials, first, options.grow)
            self.lr, self.at_edge = decision.lr, decision.at_edge
            values = [decision.next_lr] if decision.next_lr is not None else []
            if decision.at_edge:
                self.notices.append(f"search: {label}: the best learning rate is the last that was tried; see {self}")
            if not values and self.lr is None:
                self.failed = f"every learning rate of its search diverged ({self})"

    def is_for(self, point: Point) -> bool:
        """Whether the point takes its learning rate from this search."""
        return point.config is not None and not _sets_lr(point.overrides) and _key(point) == self._key

    @property
    def is_open(self) -> bool:
        """Whether the search is unfinished: it has neither chosen a learning rate nor failed."""
        return self.lr is None and self.failed is None

    @property
    def waiting(self) -> str:
        """What a point of this search waits for, in words."""
        done = sum(len(trial.accuracies) for trial in self.trials)
        return f"for the learning rate of {self.label} ({done} of {len(self.points)} search runs)"

    def record(self) -> dict[str, Any]:
        """Return the values tried and chosen, as stored in ``search.json`` for people and reports."""
        standard_error_of_mean = standard_error(self.trials) if self.lr is not None else None
        return {
            "of": self.label,
            "lr": self.lr,
            "at_edge": self.at_edge,
            "standard_error": standard_error_of_mean,
            "values": [
                {"lr": trial.lr, "mean": trial.mean, "n": len(trial.accuracies), "diverged": trial.diverged}
                | {"validation_accuracies": list(trial.accuracies)}
                for trial in sorted(self.trials, key=lambda trial: trial.lr)
            ],
            "runs": [point.run.name for point in self.points if point.run],
        }

    def __str__(self) -> str:
        return ", ".join(f"{t.lr:g}: {t.mean:.4f}" for t in sorted(self.trials, key=lambda trial: trial.lr))

    def _read_trial(self, lr: float, points: list[Point]) -> Trial | None:
        """Read the results of one learning rate's runs; None while some are unfinished."""
        self.points += points
        accuracies: list[float | None] = []
        for point in points:
            assert point.run_dir is not None
            state = read_status(point.run_dir).state
            if state is State.COMPLETED:
                accuracies.append(read_json(point.run_dir / "result.json")["validation_accuracy"])
            elif state is State.DIVERGED:
                accuracies.append(None)
        return Trial(lr, tuple(accuracies)) if len(accuracies) == len(points) else None


def searches_of(points: Sequence[Point], options: settings.Search, solve: Callable[[list[str]], Point]) -> list[Search]:
    """Return the searches for points whose overrides set no learning rate; ``solve`` makes a point from overrides.

    Raises ``UserError`` for a search that could not choose: fewer than 2 seeds, no values, no validation images, or
    seeds that the sweep itself uses.
    """
    if len(set(options.seeds)) < 2:
        raise UserError(f"sweep.search.seeds={options.seeds}: a choice takes at least 2 seeds, such as [100,101]")
    if not options.lr:
        raise UserError("sweep.search.lr=[]: needs values, such as [0.03,0.1,0.3]")
    found: dict[str, Search] = {}
    for point in points:
        if point.config is None or _sets_lr(point.overrides):
            continue
        if point.config.seed in options.seeds:
            raise UserError(
                f"sweep.search.seeds={options.seeds}: the sweep itself has seed={point.config.seed}; "
                "what is reported must be of seeds that chose nothing"
            )
        if not point.config.validation:
            raise UserError("validation=0: a search chooses on validation images; set validation=0.1")
        key = _key(point)
        if key in found:
            continue
        changes = {} if options.epochs is None else {"epochs": options.epochs}

        def point_of(lr: float, seed: int, point: Point = point, changes: Mapping[str, object] = changes) -> Point:
            return solve(with_settings(point.overrides, **changes, seed=seed, optim__lr=lr))

        found[key] = Search(key, _label(point), options, point_of)
    return list(found.values())


def _sets_lr(overrides: Sequence[str]) -> bool:
    """Whether the overrides set a learning rate."""
    return any(override.lstrip("+").startswith("optim.lr=") for override in overrides)


def _key(point: Point) -> str:
    """Return a hash of all settings of a point but learning rate and seed."""
    config, sizes = point.config, point.architecture
    assert config is not None and sizes is not None
    comparable = dataclasses.replace(config, seed=0, optim=dataclasses.replace(config.optim, lr=1.0))
    return fingerprint(comparable, sizes)


def _label(point: Point) -> str:
    config, sizes = point.config, point.architecture
    assert config is not None and sizes is not None
    return f"{config.model.name} width={sizes.width} connections={sizes.connections}"
