"""What a fuzz target is, and what several of them need to take an input apart.

Every input is plain bytes, so that the same targets serve hypothesis, atheris and the kept corpus:
the first bytes choose (a route, how to cut), the rest is what the parser is fed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from hypothesis.strategies import SearchStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`examine` raises for an input that breaks what is promised; any exception counts. `inputs` are
    those that hypothesis tries, `seeds` those to begin with, `words` what atheris may put in."""

    name: str
    examine: Callable[[bytes], None]
    inputs: SearchStrategy[bytes]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...]


def byte_at(data: bytes, index: int) -> int:
    """A byte that chooses something; 0 where the input is too short."""
    return data[index] if index < len(data) else 0


def cut(data: bytes, seed: int) -> list[bytes]:
    """Non-empty pieces that together are the data: single bytes, a few large pieces, or a mixture."""
    random = Random(seed)
    mean = random.choice((1, 2, 7, 40, 300))
    pieces: list[bytes] = []
    at = 0
    while at < len(data):
        size = 1 if mean == 1 else random.randint(1, 2 * mean)
        pieces.append(data[at : at + size])
        at += size
    return pieces


def one_line(text: str) -> bool:
    """Whether a text stands on one line of a log or a terminal."""
    return len(text.splitlines()) <= 1
