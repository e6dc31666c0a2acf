"""Fuzz target of the connections to instances: however an answer's bytes are cut, it is the same answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random

from hypothesis import strategies as st

from balancer.errors import BalancerError, InstanceError
from balancer.upstream.connection import Connection
from balancer.upstream.exchange import ResponseHead
from balancer.upstream.stream_memory import StreamMemory
from tests.fuzz.recorded import exchanges
from tests.fuzz.target import Target, byte_at, cut

_BUFFER_BYTES = 1 << 20
_LOOP = asyncio.new_event_loop()


@dataclass(slots=True)
class _Transport(asyncio.Transport):
    """Takes everything at once; once aborted it gives nothing more, as real ones do."""

    aborted: bool = False
    written: list[bytes] = field(default_factory=list)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """What came of an answer. `closed` is whether the connection was given up before its other end left."""

    head: ResponseHead | None
    pieces: tuple[bytes, ...]
    error: tuple[type[BalancerError], str] | None
    closed: bool


def examine_answer(data: bytes) -> None:
    """Byte 0: whether a HEAD was asked, bytes 1 and 2 how it is cut, the rest what the instance says."""
    head_only = bool(byte_at(data, 0) & 1)
    seed, said = int.from_bytes(data[1:3], "big"), data[3:]
    _LOOP.run_until_complete(_compare(said, seed, head_only=head_only))


async def _compare(said: bytes, seed: int, *, head_only: bool) -> None:
    expected = await _take([said] if said else [], head_only=head_only)
    single_bytes = [said[at : at + 1] for at in range(len(said))]
    for pieces in (cut(said, seed), _cut_at_line_ends(said, seed), single_bytes):
        taken = await _take(pieces, head_only=head_only)
        if said.endswith((b"\r", b"\n")):
            # The parser passes over line ends behind an answer that come in the same read as its end.
            taken = replace(taken, closed=expected.closed)
        assert taken == expected, (taken, expected)
    if expected.error is None:
        assert expected.head is not None
        length = expected.head.content_length
        bodiless = head_only or expected.head.status in {204, 304}
        came = sum(len(piece) for piece in expected.pieces)
        assert not (bodiless and came)
        assert bodiless or length is None or length == came


def _cut_at_line_ends(said: bytes, seed: int) -> list[bytes]:
    """As instances write it: many reads are one HTTP chunk."""
    random = Random(seed)
    ends = [each.end() for each in re.finditer(rb"\r\n|5", said) if random.random() < 0.6]
    cuts = sorted({0, *ends, len(said)})
    return [said[begin:end] for begin, end in pairwise(cuts)]


async def _take(pieces: Sequence[bytes], *, head_only: bool) -> _Taken:
    idle: list[Connection] = []
    lost: list[Connection] = []
    transport = _Transport()
    connection = Connection(on_idle=idle.append, on_lost=lost.append)
    connection.connection_made(transport)
    exchange = connection.begin(
        head_only=head_only, buffer_bytes=_BUFFER_BYTES, memory=StreamMemory(_BUFFER_BYTES)
    )
    connection.write(b"x")
    connection.request_sent()
    for each in pieces:
        if not transport.aborted:
            connection.data_received(each)
    closed = transport.aborted
    assert len(idle) <= 1
    if not closed:
        connection.eof_received()
    connection.connection_lost(None)
    assert lost == [connection]
    assert connection.closed
    try:
        head = await exchange.response()
    except InstanceError as error:
        return _Taken(head=None, pieces=(), error=(type(error), str(error)), closed=closed)
    taken: list[bytes] = []
    ended: tuple[type[BalancerError], str] | None = None
    try:
        while (piece := await exchange.next_chunk()) is not None:
            taken.append(piece)
    except InstanceError as error:
        ended = (type(error), str(error))
    joined = tuple(taken) if head.chunked else (b"".join(taken),)
    return _Taken(head=head, pieces=joined, error=ended, closed=closed)


_HEADERS = [
    b"Content-Length: 5", b"content-length: 0", b"Content-Length: 5, 5", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-encoding:\tChunked", b"Connection: close",
    b"Connection: Upgrade",
    b"Upgrade: h2c", b"Content-Type: application/x-ndjson", b"X: \xff\x80", b"X",
    b" folded", b"Content-Length : 5",
    b"Content-Length: +5", b"Content-Length: 99999999999999999999", b"Trailer: X", b"",
]  # fmt: skip


@st.composite
def _answers(draw: st.DrawFn) -> bytes:
    """Answers, of which some are none."""
    said = b""
    for _ in range(draw(st.integers(1, 3))):
        end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"]))
        status = draw(st.sampled_from([200, 200, 200, 100, 101, 103, 204, 304, 302, 500, 99, 1000]))
        version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2", b"HTTP/1.1 "]))
        said += version + b" %d" % status + draw(st.sampled_from([b" OK", b"", b" \xff"])) + end
        for each in draw(st.lists(st.sampled_from(_HEADERS), max_size=3)):
            said += each + end
        said += end
        for _ in range(draw(st.integers(0, 3))):
            body = draw(
                st.sampled_from([b"hello", b"{}", b'{"done":true}\n', b"x" * 40, b"HTTP/1.1 200 OK\r\n\r\n"])
            )
            size = draw(st.sampled_from([b"%x" % len(body), b"%X;a=b" % len(body), b"0", b"-1", b"f" * 17]))
            said += draw(
                st.sampled_from([body, size + b"\r\n" + body + b"\r\n", size + b"\n" + body + b"\n"])
            )
        said += draw(st.sampled_from([b"", b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\n\n"]))
    return said


_PARTS = [
    *[b"5\r\nhello\r\n"] * 4, b"5\r\n", b"5\r\n", b"5", b"5", b"9\r\n5\r\nhello\r\n\r\n",
    b"A\r\nten bytes!\r\n",
    b"05\r\nhello\r\n", b"5;a=b\r\nhello\r\n", b"5\r\nhell\r\n", b"\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n",
]  # fmt: skip
_streams = st.lists(st.sampled_from(_PARTS), max_size=12).map(
    lambda parts: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(parts)
)

CONNECTIONS = Target(
    name="connections",
    words=(
        b"HTTP/1.1 200 OK\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
        b"\r\n\r\n",
    ),
    examine=examine_answer,
    inputs=st.builds(
        lambda head, said: head + said, st.binary(min_size=3, max_size=3), _answers() | _streams | st.binary()
    ),
    seeds=lambda: [
        bytes((each.method == "HEAD", 3, 9)) + each.wire for each in exchanges() if len(each.wire) < 3000
    ],
)
