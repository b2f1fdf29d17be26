"""The rule that chooses a learning rate: pure decisions, and a search read from run directories."""

import json
from pathlib import Path

import pytest

from mixersweep.runs import RunDirectory, Status, set_status
from mixersweep.runs.state import State
from mixersweep.sweeps.expand import Expansion, expand
from mixersweep.sweeps.search import Decision, Trial, decide, standard_error

LRS = [0.01, 0.0316, 0.1, 0.316, 1.0]


def trials(*means: float, spread: float = 0.002, lrs: list[float] = LRS) -> list[Trial]:
    return [Trial(lr, (mean - spread, mean + spread)) for lr, mean in zip(lrs, means, strict=False)]


def test_the_best_of_a_clear_peak_is_taken() -> None:
    assert decide(trials(0.7, 0.8, 0.9, 0.8, 0.7), LRS, 3) == Decision(lr=0.1)


def test_the_middle_of_those_within_one_standard_error() -> None:
    assert standard_error(trials(0.8, 0.9, spread=0.01)) == pytest.approx(0.01)
    tried = trials(0.7, 0.893, 0.895, 0.9, 0.5, spread=0.01)
    assert decide(tried, LRS, 3) == Decision(lr=0.1)
    assert decide(trials(0.7, 0.893, 0.895, 0.9, 0.5, spread=0.004), LRS, 3) == Decision(lr=0.316)  # 0.895 is outside
    assert decide(trials(0.7, 0.8, 0.895, 0.9, 0.5, spread=0.01), LRS, 3) == Decision(lr=0.316)  # of two, the better


def test_the_spread_is_pooled_so_that_two_lucky_seeds_decide_nothing() -> None:
    seen = [(0.88, 0.90), (0.89, 0.89), (0.895, 0.895), (0.5, 0.52)]
    lucky = [Trial(lr, accuracies) for lr, accuracies in zip(LRS, seen, strict=False)]
    assert decide(lucky, LRS[:4], 3).lr == 0.0316


def test_the_grid_grows_while_the_best_lies_on_its_edge_within_a_bound() -> None:
    assert decide(trials(0.7, 0.8, 0.9, lrs=LRS), LRS[:3], 3) == Decision(next_lr=0.316)
    assert decide(trials(0.9, 0.8, 0.7), LRS[:3], 3) == Decision(next_lr=0.00316)
    assert decide(trials(0.9, 0.91, 0.92, 0.93), LRS[:3], 1) == Decision(lr=0.316, at_edge=True)
    assert decide([Trial(0.1, (0.5, 0.6))], [0.1], 0) == Decision(lr=0.1, at_edge=True)
    assert decide(trials(0.1, 0.2, lrs=[0.02, 0.05]), [0.02, 0.05], 3) == Decision(next_lr=0.158)


def test_diverged_runs_count_as_worst_and_end_the_growth() -> None:
    tried = [*trials(0.7, 0.8, 0.9), Trial(0.316, (0.99, None)), Trial(1.0, (None, None))]
    assert tried[3].diverged == 1
    assert decide(tried, LRS, 3) == Decision(lr=0.1)
    hopeless = [Trial(lr, (None, None)) for lr in (0.1, 0.316)]
    assert decide(hopeless, [0.1, 0.316], 1) == Decision(next_lr=0.0316)
    assert decide([Trial(0.0316, (None, None)), *hopeless], [0.1, 0.316], 1) == Decision()


def sweep(tmp_path: Path, *more: str) -> Expansion:
    search = "sweep.search={lr:[0.0316,0.1],seeds:[100,101],epochs:2}"
    base = ["connections=1000", "depth=1", f"runs_dir={tmp_path}", "model=s_mixer,sw_mlp", "seed=0,1", search]
    return expand([*base, *more], multirun=True)


def end(expansion: Expansion, accuracy: dict[float, float | None]) -> None:
    """Let the search runs come to these accuracies."""
    for point in (point for search in expansion.searches for point in search.points):
        assert point.run is not None
        directory = RunDirectory.create(point.run, expansion.runs_dir)
        found = accuracy[point.run.config.optim.lr]
        directory.write_result({"validation_accuracy": found})
        set_status(directory.path, Status(State.DIVERGED if found is None else State.COMPLETED))


def test_runs_wait_for_their_search_and_then_have_its_learning_rate(tmp_path: Path) -> None:
    first = sweep(tmp_path)
    assert [p.waiting is not None and p.run is None for p in first.points] == [True] * 4
    assert [s.label.split()[0] for s in first.searches] == ["s_mixer", "sw_mlp"]
    runs = [p.run for s in first.searches for p in s.points if p.run]
    assert len(runs) == 8
    assert {(r.config.seed, r.config.optim.lr, r.config.epochs) for r in runs} == {
        (seed, lr, 2) for seed in (100, 101) for lr in (0.0316, 0.1)
    }
    assert {r.origin.sweep for r in runs} == {f"{first.name}/search"}

    end(first, {0.0316: 0.5, 0.1: 0.6})
    grown = sweep(tmp_path)  # the best lies on the edge
    assert all(p.waiting for p in grown.points)
    assert [p.run.config.optim.lr for p in grown.searches[0].points if p.run][4:] == [0.316, 0.316]

    end(grown, {0.0316: 0.5, 0.1: 0.6, 0.316: None})
    chosen = sweep(tmp_path)
    assert [p.run.config.optim.lr for p in chosen.points if p.run] == [0.1] * 4
    assert [p.run.config.epochs for p in chosen.points if p.run] == [30] * 4
    assert chosen.points[0].overrides[-1] == "optim.lr=0.1"
    (record, _) = (s.record() for s in chosen.searches)
    assert (record["lr"], record["at_edge"]) == (0.1, False)
    assert [(v["lr"], v["mean"], v["n"], v["diverged"]) for v in record["values"]] == [
        (0.0316, 0.5, 2, 0),
        (0.1, 0.6, 2, 0),
        (0.316, 0.0, 2, 2),
    ]
    json.dumps(record)


def test_a_point_with_a_learning_rate_of_its_own_is_not_searched(tmp_path: Path) -> None:
    expansion = sweep(tmp_path, "optim.lr=0.05")
    assert expansion.searches == []
    assert [p.run.config.optim.lr for p in expansion.points if p.run] == [0.05] * 4


def test_where_every_value_diverges_there_is_no_run(tmp_path: Path) -> None:
    for _ in range(5):
        expansion = sweep(tmp_path)
        end(expansion, dict.fromkeys([0.00316, 0.001, 0.01, 0.0316, 0.1]))
    assert [p.infeasible and p.infeasible.startswith("every learning rate") for p in expansion.points] == [True] * 4
