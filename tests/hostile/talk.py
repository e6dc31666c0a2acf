"""One connection, by hand: bytes in the pieces that a row says, and all that comes back until it is closed.

Sockets rather than streams: a stream throws away what it has not read once a write fails, and a balancer
that refuses a request may close while the rest of it still comes.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from tests.fakes.raw_client import Answer, Cut, RawClient
from tests.hostile.rows import Told

PROBE_ID = "probe-of-the-connection"
_PROBE = f"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-ID: {PROBE_ID}\r\n\r\n"
PATIENCE_SECONDS = 20.0
_TURNS = 2
"""Turns of the loop after which a piece that was sent has been read at the other end."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The answers, that to the probe not among them, and whether the connection went on to serve it."""

    answers: tuple[Answer, ...]
    served_on: bool


async def talk(address: tuple[str, int], pieces: Iterable[bytes], told: tuple[Told, ...]) -> Heard:
    """Send the pieces, each in a packet of its own, and read to the end. One thing more is asked for behind
    them, which shows whether the connection still serves, and knows where a request begins."""
    with socket.socket() as opened:
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.get_running_loop().sock_connect(opened, address)
            reading = asyncio.create_task(_rest(opened))
            try:
                await _send(opened, (*pieces, _PROBE.encode()), reading)
                came = await reading
            finally:
                reading.cancel()
    return await _heard(came, told)


async def _send(opened: socket.socket, pieces: Iterable[bytes], reading: "asyncio.Task[bytes]") -> None:
    loop = asyncio.get_running_loop()
    for piece in pieces:
        if reading.done():
            return
        try:
            await loop.sock_sendall(opened, piece)
        except ConnectionError:
            return
        for _ in range(_TURNS):
            await asyncio.sleep(0)


async def _rest(opened: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    came = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := await loop.sock_recv(opened, 65536):
            came += piece
    return bytes(came)


async def _heard(came: bytes, told: tuple[Told, ...]) -> Heard:
    stream = asyncio.StreamReader(limit=1 << 24)
    stream.feed_data(came)
    stream.feed_eof()
    client = RawClient(stream, None)  # type: ignore[arg-type]
    answers: list[Answer] = []
    while not stream.at_eof():
        bodiless = len(answers) < len(told) and told[len(answers)].bodiless
        try:
            answer = await client.answer(method="HEAD" if bodiless else "POST")
        except (Cut, ValueError, AssertionError) as error:
            raise AssertionError(f"no answer: {came[-200:]!r} after {answers}") from error
        assert answer.whole, f"an answer is cut off: {answer}"
        answers.append(answer)
    served_on = bool(answers) and answers[-1].header("x-request-id") == PROBE_ID
    return Heard(tuple(answers[:-1] if served_on else answers), served_on)
