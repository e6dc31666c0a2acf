"""All rows and runs, by their keys."""

from __future__ import annotations

import logging

import uvloop

from tests.faults.rows import ROWS
from tests.faults.rows_answers import ANSWER_ROWS
from tests.faults.rows_clients import CLIENT_ROWS
from tests.faults.runs import RUNS
from tests.faults.scene import Row, Verdict, play

_NUMBERED = sorted((*ROWS, *ANSWER_ROWS, *CLIENT_ROWS), key=lambda row: int(row.key))
_ALL = {row.key: row for row in (*_NUMBERED, *RUNS)}


def keys() -> tuple[str, ...]:
    """The keys of all rows, in order."""
    return tuple(_ALL)


def find_row(key: str) -> Row:
    """The row of a key. Raises KeyError."""
    return _ALL[key]


def play_key(key: str, short: bool) -> Verdict:
    """Play one row, in a loop of its own."""
    return uvloop.run(play(find_row(key), short=short))


def silence() -> None:
    """Say nothing of connections that end under a simulated instance of this process: they are meant to."""
    logging.getLogger("aiohttp.server").disabled = True
