"""`python -m tests.soak.echo`: three instances in one process that answer with the marker of the question.

Every record of every answer bears the marker of its own request, so that a byte at the wrong client shows.
How long an answer is, how fast it comes and what goes wrong with it follows from the marker alone, which
the client knows too. What goes wrong goes wrong once for a marker: another try is answered.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Any, cast

import httptools
import uvloop

MARKER = re.compile(rb"marker-[0-9a-f]{16}")
MODELS = ("llama3.2:latest", "nomic-embed-text:latest")
_COUNT = 3
_STREAMING = frozenset({"/api/chat", "/api/generate"})
_NEVER_STREAMING = frozenset({"/api/embed", "/api/show"})
_RUNS_UNTIL = "2318-01-01T00:00:00Z"
_ROWS = [
    {
        "name": name,
        "model": name,
        "digest": f"{number:064x}",
        "size": 1,
        "modified_at": "2026-01-01T00:00:00Z",
    }
    for number, name in enumerate(MODELS)
]
_LISTS: Mapping[str, Any] = {
    "/api/version": {"version": "0.33.0"},
    "/api/tags": {"models": _ROWS},
    "/api/ps": {"models": [{**row, "size_vram": 1, "expires_at": _RUNS_UNTIL} for row in _ROWS]},
}


class Conduct(StrEnum):
    """What an instance does with a request."""

    ANSWER = "answer"
    CLOSE = "close"  # takes it, and ends the connection before a byte of an answer
    FAIL = "fail"  # 500, in words that no rule knows
    CUT = "cut"  # ends the connection in the middle of the answer
    SURPLUS = "surplus"  # says more than the answer: what could reach another client


def conduct_of(marker: str) -> Conduct:
    """What becomes of a marker at its first try: for one in fifty something goes wrong."""
    turn = int(marker[-4:], 16) % 1000 // 5
    return _FAULTS[turn] if turn < len(_FAULTS) else Conduct.ANSWER


_FAULTS = (Conduct.CLOSE, Conduct.FAIL, Conduct.CUT, Conduct.SURPLUS)


def records_of(marker: str) -> int:
    """How many records, or repetitions in an answer of one piece, it is answered with."""
    return 1 + int(marker[-6:-4], 16) % 24


def vector_of(marker: str) -> list[int]:
    """The embedding that it is answered with."""
    return [int(marker[at : at + 4], 16) for at in range(7, 23, 4)]


def _pause_of(marker: str) -> float:
    """Seconds between two records: none for some, so that several come in one read."""
    return (0.0, 0.0, 0.002, 0.01)[int(marker[-7], 16) % 4]


def _line(**fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _native(path: str, marker: str) -> list[bytes]:
    def record(text: str, **last: Any) -> bytes:
        said = (
            {"message": {"role": "assistant", "content": text}} if path == "/api/chat" else {"response": text}
        )
        return _line(model=MODELS[0], created_at="t", **said, done=bool(last), **last) + b"\n"

    count = records_of(marker)
    return [*[record(marker)] * count, record("", done_reason="stop", eval_count=count)]


def _openai(_path: str, marker: str) -> list[bytes]:
    each = b"data: " + _line(id=marker, choices=[{"index": 0, "delta": {"content": marker}}]) + b"\n\n"
    return [each] * records_of(marker) + [b"data: [DONE]\n\n"]


def _anthropic(_path: str, marker: str) -> list[bytes]:
    def event(name: str, **fields: Any) -> bytes:
        return f"event: {name}\ndata: ".encode() + _line(type=name, **fields) + b"\n\n"

    each = event("content_block_delta", index=0, delta={"type": "text_delta", "text": marker})
    return [
        event("message_start", message={"id": marker}),
        *[each] * records_of(marker),
        event("message_stop"),
    ]


def _whole(path: str, marker: str) -> bytes:
    """An answer in one piece."""
    text = marker * records_of(marker)
    match path:
        case "/api/embed":
            return _line(model=MODELS[1], embeddings=[vector_of(marker)], prompt_eval_count=1)
        case "/v1/embeddings":
            return _line(
                object="list", data=[{"object": "embedding", "index": 0, "embedding": vector_of(marker)}]
            )
        case "/v1/chat/completions":
            return _line(id=marker, choices=[{"index": 0, "message": {"role": "assistant", "content": text}}])
        case "/v1/messages":
            return _line(id=marker, type="message", content=[{"type": "text", "text": text}])
        case "/api/chat":
            return _line(model=MODELS[0], message={"role": "assistant", "content": text}, done=True)
        case _:
            return _line(model=MODELS[0], response=text, details=marker, done=True)


class Echo(asyncio.Protocol):
    """One connection. Requests are answered in turn, each by a task that ends with the connection."""

    def __init__(self, failed: set[str], open_ones: set[Echo]) -> None:
        self._failed = failed
        self._open = open_ones
        self._task: asyncio.Task[None] | None = None
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._open.discard(self)
        if self._task is not None:
            self._task.cancel()

    def close_if_idle(self) -> None:
        if self._task is None or self._task.done():
            self._transport.close()

    def on_message_begin(self) -> None:
        self._path, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path = self._path.decode().partition("?")[0]
        self._task = asyncio.get_running_loop().create_task(self._answer(path, self._body))

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    async def _answer(self, path: str, body: bytes) -> None:
        if path in _LISTS:
            self._write(_told(_LISTS[path]))
        elif path == "/close-idle":
            self._write(_told({}))
            for each in self._open - {self}:
                each.close_if_idle()
        elif found := MARKER.search(body):
            await self._echo(path, found.group().decode(), json.loads(body))
        else:
            self._write(_told({"error": "no marker"}, status=400))

    async def _echo(self, path: str, marker: str, asked: Mapping[str, Any]) -> None:
        conduct = Conduct.ANSWER if marker in self._failed else conduct_of(marker)
        if conduct is not Conduct.ANSWER:
            self._failed.add(marker)
        if conduct is Conduct.CLOSE:
            self._transport.close()
            return
        if conduct is Conduct.FAIL:
            self._write(_told({"error": f"it fails, {marker}"}, status=500))
            return
        await asyncio.sleep(_pause_of(marker))
        # In one write with the end of the answer: what comes later could come after the next request,
        # and nothing in HTTP/1.1 would tell it from an answer to that.
        surplus = _told({"error": f"stale, for {marker}"}) if conduct is Conduct.SURPLUS else b""
        if asked.get("stream", path in _STREAMING) and path not in _NEVER_STREAMING:
            await self._stream(path, marker, cut=conduct is Conduct.CUT, surplus=surplus)
        else:
            said = _answer(_whole(path, marker))
            self._write(said[:-2] if conduct is Conduct.CUT else said + surplus)
        if conduct is Conduct.CUT:
            self._transport.close()

    async def _stream(self, path: str, marker: str, *, cut: bool, surplus: bytes) -> None:
        write = {"/v1/chat/completions": _openai, "/v1/messages": _anthropic}.get(path, _native)
        kind = "application/x-ndjson" if write is _native else "text/event-stream"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._write(head.encode())
        records = write(path, marker)
        for each in records[:-1]:
            self._write(b"%x\r\n%b\r\n" % (len(each), each))
            if pause := _pause_of(marker):
                await asyncio.sleep(pause)
        if not cut:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n%b" % (len(records[-1]), records[-1], surplus))


def _told(value: Mapping[str, Any], *, status: int = 200) -> bytes:
    return _answer(_line(**value), status=status)


def _answer(body: bytes, *, status: int = 200) -> bytes:
    head = f"HTTP/1.1 {status} Told\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def serve() -> None:
    """Listen on free ports, tell them on a line, and go on until the input ends."""
    loop = asyncio.get_running_loop()
    urls = []
    failed: set[str] = set()
    for _ in range(_COUNT):
        server = await loop.create_server(partial(Echo, failed, set()), "127.0.0.1", 0, backlog=1024)
        urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    print(json.dumps(urls), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve())
