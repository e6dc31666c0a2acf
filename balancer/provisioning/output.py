"""What one instance writes, read for as long as it lives: nobody who floods blocks, and nobody fills memory.

The newest lines are kept; those that a balancer is told of are bounded in number a second, and what it was
not told of is counted. Standard library only, since the keeper runs on it.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable

LINES_KEPT = 100
LINE_BYTES = 2000
"""A longer line is cut."""
LINES_A_SECOND = 100

_CHUNK_BYTES = 1 << 16
_LAST_CHUNKS = 64


class Output:
    """The reading end of a pipe, whose other end an instance and its runners have. `tell` is called with
    lines and with how many others were lost before them."""

    def __init__(
        self, descriptor: int, loop: asyncio.AbstractEventLoop, tell: Callable[[list[str], int], None]
    ) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._loop = loop
        self._tell = tell
        self._newest: deque[str] = deque(maxlen=LINES_KEPT)
        self._begun = b""
        self._told = 0
        self._lost = 0
        self._second: asyncio.TimerHandle | None = None
        loop.add_reader(descriptor, self._read)

    def lines(self) -> list[str]:
        """The newest lines, the oldest of them first."""
        return [*self._newest, *([_text(self._begun)] if self._begun else [])]

    def close(self) -> None:
        """Read what is left, and no more."""
        for _ in range(_LAST_CHUNKS):
            if self._descriptor < 0 or not self._read():
                break
        self._forget()
        if self._second is not None:
            self._end_second()

    def _read(self) -> bool:
        """One piece; False where there is none now."""
        try:
            piece = os.read(self._descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not piece:
            self._forget()
            return False
        *whole, begun = (self._begun + piece).split(b"\n")
        self._begun = begun[:LINE_BYTES]
        self._take([_text(each) for each in whole if each.strip()])
        return True

    def _take(self, lines: list[str]) -> None:
        if not lines:
            return
        self._newest.extend(lines)
        if self._second is None:
            self._second = self._loop.call_later(1.0, self._end_second)
        told = lines[: LINES_A_SECOND - self._told]
        if told:
            self._told += len(told)
            self._tell(told, 0)
        self._lost += len(lines) - len(told)

    def _end_second(self) -> None:
        if self._second is not None:
            self._second.cancel()
        self._second, self._told = None, 0
        if self._lost:
            lost, self._lost = self._lost, 0
            self._tell([], lost)

    def _forget(self) -> None:
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


def _text(line: bytes) -> str:
    return line[:LINE_BYTES].decode(errors="replace").rstrip()
