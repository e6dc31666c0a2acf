"""Clients of a measured proxy: raw protocols that keep their connections, time answers and check every byte.

Nothing here decides how many there are or when they stop; `loads` does. Whatever is not as it should be is
told to the tally and fails the run.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from tests.benchmarks.wire import FORMS, STAMP_BYTES, TEXT, Path, Question, tail_of

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOLD = re.compile(rb"(\d{8}) (\d{6})@(\d{19})")
_SHOWN_BYTES = 200
_SEGMENTS_PLACE = 152
"""Of tcpi_data_segs_in in struct tcp_info, linux/tcp.h."""


class Tally:
    """What clients saw. `errors` are violations in words; the rest begins anew with `restart`."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Forget what was counted, for a window that begins now; never the errors."""
        self.answers = 0
        self.chunks = 0
        self.segments = 0
        self.latency_ns: list[int] = []
        self.delay_ns: list[int] = []


class Teller(Protocol):
    """Who is told that a client's answer is whole and may let it ask again."""

    def answered(self, client: UnaryClient) -> None: ...


class UnaryClient(asyncio.Protocol):
    """One connection that asks for whole answers, one after another.

    An answer in one read, with its length, is compared with what it must be without a parser; only
    another shape pays for one.
    """

    def __init__(self, question: Question, tally: Tally, teller: Teller) -> None:
        self._question = question
        self._tally = tally
        self._teller = teller
        self._exact = question.path is not Path.OPENAI
        self._request = question.request(0).partition(b"00000000")
        self._answer = FORMS[question.path].whole(0, question.chunk_bytes).partition(b"00000000")
        self._marker = b""
        self._expected = b""
        self._buffer = b""
        self._sent_ns = 0
        self.waits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, marker: int) -> None:
        """Send one question; its answer must be the one to this marker."""
        self._marker = b"%08d" % marker
        self._expected = self._marker.join((self._answer[0], self._answer[2]))
        self.waits = True
        self._sent_ns = time.monotonic_ns()
        self.transport.write(self._marker.join((self._request[0], self._request[2])))

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._buffer = self._buffer + data if self._buffer else data
        answer = read_answer(self._buffer)
        if answer is None:
            return
        status, body = answer
        right = body == self._expected if self._exact else self._marker in body
        if status != 200 or not right:
            self._fail(f"a wrong answer to {self._marker!r}: {self._buffer[:_SHOWN_BYTES]!r}")
            return
        self._buffer = b""
        self._tally.answers += 1
        self._tally.latency_ns.append(now - self._sent_ns)
        self.waits = False
        self._teller.answered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waits:
            self._fail(f"the connection closed before the answer to {self._marker!r} was whole")

    def _fail(self, what: str) -> None:
        self._tally.errors.append(what)
        self.waits = False
        self.transport.abort()
        self._teller.answered(self)


class StreamClient(asyncio.Protocol):
    """One connection with one paced stream. `on_begun` is told with its first chunk, `on_end` when it is
    whole or failed. Of a question without a number of chunks any number is whole: compare `number`."""

    def __init__(
        self,
        question: Question,
        marker: int,
        tally: Tally,
        *,
        on_begun: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        form = FORMS[question.path]
        self._question = question
        self._marker = marker
        self._tally = tally
        self._on_begun = on_begun
        self._on_end = on_end
        self._exact = question.path is not Path.OPENAI
        self._before = form.before + (TEXT % (marker, 0, 0))[:9]
        self._after = tail_of(question.chunk_bytes) + form.after
        self._end = form.end
        self.number = 0
        self._chunks = question.chunks or None
        self._rest = b""
        self._now = 0
        self._over = False
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._question.request(self._marker))

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic_ns()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"broken framing: {error!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over:
            self._fail(f"cut after {self.number} chunks of {self._chunks or 'any'}")

    def segments(self) -> int:
        """How many TCP segments with data have come so far, by the kernel's count: as many as the writes at
        the other end, unless those were more at once than was read, or larger than a segment."""
        end = socket.socket(fileno=self.transport.get_extra_info("socket").fileno())
        try:
            told = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SEGMENTS_PLACE + 4)
        finally:
            end.detach()
        return int.from_bytes(told[_SEGMENTS_PLACE:], sys.byteorder)

    def leave(self) -> None:
        """Close without waiting for the rest."""
        self._over = True
        self.transport.abort()

    # -- httptools

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._fail(f"status {status}")

    def on_body(self, body: bytes) -> None:
        if self._over:
            return
        data = self._rest + body if self._rest else body
        self._rest = (self._exact_chunks if self._exact else self._told_chunks)(data)

    def on_message_complete(self) -> None:
        if self._over:
            return
        if self._chunks not in (None, self.number) or self._rest != self._end:
            self._fail(f"ended after {self.number} chunks with {self._rest[:_SHOWN_BYTES]!r}")
            return
        self._over = True
        self._tally.answers += 1
        self.transport.close()
        self._on_end()

    def _exact_chunks(self, data: bytes) -> bytes:
        """Take the chunks that are whole, each to the byte what it must be; what is left is returned."""
        place = len(self._before)
        length = place + 7 + STAMP_BYTES + len(self._after)
        while len(data) >= length and self.number != self._chunks and not self._end.startswith(data):
            stamp = place + 7
            if not (
                data.startswith(self._before)
                and data.startswith(b"%06d@" % self.number, place)
                and data.startswith(self._after, stamp + STAMP_BYTES)
            ):
                self._fail(f"chunk {self.number} of {self._marker} is wrong: {data[:_SHOWN_BYTES]!r}")
                return b""
            self._took(int(data[stamp : stamp + STAMP_BYTES]))
            data = data[length:]
        return data

    def _told_chunks(self, data: bytes) -> bytes:
        """As above, for an answer that is written anew on the way: only what it tells is compared."""
        *events, rest = data.split(b"\n\n")
        for event in events:
            for marker, number, stamp in _TOLD.findall(event):
                if int(marker) != self._marker or int(number) != self.number:
                    self._fail(f"chunk {self.number} of {self._marker} is wrong: {event[:_SHOWN_BYTES]!r}")
                    return b""
                self._took(int(stamp))
            if event == b"data: [DONE]":
                return self._end
        return rest

    def _took(self, stamp: int) -> None:
        if self.number == 0:
            self._on_begun()
        self.number += 1
        self._tally.chunks += 1
        self._tally.delay_ns.append(self._now - stamp)

    def _fail(self, what: str) -> None:
        if not self._over:
            self._over = True
            self._tally.errors.append(f"stream {self._marker}: {what}")
            self.transport.abort()
            self._on_end()


class _Collected:
    """A body put together by the parser."""

    def __init__(self) -> None:
        self.body = b""
        self.whole = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole = True


def read_answer(data: bytes) -> tuple[int, bytes] | None:
    """Status and body of an answer, (0, b"") where it is broken; None while it is not whole."""
    head, _, body = data.partition(b"\r\n\r\n")
    found = _LENGTH.search(head)
    if found is not None:
        length = int(found[1])
        if len(body) < length:
            return None
        return (int(head[9:12]), body) if len(body) == length else (0, b"")
    collected = _Collected()
    parser = httptools.HttpResponseParser(collected)
    try:
        parser.feed_data(data)
    except httptools.HttpParserError:
        return 0, b""
    return (parser.get_status_code(), collected.body) if collected.whole else None
