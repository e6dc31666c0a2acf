"""How far long work has come: a bar on a terminal, nothing in a pipe."""

import sys

_WIDTH = 30


class Progress:
    """A bar on standard error, of `total` steps."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._shown = sys.stderr.isatty()

    def step(self) -> None:
        """One more is done."""
        self.reach(self._done + 1)

    def reach(self, done: int) -> None:
        """So many are done, at most all."""
        self._done = min(done, self._total)
        if self._shown:
            filled = "#" * (_WIDTH * self._done // self._total)
            print(f"\r[{filled:{_WIDTH}}] {self._done}/{self._total}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """No more is to come."""
        if self._shown:
            print(file=sys.stderr)
