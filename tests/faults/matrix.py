"""All rows and runs, by their keys."""

from __future__ import annotations

import uvloop

from tests.faults.rows import ROWS
from tests.faults.scene import Row, Verdict, play

_ALL = {row.key: row for row in ROWS}


def keys() -> tuple[str, ...]:
    """The keys of all rows, in order."""
    return tuple(_ALL)


def find_row(key: str) -> Row:
    """The row of a key. Raises KeyError."""
    return _ALL[key]


def play_key(key: str, short: bool) -> Verdict:
    """Play one row, in a loop of its own."""
    return uvloop.run(play(find_row(key), short=short))
