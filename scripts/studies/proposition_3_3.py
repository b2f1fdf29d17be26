"""Proposition 3.3 put to the test: does an L2 penalty on the factors act like an L1 penalty on the whole?

Hayase & Karakida 2024, section 3.2 and appendix B.4: for factors V (C, C), W (S, S) and a loss L of B = V ⊗ W,

    min_{V,W} L(V ⊗ W) + λ/2 (|V|² + |W|²)  =  min_{β rank one} L(β) + λ|β|₂            (lemma B.1, an equality)
                                            ≥  min_B L(B) + λ|B|₂  ≥  min_B L(B) + λ/(CS)·|B|₁   (eq 11).

Here L is the mean squared error of Ŷ = W X Vᵀ in predicting images Y (S, C) from noisy ones X, a convex loss of B, so
that both right sides are solved to a duality gap. The bound is one-sided and says nothing about the shape of the
solution; so the other question is asked apart: at equal training loss, are the trained factors' B as sparse (Hoyer
index, |B|₁/|B|₂) as those of dense models with an L1 penalty, or as those with an L2 penalty? A Kronecker product of
any two matrices has heavier tails than its factors; ``unpenalised`` is the same model at λ = 0, to tell that apart.

    .venv/bin/python scripts/studies/proposition_3_3.py [--data NAME] [--lambdas 5] [--seeds 5] [--out DIR]

No run is read. DIR then holds ``proposition_3_3.json``, a table (CSV, Markdown) and a figure.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from mixersweep.analysis.intervals import over_seeds
from mixersweep.analysis.output import folder, tracked, write
from mixersweep.data import Folder, find, load
from mixersweep.figures import draw_panels
from mixersweep.figures.palette import BLUE, GREEN, GREY, ORANGE
from mixersweep.layers.sparsity import hoyer, l1_over_l2
from mixersweep.seeds import derive

Floats = NDArray[np.float64]
Row = dict[str, Any]

GAP = 1e-8
"""The largest duality gap of a solved problem, in units of the loss."""

LAMBDAS = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Penalties of the factors, in units of the largest at which they are not all zero."""


class Unproven(AssertionError):
    """A trained point below a bound that no point can be below: the proposition or this program is wrong."""


@dataclass(frozen=True)
class Problem:
    """Inputs and targets (N, S, C); L(B) = Σ|vec Y - B vec X|²/(2N), where vec stacks columns."""

    inputs: Floats
    targets: Floats

    @property
    def sizes(self) -> tuple[int, int]:
        """(tokens, channels)."""
        return self.inputs.shape[1], self.inputs.shape[2]

    def vectors(self) -> tuple[Floats, Floats]:
        """Inputs and targets as (N, C·S), columns stacked."""
        n = len(self.inputs)
        return tuple(x.transpose(0, 2, 1).reshape(n, -1) for x in (self.inputs, self.targets))  # type: ignore[return-value]

    def moments(self) -> tuple[Floats, Floats, Floats]:
        """XᵀX/N (m, m), XᵀY/N (m, outputs), and the diagonal of YᵀY/N (outputs,)."""
        x, y = self.vectors()
        n = len(x)
        return x.T @ x / n, x.T @ y / n, (y**2).sum(0) / n


def denoising(seed: int, images: NDArray[np.uint8], tokens: int, channels: int, count: int = 800) -> Problem:
    """Images, shrunk to (tokens, channels) by means over boxes and standardised, behind as much noise as they vary."""
    generator = np.random.default_rng(derive(seed, "proposition", "data"))
    which = generator.permutation(len(images))[:count]
    chosen = images[which, 0].astype(np.float64)
    high, wide = chosen.shape[1] // tokens * tokens, chosen.shape[2] // channels * channels
    boxes = chosen[:, :high, :wide].reshape(count, tokens, high // tokens, channels, wide // channels)
    clean = boxes.mean((2, 4))
    clean = (clean - clean.mean(0)) / clean.std()
    return Problem(clean + generator.standard_normal(clean.shape), clean)


def mse(problem: Problem, matrix: Floats) -> float:
    """L(B), B (outputs, m)."""
    gram, cross, square = problem.moments()
    return float(square.sum() - 2 * (matrix.T * cross).sum() + ((matrix @ gram) * matrix).sum()) / 2


def train_factors(problem: Problem, strength: float, seed: int) -> tuple[Floats, Floats, float]:
    """V (C, C), W (S, S) and the objective, by L-BFGS from random factors, as a network's two matrices are trained."""
    from scipy.optimize import minimize

    tokens, channels = problem.sizes
    x, y = problem.inputs, problem.targets
    n = len(x)
    generator = np.random.default_rng(derive(seed, "proposition", "start"))
    start = np.concatenate(
        [
            generator.standard_normal(channels**2) / math.sqrt(channels),
            generator.standard_normal(tokens**2) / math.sqrt(tokens),
        ]
    )

    def objective(parameters: Floats) -> tuple[float, Floats]:
        v = parameters[: channels**2].reshape(channels, channels)
        w = parameters[channels**2 :].reshape(tokens, tokens)
        right, left = x @ v.T, w @ x
        rest = w @ right - y
        of_v = np.tensordot(rest, left, ((0, 1), (0, 1))) / n + strength * v
        of_w = np.tensordot(rest, right, ((0, 2), (0, 2))) / n + strength * w
        value = float((rest**2).sum()) / (2 * n) + strength / 2 * float((parameters**2).sum())
        return value, np.concatenate([of_v.ravel(), of_w.ravel()])

    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 1e-14, "gtol": 1e-9}
    )
    v = found.x[: channels**2].reshape(channels, channels)
    return v, found.x[channels**2 :].reshape(tokens, tokens), float(found.fun)


def lasso(
    problem: Problem, strength: float, start: Floats | None = None, gap: float = GAP
) -> tuple[Floats, float, float]:
    """min_B L(B) + strength·|B|₁: B (outputs, m), its objective, and a lower bound of the minimum within ``gap``.

    Coordinate descent on all outputs at once; the bound is the dual objective of scaled residuals.
    """
    gram, cross, square = problem.moments()
    m, outputs = cross.shape
    b = np.zeros((m, outputs)) if start is None else start.T.copy()
    gradient = gram @ b - cross  # of the loss
    curvature = np.diag(gram).copy()
    for sweep in range(20_000):
        for j in range(m):
            if curvature[j] == 0:
                continue
            old = b[j].copy()
            moved = curvature[j] * old - gradient[j]
            b[j] = np.sign(moved) * np.maximum(np.abs(moved) - strength, 0) / curvature[j]
            change = b[j] - old
            if change.any():
                gradient += gram[:, j : j + 1] * change
        if sweep % 5 == 0:
            primal, dual = _lasso_values(b, gradient, cross, square, strength)
            if primal - dual <= gap:
                return b.T, primal, dual
    raise Unproven(f"lasso at {strength:g}: duality gap {primal - dual:.2g} after 20,000 sweeps, wanted {gap:g}")


def _lasso_values(b: Floats, gradient: Floats, cross: Floats, square: Floats, strength: float) -> tuple[float, float]:
    residual_residual = square - (b * cross).sum(0) + (b * gradient).sum(0)  # |y - Xb|²/N
    target_residual = square - (b * cross).sum(0)  # yᵀ(y - Xb)/N
    primal = float((residual_residual / 2).sum() + strength * np.abs(b).sum())
    steepest = np.abs(gradient).max(0)
    # the best feasible multiple of the residual
    limit = np.divide(strength, steepest, out=np.full_like(steepest, np.inf), where=steepest > 0)
    ratio = np.divide(target_residual, residual_residual, out=np.zeros_like(square), where=residual_residual > 0)
    scale = np.clip(ratio, -limit, limit)
    dual = float((scale * target_residual - scale**2 * residual_residual / 2).sum())
    return primal, dual


class Ridge:
    """The dense models with an L2 penalty: one path, whether the norm is squared or not."""

    def __init__(self, problem: Problem) -> None:
        gram, cross, square = problem.moments()
        self.values, vectors = np.linalg.eigh(gram)
        self.values = np.maximum(self.values, 0)
        self.vectors, self.rotated, self.square = vectors, vectors.T @ cross, square

    def at(self, strength: float) -> Floats:
        """B that minimises L(B) + strength/2·|B|²."""
        matrix: Floats = (self.vectors @ (self.rotated / (self.values + strength)[:, None])).T
        return matrix

    def norm(self, strength: float) -> float:
        """|B| there."""
        return float(np.linalg.norm(self.rotated / (self.values + strength)[:, None]))

    def loss(self, strength: float) -> float:
        """L(B) there."""
        b = self.rotated / (self.values + strength)[:, None]
        return float(self.square.sum() - 2 * (b * self.rotated).sum() + ((b**2) * self.values[:, None]).sum()) / 2

    def unsquared(self, strength: float) -> tuple[Floats, float, float]:
        """min_B L(B) + strength·|B|₂: B, its objective, and a dual bound; |B|₂ is the Frobenius norm."""
        from scipy.optimize import brentq

        if np.linalg.norm(self.rotated) <= strength:  # B = 0 is the minimum
            zero = float(self.square.sum()) / 2
            return np.zeros((self.rotated.shape[1], len(self.rotated))), zero, zero
        squared = brentq(lambda log: math.log(math.exp(log) * self.norm(math.exp(log)) / strength), -60, 60, xtol=1e-14)
        mu = math.exp(squared)
        b = self.rotated / (self.values + mu)[:, None]
        primal = self.loss(mu) + strength * self.norm(mu)
        gradient = self.values[:, None] * b - self.rotated
        residual = float(self.square.sum() - 2 * (b * self.rotated).sum() + ((b**2) * self.values[:, None]).sum())
        with_target = float(self.square.sum() - (b * self.rotated).sum())
        scale = min(with_target / residual if residual else 0.0, strength / float(np.linalg.norm(gradient)))
        return self.at(mu), primal, scale * with_target - scale**2 * residual / 2


def bisected(value: Callable[[float], float], wanted: float, low: float, high: float, steps: int = 40) -> float:
    """Where an increasing function of a positive number has a value, on a logarithmic scale."""
    for _ in range(steps):
        middle = math.sqrt(low * high)
        if value(middle) < wanted:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def judge(
    seeds: Sequence[int],
    images: NDArray[np.uint8],
    *,
    lambdas: Sequence[float] = LAMBDAS,
    sizes: tuple[int, int] = (7, 7),
) -> tuple[dict[str, Any], list[Row]]:
    """All λ on the problem of each seed (other images, other noise, another start); raises ``Unproven``.

    Returns what was found over all and a row for each λ and seed.
    """
    rows: list[Row] = []
    for seed in tracked(seeds, "proposition 3.3"):
        rows += _of_problem(denoising(seed, images, *sizes), seed, lambdas)
    return _summary(rows, lambdas), rows


def _of_problem(problem: Problem, seed: int, lambdas: Sequence[float]) -> list[Row]:
    tokens, channels = problem.sizes
    ridge, size = Ridge(problem), tokens * channels
    _, cross, square = problem.moments()
    # the gradient at B = 0, rearranged so that V ⊗ W has rank one: above its norm the factors stay zero
    arranged = cross.T.reshape(channels, tokens, channels, tokens).transpose(0, 2, 1, 3).reshape(channels**2, -1)
    most = float(np.linalg.svd(arranged, compute_uv=False)[0])
    free_v, free_w, _ = train_factors(problem, 1e-9 * most, seed)
    unpenalised = np.kron(free_v, free_w).astype(np.float64)
    rows: list[Row] = []
    for share in lambdas:
        strength = share * most
        v, w, objective = train_factors(problem, strength, seed)
        beta = np.kron(v, w).astype(np.float64)
        loss = mse(problem, beta)
        _, l1_value, l1_bound = lasso(problem, strength / size)
        _, l2_value, l2_bound = ridge.unsquared(strength)
        rank_one = loss + strength * float(np.linalg.norm(beta))
        for name, bound in (("λ/(CS)·|B|₁", l1_value), ("λ|B|₂", l2_value)):
            if objective < bound - 1e-7 * max(1.0, bound):
                raise Unproven(
                    f"proposition 3.3, seed {seed}, λ = {strength:g}: the trained factors are at {objective:.10g}, "
                    f"below {bound:.10g}, the least of L(B) + {name}"
                )
        row: Row = {
            "seed": seed,
            "lambda_share": share,
            "lambda": strength,
            "objective": objective,
            "rank_one_bound": rank_one,
            "l2_bound": l2_value,
            "l1_bound": l1_value,
            "l1_duality_gap": l1_value - l1_bound,
            "l2_duality_gap": l2_value - l2_bound,
            "gap_to_rank_one": objective - rank_one,
            "gap_to_l1": objective - l1_value,
            "relative_gap_to_l1": (objective - l1_value) / objective,
            "train_loss": loss,
        }
        rows.append({**row, **_at_equal_loss(problem, ridge, beta, loss, float(square.sum()) / 2, unpenalised)})
    return rows


def _at_equal_loss(
    problem: Problem, ridge: Ridge, beta: Floats, loss: float, at_zero: float, unpenalised: Floats
) -> Row:
    """Sparsity of the trained factors' B, and of dense models of the same training loss with either penalty."""
    row: Row = {}
    found: dict[str, Floats | None] = {"factors": beta, "unpenalised": unpenalised, "l1": None, "l2": None}
    if ridge.loss(1e-12) < loss < at_zero * (1 - 1e-9):
        found["l2"] = ridge.at(bisected(ridge.loss, loss, 1e-9, 1e6))
        warm: list[Floats] = []

        def of_l1(strength: float) -> float:
            b, _, _ = lasso(problem, strength, warm[-1] if warm else None, gap=1e-6)
            warm.append(b)
            return mse(problem, b)

        found["l1"] = lasso(problem, bisected(of_l1, loss, 1e-6, 10.0, steps=24), warm[-1])[0]
    for name, matrix in found.items():
        row[f"hoyer_{name}"] = None if matrix is None else hoyer(matrix)
        row[f"l1_over_l2_{name}"] = None if matrix is None else l1_over_l2(matrix)
    return row


def _summary(rows: Sequence[Row], lambdas: Sequence[float]) -> dict[str, Any]:
    """Per λ, means over seeds with intervals, and paired differences of the Hoyer index."""
    per_lambda: list[Row] = []
    for share in lambdas:
        inside = [row for row in rows if row["lambda_share"] == share]
        line: Row = {"lambda_share": share, "seeds": len(inside)}
        for key in ("relative_gap_to_l1", "gap_to_rank_one", "train_loss"):
            line[key] = float(np.mean([row[key] for row in inside]))
        for kind in ("hoyer", "l1_over_l2"):
            for name in ("factors", "unpenalised", "l1", "l2"):
                values = [row[f"{kind}_{name}"] for row in inside if row[f"{kind}_{name}"] is not None]
                line[f"{kind}_{name}"] = float(np.mean(values)) if values else None
        for name in ("l1", "l2", "unpenalised"):
            differences = [
                row["hoyer_factors"] - row[f"hoyer_{name}"] for row in inside if row[f"hoyer_{name}"] is not None
            ]
            line[f"hoyer_factors_minus_{name}"] = float(np.mean(differences)) if differences else None
            line[f"hoyer_factors_minus_{name}_interval"] = over_seeds(differences)
        per_lambda.append(line)
    return {
        "holds": True,  # else ``Unproven`` was raised
        "points": len(rows),
        "largest_duality_gap": max(max(row["l1_duality_gap"], row["l2_duality_gap"]) for row in rows),
        "smallest_gap_to_l1": min(row["gap_to_l1"] for row in rows),
        "largest_gap_to_rank_one": max(row["gap_to_rank_one"] for row in rows),
        "per_lambda": per_lambda,
        "answer": _answer(per_lambda),
    }


def _answer(lines: Sequence[Row]) -> str:
    """One sentence that claims no more than the intervals carry."""
    compared = [line for line in lines if line["hoyer_factors_minus_l2_interval"] is not None]
    above_l2 = sum(line["hoyer_factors_minus_l2_interval"][0] > 0 for line in compared)
    below_l1 = sum(line["hoyer_factors_minus_l1_interval"][1] < 0 for line in compared)
    more = sum((line["hoyer_factors_minus_unpenalised_interval"] or (0,))[0] > 0 for line in lines)
    return (
        f"at equal training loss the trained factors' matrix is sparser than the L2-penalised one at {above_l2} and "
        f"less sparse than the L1-penalised one at {below_l1} of {len(compared)} λ (95%, over seeds); the penalty "
        f"makes it sparser than the same factors without one at {more} of {len(lines)}"
    )


def draw(rows: Sequence[Row], out: Path) -> list[Path]:
    """The bound, and Hoyer's index at equal training loss, over λ."""
    panels = [lambda axes: _draw_bounds(axes, rows), lambda axes: _draw_sparsity(axes, rows)]
    return draw_panels(out, "proposition_3_3", "Proposition 3.3; 95% intervals over seeds", panels, one_legend=False)


def _draw_bounds(axes: Axes, rows: Sequence[Row]) -> None:
    _over_lambda(axes, rows, "objective", "trained factors V, W", BLUE, "o")
    _over_lambda(axes, rows, "l2_bound", "least of L(B) + λ|B|₂", ORANGE, "s")
    _over_lambda(axes, rows, "l1_bound", "least of L(B) + λ/(CS)·|B|₁", GREEN, "^")
    axes.set_ylabel("objective")
    axes.set_title("Proposition 3.3: the bound holds", fontsize=9, loc="left")


def _draw_sparsity(axes: Axes, rows: Sequence[Row]) -> None:
    _over_lambda(axes, rows, "hoyer_l1", "dense B, L1 penalty", GREEN, "^")
    _over_lambda(axes, rows, "hoyer_unpenalised", "V ⊗ W, no penalty", GREY, "x")
    _over_lambda(axes, rows, "hoyer_factors", "V ⊗ W, L2 on the factors", BLUE, "o")
    _over_lambda(axes, rows, "hoyer_l2", "dense B, L2 penalty", ORANGE, "s")
    axes.set_ylim(0, 1.15)
    axes.set_ylabel("Hoyer index of B")
    axes.set_title("at equal training loss", fontsize=9, loc="left")


def _over_lambda(axes: Axes, rows: Sequence[Row], key: str, label: str, colour: str, marker: str) -> None:
    """Means over seeds where all have the value."""
    shares = list(dict.fromkeys(row["lambda_share"] for row in rows))
    x, means, lengths = [], [], []
    for share in shares:
        values = [row[key] for row in rows if row["lambda_share"] == share]
        if None in values:
            continue
        low, high = over_seeds(values) or (values[0], values[0])
        x.append(share)
        means.append(float(np.mean(values)))
        lengths.append((high - low) / 2)
    axes.errorbar(x, means, lengths, color=colour, marker=marker, label=label, capsize=3)
    axes.set_xscale("log")
    axes.set_xlabel("λ over the least that makes all zero")


def main(arguments: Sequence[str]) -> None:
    """The study as a command."""
    parser = argparse.ArgumentParser(description="Proposition 3.3 put to the test.")
    parser.add_argument("--data", default="fashion_mnist_10k", help="images of this data set (fashion_mnist_10k)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where it is (data)")
    parser.add_argument("--lambdas", type=int, default=len(LAMBDAS), help=f"strengths of the penalty ({len(LAMBDAS)})")
    parser.add_argument("--seeds", type=int, default=5, help="problems: images, noise and start (5)")
    parser.add_argument("--side", type=int, default=7, help="tokens = channels: what images are shrunk to (7)")
    parser.add_argument("--out", type=Path, default=Path("analysis/proposition_3_3"), help="where the files go")
    options = parser.parse_args(arguments)
    if options.lambdas < 1 or options.seeds < 2:
        parser.error(f"--lambdas {options.lambdas} --seeds {options.seeds}: at least 1 and 2")
    if isinstance(find(options.data), Folder):
        parser.error(f"--data {options.data}: is a folder of images, which is not loaded whole")
    images, _ = load(options.data, options.data_dir)
    side = min(options.side, images.images.shape[-1])
    shares = tuple(float(share) for share in np.geomspace(LAMBDAS[0], LAMBDAS[-1], options.lambdas))
    summary, rows = judge(range(options.seeds), images.images, lambdas=shares, sizes=(side, side))
    out = folder(options.out)
    path = write(out, "proposition_3_3", {**summary, "data": options.data, "rows": rows}, summary["per_lambda"])
    draw(rows, out)
    print(f"proposition 3.3 holds; {summary['answer']}", file=sys.stderr)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
