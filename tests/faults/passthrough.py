"""A recording passthrough between the balancer and one instance: the only way between the two.

It writes down every request that the balancer sends and what went back, and it is the place where
networks and instances misbehave: what it does with a request or an answer is its conduct
(conducts.py). Where nothing is wrong, bytes pass unchanged and connections end as the other end's do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import httptools

_MARKER = re.compile(rb"marker-[0-9a-f]+")
_RESET = struct.pack("ii", 1, 0)
_BACKLOG = 1024
_OWN_AGENT = "ollama-balancer"
"""What the balancer calls itself where it asks for no client."""


@dataclass(slots=True, kw_only=True)
class Sent:
    """One request that the balancer sent, and what went back to it; times are monotonic seconds.

    `place` is its number on its connection `link`, from 1. `said` is whether a byte went back at all,
    `complete_at` when the answer was whole, `closed_at` when the connection ended before that.
    `loads` is the model that the balancer loads by it, for no client in particular.
    """

    instance: str
    link: int
    place: int
    at: float
    method: str = ""
    path: str = ""
    request_id: str = ""
    agent: str = ""
    marker: str = ""
    loads: str = ""
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    said: bool = False
    first_byte_at: float | None = None
    complete_at: float | None = None
    closed_at: float | None = None

    @property
    def inference(self) -> bool:
        """Whether it is work, and no probe."""
        return self.method == "POST" and self.path != "/api/show"

    @property
    def over(self) -> bool:
        return self.complete_at is not None or self.closed_at is not None


class Conduct:
    """How a passthrough behaves; this one lets everything pass."""

    bytes_per_second: float | None = None

    def meet_request(self, link: Link, sent: Sent) -> bool:
        """Deal with a request that is in; True where it must not go to the instance."""
        return False

    def meet_answer(self, link: Link, sent: Sent, data: bytes) -> bool:
        """Deal with a piece of an answer; True where it must not go to the balancer."""
        return False


class Passthrough:
    """One port for one instance. `sent` holds everything that came, in order."""

    def __init__(self, name: str, target_port: int) -> None:
        self.name = name
        self.target_port = target_port
        self.conduct = Conduct()
        self.sent: list[Sent] = []
        self.links: set[Link] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.numbers = itertools.count(1)
        self.port = 0
        self._listener: asyncio.Server | None = None
        self._free_at = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Sent]:
        """What came for clients: no probe, and no load by the balancer."""
        return [each for each in self.sent if each.inference and not each.loads]

    @property
    def loads(self) -> list[Sent]:
        """The balancer's own loads."""
        return [each for each in self.sent if each.loads]

    @property
    def busy(self) -> int:
        """Connections with a request under way that is no probe."""
        return sum(link.busy for link in self.links)

    async def open(self) -> None:
        """Accept connections, on the same port as before."""
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(
                lambda: Link(self), "127.0.0.1", self.port, backlog=_BACKLOG
            )
            self.port = self._listener.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Accept no more. Connections that work go on until their answer is whole, others end."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for link in tuple(self.links):
            link.end_after_answer()

    def cut(self) -> None:
        """Accept no more, and reset every connection, as the kernel does for a process that is killed."""
        self.refuse()
        for link in tuple(self.links):
            link.reset()

    def freeze(self) -> None:
        """Nothing passes on the connections of now, ever again, and none of them ends."""
        for link in self.links:
            link.frozen = True

    def close(self) -> None:
        """End everything."""
        self.cut()
        for task in self.tasks:
            task.cancel()

    def wait_seconds(self, size: int) -> float:
        """How long so many bytes must wait for the limited line."""
        rate, now = self.conduct.bytes_per_second, time.monotonic()
        if rate is None:
            return max(0.0, self._free_at - now)
        self._free_at = max(self._free_at, now) + size / rate
        return self._free_at - now


class Link(asyncio.Protocol):
    """One connection of the balancer, with one to the instance behind it."""

    def __init__(self, owner: Passthrough) -> None:
        self.owner = owner
        self.number = next(owner.numbers)
        self.frozen = False
        self.place = 0
        self._front: asyncio.Transport | None = None
        self._back: asyncio.Transport | None = None
        self._raw = bytearray()
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._arrived = False
        self._last = False
        self._closed = False
        self._sent: Sent | None = None
        self._requests = httptools.HttpRequestParser(self)
        self._answer: _AnswerReader | None = None

    @property
    def busy(self) -> bool:
        return not (self.frozen or self._sent is None or self._sent.over or not self._sent.inference)

    # -- the balancer's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._front = transport  # type: ignore[assignment]
        self.owner.links.add(self)

    def data_received(self, data: bytes) -> None:
        if self.frozen or self._closed:
            return
        self._raw += data
        self._requests.feed_data(data)
        if self._arrived:
            self._arrived = False
            self._meet_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self.owner.links.discard(self)
        if self._sent is not None and not self._sent.over:
            self._sent.closed_at = time.monotonic()
        if self._back is not None:
            self._back.abort()

    # -- of the request, by its parser

    def on_message_begin(self) -> None:
        self.place += 1
        self._sent = Sent(instance=self.owner.name, link=self.number, place=self.place, at=time.monotonic())
        self._answer = _AnswerReader(self._sent)

    def on_url(self, url: bytes) -> None:
        assert self._sent is not None
        self._sent.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._sent is not None
        match name.lower():
            case b"x-request-id":
                self._sent.request_id = value.decode("latin-1")
            case b"user-agent":
                self._sent.agent = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._sent is not None
        self._sent.method = self._requests.get_method().decode("latin-1")

    def on_message_complete(self) -> None:
        self._arrived = True

    def _meet_request(self) -> None:
        sent, raw = self._sent, bytes(self._raw)
        assert sent is not None
        self._raw.clear()
        found = _MARKER.search(raw)
        sent.marker = found.group().decode() if found else ""
        sent.loads = _loaded_by(sent, raw.partition(b"\r\n\r\n")[2])
        self.owner.sent.append(sent)
        if self.owner.conduct.meet_request(self, sent):
            return
        if self._back is not None:
            self._back.write(raw)
            return
        task = asyncio.get_running_loop().create_task(self._connect(raw))
        self.owner.tasks.add(task)
        task.add_done_callback(self.owner.tasks.discard)

    async def _connect(self, raw: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            back, _ = await loop.create_connection(lambda: _Back(self), "127.0.0.1", self.owner.target_port)
        except OSError:
            self.reset()
            return
        if self._closed:
            back.abort()
            return
        self._back = back
        back.write(raw)

    # -- the instance's side, and what conducts do

    def meet_answer(self, data: bytes) -> None:
        """A piece of an answer has come from the instance."""
        sent = self._sent
        if self.frozen or self._closed or sent is None:
            return
        if not self.owner.conduct.meet_answer(self, sent, data):
            self.pass_on(data)

    def pass_on(self, data: bytes) -> None:
        """Give a piece of the instance's answer to the balancer, and write down what it says."""
        sent = self._sent
        if sent is None or self._answer is None or self._closed:
            return
        self._note_said(sent)
        self._answer.parser.feed_data(data)
        self._later(len(data), lambda: self._write(data))
        if self._last and sent.complete_at is not None:
            self.close()

    def say(self, data: bytes, *, proper: bool) -> None:
        """Give the balancer these bytes, which no instance has said; an answer that is not `proper`
        is never whole."""
        sent = self._sent
        if sent is None or self._answer is None:
            return
        self._note_said(sent)
        with contextlib.suppress(httptools.HttpParserError):
            self._answer.parser.feed_data(data)
        if not proper:
            sent.complete_at = None
        self._write(data)

    def close(self) -> None:
        """End the connection properly, after what is written."""
        self._later(0, self._close)

    def reset(self) -> None:
        """End the connection by a reset."""
        if self._front is not None and not self._closed:
            opened = self._front.get_extra_info("socket")
            if opened is not None:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._front.abort()

    def end_after_answer(self) -> None:
        """End the connection as soon as nothing is under way on it."""
        self._last = True
        if self._sent is None or self._sent.over:
            self.close()

    def instance_gone(self, error: Exception | None) -> None:
        """The instance has ended its connection: so does ours, in the same way."""
        self._back = None
        if self.frozen:
            return
        if error is not None:
            self.reset()
        else:
            self.close()

    def _later(self, size: int, act: Callable[[], None]) -> None:
        seconds = self.owner.wait_seconds(size)
        if seconds <= 0 and not self._waiting:
            act()
            return
        self._waiting.append((time.monotonic() + seconds, act))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(seconds, self._catch_up)

    def _catch_up(self) -> None:
        """Do what is due, in order: two timers of one time may fire in any."""
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            self._waiting.popleft()[1]()
        if self._waiting:
            seconds = max(0.001, self._waiting[0][0] - time.monotonic())
            asyncio.get_running_loop().call_later(seconds, self._catch_up)

    def _write(self, data: bytes) -> None:
        if self._front is not None and not self._closed:
            self._front.write(data)

    def _close(self) -> None:
        if self._front is not None and not self._closed:
            self._front.close()

    def _note_said(self, sent: Sent) -> None:
        if not sent.said:
            sent.said = True
            sent.first_byte_at = time.monotonic()


def _loaded_by(sent: Sent, body: bytes) -> str:
    """The model that a request of the balancer's own loads; empty for any other request."""
    if sent.agent != _OWN_AGENT or sent.request_id or sent.method != "POST":
        return ""
    with contextlib.suppress(ValueError):
        asked = json.loads(body)
        if (sent.path == "/api/generate" and "prompt" not in asked) or (
            sent.path == "/api/embed" and asked.get("input") == []
        ):
            return str(asked["model"])
    return ""


class _Back(asyncio.Protocol):
    """The connection to the instance."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def data_received(self, data: bytes) -> None:
        self._link.meet_answer(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.instance_gone(exc)


class _AnswerReader:
    """Takes down an answer for its record."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        self.parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self._sent.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._sent.body += body

    def on_message_complete(self) -> None:
        self._sent.complete_at = time.monotonic()
