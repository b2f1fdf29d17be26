"""The verdict on each claim of a report: one line of text, and the row of numbers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mixersweep.report import sizes
from mixersweep.report.bootstrap import Estimate
from mixersweep.report.claims import Claim, Pair, Reason, Trend
from mixersweep.report.say import format_p, format_points, join_words, plural


class Finding(StrEnum):
    """The result of judging a claim."""

    BETTER = "better"
    WORSE = "worse"
    NOT_SHOWN = "not-shown"
    NOT_CLAIMED = "not-claimed"
    UNTESTED = "untested"


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim, in parts: whom it is about, what it says, why in few words, and a ``note`` to it.

    ``reasons`` are the reasons not to claim it. ``numbers`` is its row in the answer's table.
    """

    subject: str
    finding: Finding
    statement: str
    why: str
    note: str
    reasons: tuple[Reason, ...]
    numbers: dict[str, Any]

    @property
    def explanation(self) -> str:
        """The part of the line after the statement: why, and the note."""
        return "; ".join(part for part in (self.why, self.note) if part)

    @property
    def line(self) -> str:
        """``s_mixer (tall): wider is better, +6.0 points from 696 to 1,024``."""
        return f"{self.subject}: {self.statement}" + (f", {self.explanation}" if self.explanation else "")

    @property
    def in_full(self) -> str:
        """The verdict with its reasons in full, as ``statistics.json`` has it."""
        return f"{self.statement}: {'; '.join(map(str, self.reasons))}" if self.reasons else self.statement


def judge_trend(trend: Trend, claims: int = 0) -> Verdict:
    """Judge how the accuracy of one model changes with its width; the report tests ``claims`` claims in all."""
    rise, span = trend.rise, f"from {trend.widths[0]:,} to {trend.widths[-1]:,}"
    finding = _finding(trend)
    wider = {Finding.BETTER: "wider is better", Finding.WORSE: "wider is worse"}
    vary = sizes.describe_large(trend.sizes) if trend.is_decided else ""
    left = f"without {plural(trend.seeds_left_out, 'seed')} that some widths lack" if trend.seeds_left_out else ""
    return Verdict(
        trend.name,
        finding,
        wider.get(finding) or _undecided(finding, "no trend shown"),
        f"{format_points(rise.value)} {span}" if finding in wider else _why(trend, finding, rise, claims),
        "; ".join(part for part in (f"what else changes with the width: {vary}" if vary else "", left) if part),
        _reasons(trend, finding),
        _numbers(f"{trend.name} {span}", trend, rise, rise.runs),
    )


def judge_pair(pair: Pair, claims: int = 0) -> Verdict:
    """Judge two models against each other; a model that is better is named first."""
    flipped = pair.is_decided and pair.difference.value < 0
    first, second = (pair.second, pair.first) if flipped else (pair.first, pair.second)
    difference = pair.difference.scaled(-1.0) if flipped else pair.difference
    finding = _finding(pair)
    decided = finding is Finding.BETTER
    if pair.at_best is None:
        of = f"{first} minus {second} at {plural(len({width for width, _ in pair.widths}), 'width')}"
    else:
        best, other = pair.at_best[::-1] if flipped else pair.at_best
        of = f"{first} at {best:,} minus {second} at {other:,}"
    return Verdict(
        f"{first} and {second}",
        finding,
        f"{first} is better" if decided else _undecided(finding, "no difference shown"),
        f"by {format_points(difference.value).lstrip('+')}" if decided else _why(pair, finding, difference, claims),
        _note_on_pair(pair, -1 if flipped else 1) if decided else "",
        _reasons(pair, finding),
        _numbers(of, pair, difference, pair.pairs),
    )


def _note_on_pair(pair: Pair, sign: int) -> str:
    """The note to a difference that is claimed: the estimate without rank-limited heads, and sizes that differ."""
    parts = []
    if pair.clean is not None:
        parts.append(f"{format_points(sign * pair.clean.value, False)} without rank-limited heads")
    if unlike := sizes.describe_large(pair.sizes):
        parts.append(f"sizes differ by up to {unlike}")
    return "; ".join(parts)


def _finding(claim: Claim) -> Finding:
    if claim.effect.p is None:
        return Finding.UNTESTED
    if claim.is_decided:
        return Finding.WORSE if isinstance(claim, Trend) and claim.effect.value < 0 else Finding.BETTER
    return Finding.NOT_CLAIMED if claim.barred or claim.is_shown else Finding.NOT_SHOWN


def _undecided(finding: Finding, not_shown: str) -> str:
    """The statement where nothing is claimed."""
    return {Finding.UNTESTED: "one seed decides nothing", Finding.NOT_CLAIMED: "not claimed"}.get(finding, not_shown)


def _reasons(claim: Claim, finding: Finding) -> tuple[Reason, ...]:
    return tuple(claim.against) if finding is Finding.NOT_CLAIMED else ()


def _why(claim: Claim, finding: Finding, effect: Estimate, claims: int) -> str:
    """Why nothing is claimed, in few words: the objections, or the p-value and the smallest detectable effect."""
    if finding is Finding.UNTESTED:
        return "so there is no interval and no claim"
    if finding is Finding.NOT_CLAIMED:
        return "; ".join(reason.brief for reason in claim.against)
    low, high = effect.interval or (0.0, 0.0)
    corrected = f"{format_p(claim.p_holm)} corrected for {plural(claims, 'claim')}"
    why = "its interval contains 0" if low <= 0 <= high else corrected
    return why if effect.detectable is None else f"{why}; detectable from {100 * effect.detectable:.1f} points"


def _numbers(of: str, claim: Claim, effect: Estimate, count: int) -> dict[str, Any]:
    return {
        "of": of,
        "value": effect.value,
        "interval": effect.interval,
        "p_holm": claim.p_holm,
        "p_is_bound": effect.at_floor,
        "n": count,
        "seeds": effect.seeds,
    }


def reasons_in_full(verdicts: Sequence[Verdict]) -> list[str]:
    """The reasons that a verdict's line only names in brief, in full and once each, with the claims they bar."""
    whose: dict[Reason, list[str]] = {}
    for verdict in verdicts:
        for reason in verdict.reasons:
            if reason.particulars:
                whose.setdefault(reason, []).append(verdict.subject)
    return [f"not claimed for {join_words(names, last=', nor for ')}: {reason}" for reason, names in whose.items()]
