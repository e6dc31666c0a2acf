"""The benchmark's own Ollama: every model call answered at once or in paced chunks, as cheaply as Python can.

`python -m tests.benchmarks.instance COUNT` listens on so many ports of loopback and prints them as JSON. It
knows nothing of models, slots or loads; the simulator does, and is far too slow to measure a proxy with.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import defaultdict
from typing import cast

import uvloop

from tests.benchmarks.wire import FORMS, MODEL, TEXT, Asked, Form, Path, read_question, tail_of

RELEASE = "/bench/release"
"""The streams under way go on, and end, at once."""
STOP = "/bench/stop"
"""The streams that were asked for no number of chunks end, all with the same number; it is told."""
STATE = "/bench/state"
"""How many connections and requests there were."""
_BACKLOG = 4096
_KEPT_BYTES = 4096
"""Of a body so much is looked at; the question is at its beginning."""
_TICK_NS = 1_000_000
_SPREAD = 37
"""Streams that begin together are this many ticks apart; prime to every usual pace."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ROW = {
    "name": MODEL,
    "model": MODEL,
    "modified_at": "2026-01-01T00:00:00Z",
    "size": 2_000_000_000,
    "digest": "b" * 64,
    "details": {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "3B",
        "quantization_level": "Q4_K_M",
    },
}
_RUNNING = {**_ROW, "expires_at": "2300-01-01T00:00:00Z", "size_vram": 2_000_000_000, "context_length": 4096}
_LISTS = {
    "/api/version": {"version": "0.33.0"},
    "/api/tags": {"models": [_ROW]},
    "/api/ps": {"models": [_RUNNING]},
    "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]},
}


class Wheel:
    """One timer for all streams: whoever is due in a tick writes in it."""

    def __init__(self) -> None:
        self._due: dict[int, list[Stream]] = defaultdict(list)
        self._tick = 0
        self._begun = 0
        self._running = False

    def begin(self, stream: Stream) -> None:
        """Its first chunk comes within one of its intervals and a second, each stream's at another time."""
        self._begun += 1
        self.put(stream, self._begun * _SPREAD % max(1, min(stream.asked.every_ms, 1000)))

    def put(self, stream: Stream, ticks: int) -> None:
        """Let it write after so many milliseconds, and not in this tick."""
        now = time.monotonic_ns() // _TICK_NS
        if not self._running:
            self._running, self._tick = True, now
            asyncio.get_running_loop().call_later(0.001, self._turn)
        self._due[max(now + ticks, self._tick + 1)].append(stream)

    def release(self) -> None:
        """Everything that waits is due."""
        waiting = [stream for streams in self._due.values() for stream in streams]
        self._due.clear()
        for stream in waiting:
            if not stream.hurry():
                self.put(stream, stream.asked.every_ms)

    def stop(self) -> int:
        """Let those without an end stop after as many chunks as nobody has written yet."""
        waiting = [stream for streams in self._due.values() for stream in streams if not stream.chunks]
        chunks = 1 + max((stream.number for stream in waiting), default=0)
        for stream in waiting:
            stream.chunks = chunks
        return chunks

    def _turn(self) -> None:
        now = time.monotonic_ns() // _TICK_NS
        while self._tick < now:
            self._tick += 1
            for stream in self._due.pop(self._tick, ()):
                if not stream.step():
                    self.put(stream, stream.asked.every_ms - (now - self._tick))
        if self._due:
            asyncio.get_running_loop().call_later(0.001, self._turn)
        else:
            self._running = False


class Stream:
    """One paced answer."""

    def __init__(self, connection: Connection, form: Form, asked: Asked) -> None:
        self.asked = asked
        self.chunks = asked.chunks
        self.number = 0
        self.gone = False
        self.paused = False
        self._connection = connection
        self._form = form
        self._after = tail_of(asked.chunk_bytes) + form.after + b"\r\n"
        length = len(form.before) + len(TEXT % (0, 0, 0)) + len(self._after) - 2
        self._before = b"%x\r\n%b" % (length, form.before)

    def step(self) -> bool:
        """Write the next chunk; whether it was the last. A stream that cannot be written to waits."""
        if self.gone:
            return True
        if self.paused:
            return False
        text = TEXT % (self.asked.marker, self.number, time.monotonic_ns())
        chunk = b"".join((self._before, text, self._after))
        self.number += 1
        if self.number != self.chunks:
            self._connection.transport.write(chunk)
            return False
        end = self._form.end
        self._connection.transport.write(b"%b%x\r\n%b\r\n0\r\n\r\n" % (chunk, len(end), end))
        self._connection.stream = None
        return True

    def hurry(self) -> bool:
        """Write all the rest now; whether that was possible. One without an end goes on at its pace."""
        while self.chunks and not self.paused:
            if self.step():
                return True
        return False


class Connection(asyncio.Protocol):
    """One connection of a proxy: one request at a time, bodies by their length only."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._buffer = b""
        self._missing = 0
        self._target = b""
        self.stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._instance.connects += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if self.stream is not None:
            self.stream.gone = True

    def pause_writing(self) -> None:
        if self.stream is not None:
            self.stream.paused = True

    def resume_writing(self) -> None:
        if self.stream is not None:
            self.stream.paused = False

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._take(data)
            return
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        found = _LENGTH.search(head)
        self._target = head[: head.index(b"\r\n")]
        self._missing = int(found[1]) if found else 0
        self._buffer = b""
        if b"ransfer-" in head and b"hunked" in head:
            self.transport.write(b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()
        else:
            self._take(body)

    def _take(self, data: bytes) -> None:
        self._missing -= len(data)
        if len(self._buffer) < _KEPT_BYTES:
            self._buffer += data[:_KEPT_BYTES]
        if self._missing <= 0:
            body, self._buffer, self._missing = self._buffer, b"", 0
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        method, _, rest = self._target.partition(b" ")
        target = rest.partition(b" ")[0].decode()
        self._instance.requests += 1
        if method == b"POST" and target in FORMS and (asked := read_question(body)) is not None:
            self._reply(FORMS[Path(target)], asked)
            return
        told = self._instance.tell(target)
        content = json.dumps(told).encode()
        status = b"200 OK" if told is not None else b"404 Not Found"
        self._write(status, b"application/json", content)

    def _reply(self, form: Form, asked: Asked) -> None:
        if not asked.stream:
            self._write(b"200 OK", b"application/json", form.whole(asked.marker, asked.chunk_bytes))
            return
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % form.content_type
        )
        self.stream = Stream(self, form, asked)
        self._instance.wheel.begin(self.stream)

    def _write(self, status: bytes, content_type: bytes, content: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
        self.transport.write(head % (status, content_type, len(content)) + content)


class Instance:
    """What all connections share."""

    def __init__(self) -> None:
        self.wheel = Wheel()
        self.connects = 0
        self.requests = 0

    def tell(self, target: str) -> object | None:
        """What the paths that ask of the instance itself answer."""
        if target == RELEASE:
            self.wheel.release()
        if target in (RELEASE, STATE):
            return {"connects": self.connects, "requests": self.requests}
        if target == STOP:
            return {"chunks": self.wheel.stop()}
        return _LISTS.get(target)


async def _serve(count: int) -> None:
    instance = Instance()
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda: Connection(instance), "127.0.0.1", 0, backlog=_BACKLOG)
        for _ in range(count)
    ]
    print(json.dumps([each.sockets[0].getsockname()[1] for each in servers]), flush=True)
    await asyncio.gather(*(each.serve_forever() for each in servers))


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
