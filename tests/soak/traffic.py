"""Clients of the soak: every dialect, looks at lists, hostile bits, and one in five that goes away somewhere.

Every request has a marker of its own, and what comes back is judged at once, so that nothing is kept of it
but how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.faults.client import Client, Leaving, Seen, View
from tests.faults.talks import MIXED, Talk
from tests.soak.echo import MARKER, MODELS, Conduct, conduct_of, records_of, vector_of

ABORTING_SHARE = 0.2
_LOOKING_SHARE, _HOSTILE_SHARE, _FRESH_SHARE = 0.08, 0.05, 0.1
_PATIENCE_SECONDS = 30.0
_SHOWN_VIOLATIONS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a request ended: all that is kept of it. `parsed` is whether the balancer must have read it."""

    seen: Seen
    status: int
    parsed: bool = True


@dataclass(slots=True)
class Tally:
    """All requests by their ids, what was wrong, and in which way clients went away."""

    ended: dict[str, Ended] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    aborts: dict[str, int] = field(default_factory=dict)

    def violate(self, what: str) -> None:
        if len(self.violations) < _SHOWN_VIOLATIONS:
            self.violations.append(what)


class Traffic:
    """Requests to one balancer until `stop`, or until so many were sent."""

    def __init__(self, port: int, *, seed: int, requests: int | None = None) -> None:
        self.tally = Tally()
        self._port = port
        self._random = Random(seed)
        self._most = requests
        self._numbers = itertools.count(1)
        self._sent = 0
        self._stopping = False

    @property
    def done(self) -> bool:
        return self._stopping or (self._most is not None and self._sent >= self._most)

    def stop(self) -> None:
        """Ask no more."""
        self._stopping = True

    async def run(self, clients: int) -> None:
        """Ask without a pause; returns when the last answer is in."""
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client(Random(self._random.random())))

    async def _client(self, random: Random) -> None:
        client = Client(self._port, patience_seconds=_PATIENCE_SECONDS)
        while not self.done:
            self._sent += 1
            request_id, marker = f"soak-{next(self._numbers):07d}", f"marker-{random.getrandbits(64):016x}"
            turn = random.random()
            if turn < _HOSTILE_SHARE:
                await self._ask_badly(random, request_id)
            elif turn < _HOSTILE_SHARE + _LOOKING_SHARE:
                await self._look(random, request_id, marker, client)
            elif turn < _HOSTILE_SHARE + _LOOKING_SHARE + ABORTING_SHARE:
                await self._ask_and_leave(random, request_id, marker, client)
            else:
                view = await _ask(random.choice(TALKS), request_id, marker, client)
                self._judge(view)
            if random.random() < _FRESH_SHARE:
                await client.close(by_reset=random.random() < 0.5)
        await client.close()

    async def _look(self, random: Random, request_id: str, marker: str, client: Client) -> None:
        view = await _ask(random.choice(LOOKS), request_id, marker, client)
        self._judge(view)

    async def _ask_badly(self, random: Random, request_id: str) -> None:
        """What no client should send, on a connection of its own; it is told so, or cut off."""
        bad = random.choice(HOSTILE)
        client = Client(self._port, patience_seconds=_PATIENCE_SECONDS)
        view = View(request_id=request_id, marker="", talk=MIXED[0], sent_at=time.monotonic())
        await client.ask(view, bad % request_id.encode())
        await client.close()
        if MARKER.search(bytes(view.body)) or (view.status and not 400 <= view.status < 500):
            self.tally.violate(
                f"{request_id}: {bad[:60]!r} was answered {view.status} {bytes(view.body)[:100]!r}"
            )
        if view.hung:
            self.tally.violate(f"{request_id}: {bad[:60]!r} was never answered")
        self.tally.ended[request_id] = Ended(seen=Seen.FOREIGN, status=view.status, parsed=False)

    async def _ask_and_leave(self, random: Random, request_id: str, marker: str, client: Client) -> None:
        """Go away: right after the connection, in the head or the body, before a byte, in the answer."""
        talk, by_reset = random.choice(TALKS), random.random() < 0.5
        where = random.choice(("connected", "head", "body", "waiting", "waiting", "answer", "answer"))
        self.tally.aborts[where] = self.tally.aborts.get(where, 0) + 1
        if where in {"waiting", "answer"}:
            leaving = Leaving(seconds=random.uniform(0.0, 0.03), by_reset=by_reset)
            if where == "answer":
                leaving = Leaving(answer_bytes=random.randint(1, 3000), by_reset=by_reset)
            self._judge(await _ask(talk, request_id, marker, client, leaving))
            return
        request = talk.request(request_id, marker)
        head = request.index(b"\r\n\r\n")
        size = {
            "connected": 0,
            "head": random.randrange(1, head),
            "body": random.randrange(head, len(request)),
        }[where]
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(request[:size])
            await asyncio.sleep(random.uniform(0.0, 0.01))
            if by_reset:
                writer.transport.abort()
            else:
                writer.close()
        self.tally.ended[request_id] = Ended(seen=Seen.LEFT, status=0)

    def _judge(self, view: View) -> None:
        """Whether the answer is its own, all of it, and no one else's; and what is kept of it."""
        self.tally.ended[view.request_id] = Ended(seen=view.seen, status=view.status)
        text = bytes(view.body) + json.dumps(view.headers).encode()
        for found in set(MARKER.findall(text)) - {view.marker.encode()}:
            self.tally.violate(f"{view.request_id} ({view.marker}): was told {found.decode()}")
        match view.seen:
            case Seen.WHOLE:
                if not view.talk.text(bytes(view.body)) or not _is_own(view):
                    self.tally.violate(f"{view.request_id}: whole, and not its own: {text[:200]!r}")
            case Seen.BROKEN:
                if conduct_of(view.marker) is not Conduct.CUT:
                    self.tally.violate(f"{view.request_id}: broken off by itself")
            case Seen.LEFT | Seen.TOLD:
                pass
            case _:
                self.tally.violate(
                    f"{view.request_id} ({view.talk.name}): {view.seen} {view.error} {text[:200]!r}"
                )


def _is_own(view: View) -> bool:
    """Whether a whole answer says what its marker is answered with."""
    told = view.talk.text(bytes(view.body)) or ""
    if view.talk in LOOKS:
        return view.talk is not SHOW or told == view.marker
    if told.startswith("["):
        return [int(each) for each in json.loads(told)] == vector_of(view.marker)
    return told == view.marker * records_of(view.marker)


async def _ask(
    talk: Talk, request_id: str, marker: str, client: Client, leaving: Leaving | None = None
) -> View:
    view = View(request_id=request_id, marker=marker, talk=talk, sent_at=time.monotonic())
    return await client.ask(view, talk.request(request_id, marker), leaving)


class _Look(Talk):
    """A question without a body."""

    def request(self, request_id: str, marker: str, *, model: str = "", tokens: int | None = None) -> bytes:
        return f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: {request_id}\r\n\r\n".encode()


def _unary(name: str, path: str, ask: Callable[[str], dict[str, Any]], pick: Callable[[Any], str]) -> Talk:
    def text(body: bytes) -> str | None:
        try:
            return pick(json.loads(body))
        except (ValueError, KeyError, IndexError, TypeError):
            return None

    return Talk(name=name, path=path, streams=False, ask=lambda prompt, _tokens: ask(prompt), text=text)


def _look(path: str, pick: Callable[[Any], Any]) -> Talk:
    one = _unary(path, path, lambda _prompt: {}, lambda told: json.dumps(pick(told)))
    return _Look(name=path, path=path, streams=False, ask=one.ask, text=one.text)


def _asked(**fields: Any) -> dict[str, Any]:
    return {"model": MODELS[0], **fields}


def _generate(prompt: str) -> dict[str, Any]:
    return _asked(prompt=prompt, stream=False)


def _message(prompt: str) -> dict[str, Any]:
    return _asked(max_tokens=9, messages=[{"role": "user", "content": prompt}])


def _first_vector(told: Any) -> str:
    return str(told["data"][0]["embedding"])


SHOW = _unary("show", "/api/show", lambda prompt: _asked(system=prompt), lambda told: told["details"])
TALKS = (
    *MIXED,
    _unary("generate", "/api/generate", _generate, lambda told: told["response"]),
    _unary(
        "predict", f"/predict/{MODELS[0]}", lambda prompt: {"prompt": prompt}, lambda told: told["response"]
    ),
    _unary("message", "/v1/messages", _message, lambda told: told["content"][0]["text"]),
    _unary(
        "embedding", "/v1/embeddings", lambda prompt: {"model": MODELS[1], "input": prompt}, _first_vector
    ),
)
LOOKS = (
    _look("/api/tags", lambda told: told["models"]),
    _look("/api/ps", lambda told: told["models"]),
    _look("/v1/models", lambda told: told["data"]),
    _look("/api/version", lambda told: told["version"]),
    SHOW,
)
_HEAD = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: %b\r\n"
HOSTILE = (
    _HEAD + b'Content-Length: 9\r\n\r\n{"model":',
    _HEAD + b"Content-Length: 2\r\n\r\n[]",
    _HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    _HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    _HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    _HEAD + b"X: " + b"x" * 20_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    _HEAD + b'Content-Length: 31\r\n\r\n{"model":"a","MODEL":"b","x":1}}'[:-1],
    b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: %b\r\n\r\n",
    b"DELETE /api/chat HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: %b\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03%b\r\n\r\n",
)
