"""What a report says of each claim: one line to read, and the row of numbers that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mixersweep.report import sizes
from mixersweep.report.bootstrap import Estimate
from mixersweep.report.claims import Claim, Pair, Reason, Trend
from mixersweep.report.say import listed, many, p_said, points


class Found(StrEnum):
    """What a test found."""

    BETTER = "better"
    WORSE = "worse"
    NOT_SHOWN = "not-shown"
    NOT_CLAIMED = "not-claimed"
    UNTESTED = "untested"


@dataclass(frozen=True)
class Verdict:
    """What is said of one claim: of whom, what, in few words why, and what a reader has to know ``beside`` it.

    ``reasons`` are those for which nothing is claimed, in full. ``numbers`` is a row of the answer's table.
    """

    subject: str
    found: Found
    said: str
    why: str
    beside: str
    reasons: tuple[Reason, ...]
    numbers: dict[str, Any]

    @property
    def because(self) -> str:
        """All that stands behind the verdict in its line."""
        return "; ".join(part for part in (self.why, self.beside) if part)

    @property
    def line(self) -> str:
        """``s_mixer (tall): wider is better, +6.0 points from 696 to 1,024``."""
        return f"{self.subject}: {self.said}" + (f", {self.because}" if self.because else "")

    @property
    def recorded(self) -> str:
        """The verdict with its reasons in full, as the tables keep it."""
        return f"{self.said}: {'; '.join(map(str, self.reasons))}" if self.reasons else self.said


def of_trend(trend: Trend, claims: int = 0) -> Verdict:
    """The verdict on the accuracy of one model along its width, one of so many ``claims``."""
    rise, span = trend.rise, f"from {trend.widths[0]:,} to {trend.widths[-1]:,}"
    found = _found(trend)
    wider = {Found.BETTER: "wider is better", Found.WORSE: "wider is worse"}
    vary = sizes.beyond(trend.sizes) if trend.decided else ""
    left = f"{many(trend.seeds_left_out, 'seed')} that not all widths have left out" if trend.seeds_left_out else ""
    return Verdict(
        trend.name,
        found,
        wider.get(found) or _open(found, "no trend shown"),
        f"{points(rise.value)} {span}" if found in wider else _why(trend, found, rise, claims),
        "; ".join(part for part in (f"along it vary {vary}" if vary else "", left) if part),
        _reasons(trend, found),
        _numbers(f"{trend.name} {span}", trend, rise, rise.runs),
    )


def of_pair(pair: Pair, claims: int = 0) -> Verdict:
    """The verdict on two models, one of so many ``claims``; where one is better, it is named first."""
    flipped = pair.decided and pair.difference.value < 0
    first, second = (pair.second, pair.first) if flipped else (pair.first, pair.second)
    difference = pair.difference.scaled(-1.0) if flipped else pair.difference
    found = _found(pair)
    decided = found is Found.BETTER
    if pair.at_best is None:
        of = f"{first} minus {second} at {many(len({width for width, _ in pair.widths}), 'width')}"
    else:
        best, other = pair.at_best[::-1] if flipped else pair.at_best
        of = f"{first} at {best:,} minus {second} at {other:,}"
    return Verdict(
        f"{first} and {second}",
        found,
        f"{first} is better" if decided else _open(found, "no difference shown"),
        f"by {points(difference.value).lstrip('+')}" if decided else _why(pair, found, difference, claims),
        _beside(pair, -1 if flipped else 1) if decided else "",
        _reasons(pair, found),
        _numbers(of, pair, difference, pair.pairs),
    )


def _beside(pair: Pair, sign: int) -> str:
    """What a reader of a difference that is claimed has to know: without rank-limited heads, and of unequal sizes."""
    parts = []
    if pair.clean is not None:
        parts.append(f"{points(sign * pair.clean.value, False)} where channels are not fewer than classes")
    if unlike := sizes.beyond(pair.sizes):
        parts.append(f"sizes differ by up to {unlike}")
    return "; ".join(parts)


def _found(claim: Claim) -> Found:
    if claim.effect.p is None:
        return Found.UNTESTED
    if claim.decided:
        return Found.WORSE if isinstance(claim, Trend) and claim.effect.value < 0 else Found.BETTER
    return Found.NOT_CLAIMED if claim.barred or claim.shown else Found.NOT_SHOWN


def _open(found: Found, not_shown: str) -> str:
    """What is said where nothing is decided."""
    return {Found.UNTESTED: "one seed decides nothing", Found.NOT_CLAIMED: "not claimed"}.get(found, not_shown)


def _reasons(claim: Claim, found: Found) -> tuple[Reason, ...]:
    return tuple(claim.against) if found is Found.NOT_CLAIMED else ()


def _why(claim: Claim, found: Found, effect: Estimate, claims: int) -> str:
    """Why nothing is decided, in few words: what stands against it, or what the test would have taken to show it."""
    if found is Found.UNTESTED:
        return "so there is no interval and no claim"
    if found is Found.NOT_CLAIMED:
        return "; ".join(reason.brief for reason in claim.against)
    low, high = effect.interval or (0.0, 0.0)
    said = "0 lies in its interval" if low <= 0 <= high else f"{p_said(claim.p_holm)} over {many(claims, 'claim')}"
    return said if effect.detectable is None else f"{said}; {100 * effect.detectable:.1f} points would show"


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


def particulars(verdicts: Sequence[Verdict]) -> list[str]:
    """The reasons whose particulars a line has no room for, once each, and what is not claimed for them."""
    whose: dict[Reason, list[str]] = {}
    for verdict in verdicts:
        for reason in verdict.reasons:
            if reason.particulars:
                whose.setdefault(reason, []).append(verdict.subject)
    return [f"not claimed of {listed(names, last=', nor of ')}: {reason}" for reason, names in whose.items()]
