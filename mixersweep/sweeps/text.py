"""Format tables, durations and large numbers as text for terminals and pipes."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def align(
    rows: Sequence[Sequence[str]],
    right_aligned: Collection[str],
    width: int | None = None,
    droppable: Sequence[str] = (),
) -> list[str]:
    """Align rows into columns; the first row has their names, and those in ``right_aligned`` are right-aligned.

    If ``width`` is given, the columns in ``droppable`` are left out one by one until the rest fits into so many
    characters, and lines that are still longer are cut.
    """
    names = list(rows[0])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = list(range(len(names)))
    for name in droppable if width is not None else ():
        if sum(widths[i] + 2 for i in shown) - 2 > (width or 0) and name in names:
            shown.remove(names.index(name))
    texts = []
    for row in rows:
        cells = [row[i].rjust(widths[i]) if names[i] in right_aligned else row[i].ljust(widths[i]) for i in shown]
        text = "  ".join([*cells[:-1], cells[-1] if names[shown[-1]] in right_aligned else row[shown[-1]]]).rstrip()
        texts.append(text if width is None or len(text) <= width else text[: width - 1] + "…")
    return texts


def format_duration(seconds: float) -> str:
    """Format seconds in a readable unit: ``45 s``, ``12 min``, ``3.5 h``, ``2.0 d``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def format_quantity(number: float, unit: str = "", base: int = 1000) -> str:
    """Format a large number in three digits: ``65.8k``, ``4.06G``, or with unit ``B`` and base 1024 ``26.3 MiB``."""
    power = 0
    while abs(number) >= 999.5 and power < 6:
        number, power = number / base, power + 1
    prefix = ("", *"kMGTPE")[power] if base == 1000 else ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")[power]
    digits = f"{number:.0f}" if number >= 99.5 or (power == 0 and number == int(number)) else f"{number:.3g}"
    return f"{digits} {prefix}{unit}" if unit else f"{digits}{prefix}"
