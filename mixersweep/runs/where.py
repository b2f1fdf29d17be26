"""``--where``: a condition on runs as people type it, ``'width>=1000 and model=sw_mlp'``.

Read by a grammar (lark), never evaluated as code. A name is a key of ``result.json``, a setting as it is spelled on the
command line (``optim.lr``), or what ``status`` shows (``state``, ``epoch``, ``host``).
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from mixersweep.errors import UserError

if TYPE_CHECKING:
    from lark import Lark, Token, Tree

Predicate = Callable[[Mapping[str, Any]], bool]

GRAMMAR = r"""
    ?start: any
    ?any: all (_OR all)*
    ?all: single (_AND single)*
    ?single: "(" any ")" | _NOT single -> negated | comparison | membership
    comparison: NAME OPERATOR value
    membership: NAME _IN "[" [value ("," value)*] "]"
    value: QUOTED | WORD

    _AND: "and"i
    _OR: "or"i
    _NOT: "not"i
    _IN: "in"i
    NAME: /[a-z_][\w.]*/i
    OPERATOR: /==|!=|<=|>=|=|<|>/
    QUOTED: /'[^']*'|"[^"]*"/
    WORD: /[^\s()\[\],=<>!'"]+/
    %ignore /\s+/
"""

HELP = (
    "it takes comparisons such as width>=1000 (the name first), model=sw_mlp or seed in [0,1], "
    "joined by and, or, not and ( )"
)
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def parse_where(text: str, known: Collection[str] | None = None) -> Predicate:
    """Parse a condition into a predicate on a mapping from names to values (``Listed.values()``, a table row).

    Comparisons are ``= == != < <= > >=`` and ``in [..]`` with numbers (``1e-3``, ``2**15``), words, quoted texts,
    ``true``, ``false`` and ``null``. A value that is null or missing makes every comparison false, but for ``x=null``
    and ``x!=null``, which ask just that. ``known`` are the allowed names, by default all names of runs.

    Raises ``UserError`` for what cannot be read and for a name that is not known; the condition itself raises it where
    a number is compared by size with a text.
    """
    from lark.exceptions import UnexpectedInput

    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        raise UserError(_describe_syntax_error(text, error)) from None
    return _condition(tree, frozenset(_known_names() if known is None else known))


@cache
def _parser() -> Lark:
    from lark import Lark

    return Lark(GRAMMAR, parser="lalr")


@cache
def _known_names() -> frozenset[str]:
    from mixersweep.runs.listing import value_names

    return frozenset(value_names())


def _condition(tree: Tree[Token], known: frozenset[str]) -> Predicate:
    kind, parts = tree.data, tree.children
    if kind == "comparison":
        name, sign, value = parts
        return _comparison(_check_name(str(name), known), str(sign), _parse_value(value))
    if kind == "membership":
        name, *listed = parts
        wanted = [_parse_value(value) for value in listed if value is not None]
        key = _check_name(str(name), known)
        return lambda run: any(_equal(run.get(key), value) for value in wanted)
    inner = [_condition(part, known) for part in parts]  # type: ignore[arg-type]
    if kind == "negated":
        return lambda run: not inner[0](run)
    chosen = any if kind == "any" else all
    return lambda run: chosen(condition(run) for condition in inner)


def _comparison(name: str, sign: str, wanted: Any) -> Predicate:
    if sign in ("=", "=="):
        return lambda run: _equal(run.get(name), wanted)
    if sign == "!=":
        if wanted is None:
            return lambda run: run.get(name) is not None
        return lambda run: run.get(name) is not None and not _equal(run.get(name), wanted)
    if wanted is None or isinstance(wanted, bool):
        raise UserError(f"--where {name}{sign}{str(wanted).lower()}: only = and != make sense here")
    order = _COMPARISONS[sign]

    def compare(run: Mapping[str, Any]) -> bool:
        value = run.get(name)
        if isinstance(value, str) and isinstance(wanted, str):
            return order(value, wanted)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if isinstance(wanted, str):
            raise UserError(f"--where {name}{sign}{wanted}: {name} is a number (such as {value:g}), {wanted} is a text")
        return order(value, wanted)

    return compare


def _equal(value: Any, wanted: Any) -> bool:
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _parse_value(tree: Any) -> Any:
    """The number, text, truth value or null that stands in the condition."""
    (token,) = tree.children
    if token.type == "QUOTED":
        return str(token)[1:-1]
    text = str(token)
    words = {"null": None, "none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    power = re.fullmatch(r"(\d{1,3})\*\*(\d{1,2})", text)
    if power:
        return int(power[1]) ** int(power[2])
    for number in (int, float):
        if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text, re.IGNORECASE):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _check_name(name: str, known: frozenset[str]) -> str:
    if name in known:
        return name
    tails: dict[str, str] = {key.rpartition(".")[2]: key for key in sorted(known, reverse=True)}
    near = difflib.get_close_matches(name.lower(), known, 1) or [
        tails[tail] for tail in difflib.get_close_matches(name.lower().rpartition(".")[2], tails, 1)
    ]
    nearest = f"; the nearest is {near[0]}" if near else ""
    raise UserError(f"--where {name}: runs have no such value{nearest}")


def _describe_syntax_error(text: str, error: Any) -> str:
    """Why a condition cannot be read, with the quotes where a shell has taken a ``>`` for itself."""
    at_end = getattr(getattr(error, "token", None), "type", None) == "$END"
    name = re.search(r"(^|\s|\()([a-z_][\w.]*)\s*$", text, re.IGNORECASE)
    if at_end and name and "OPERATOR" in error.expected:
        return (
            f"--where {text.strip()}: compares {name[2]} with nothing; a shell takes an unquoted > or < for itself "
            f"(and leaves a file behind): quote it: --where '{text.strip()}>1000'"
        )
    where = "at its end" if at_end else f"at {text[error.column - 1 :][:20]!r}"
    return f"--where {text!r}: cannot be read {where}; {HELP}"
