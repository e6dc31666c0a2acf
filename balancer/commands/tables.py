"""Tables and lists for a terminal: narrow, and what is cut says how much is missing."""

from collections.abc import Sequence

SHOWN_ROWS = 10
SHOWN_NAMES = 3


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the columns below each other."""
    whole = [columns, *rows]
    widths = [max(len(row[column]) for row in whole) for column in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in whole
    ]


def short_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The first rows, set in a little; no line where there are none."""
    if not rows:
        return []
    lines = table(columns, rows[:SHOWN_ROWS])
    return [f"  {line}" for line in lines + more(len(rows) - SHOWN_ROWS)]


def listed(names: Sequence[str]) -> str:
    """The first names on one line."""
    return ", ".join(names[:SHOWN_NAMES]) + "".join(f" {each}" for each in more(len(names) - SHOWN_NAMES))


def more(left: int) -> list[str]:
    """The line that tells what was cut, if anything was."""
    return [f"… and {left} more"] if left > 0 else []


def age(seconds: float) -> str:
    """A time as people say it: 0.4 s, 12 s, 5 min, 3 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
