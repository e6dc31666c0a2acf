"""A client that speaks HTTP by hand, so that framing and the way an answer ends can be seen."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

PATIENCE_SECONDS = 20.0


class Cut(Exception):
    """The connection ended before the answer did."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer."""

    version: str
    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str | None:
        """The only value of a header; fails where it came twice."""
        values = [value for key, value in self.headers if key.casefold() == name.casefold()]
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: `framing` is chunked, length, close or none; `whole` is whether its framing ended."""

    head: Head
    framing: str
    chunks: tuple[bytes, ...]
    whole: bool

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of an NDJSON body."""
        return [json.loads(line) for line in self.body.splitlines()]

    def header(self, name: str) -> str | None:
        return self.head.header(name)


def request(
    path: str,
    body: bytes | dict[str, Any] | None = None,
    *headers: str,
    method: str = "POST",
    version: str = "1.1",
    host: str = "localhost",
) -> bytes:
    """A request as it goes over the wire; `headers` are whole lines, a length is added where none says."""
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    lines = [f"{method} {path} HTTP/{version}", f"Host: {host}", *headers]
    names = {line.partition(":")[0].casefold() for line in headers}
    if raw is not None and not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(raw)}")
    return "\r\n".join([*lines, "", ""]).encode() + (raw or b"")


class RawClient:
    """One connection. Every wait has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @property
    def unsent_bytes(self) -> int:
        """What was written and the socket has not taken yet."""
        return self.writer.transport.get_write_buffer_size()

    async def send(self, data: bytes) -> None:
        """Write, and wait while the socket is full."""
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.writer.drain()

    async def head(self) -> Head:
        """The next head, an interim one too. Raises Cut."""
        raw = (await self._until(b"\r\n\r\n")).decode("utf-8", "surrogateescape")
        first, *lines = raw.split("\r\n")[:-2]
        version, status, reason = first.split(" ", 2)
        pairs = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        return Head(version, int(status), reason, pairs)

    async def chunk(self) -> bytes | None:
        """The next HTTP chunk, None for the last one. Raises Cut."""
        size = int(await self._until(b"\r\n"), 16)
        data = await self._exactly(size + 2)
        assert data.endswith(b"\r\n")
        return data[:-2] if size else None

    async def answer(self, *, method: str = "POST") -> Answer:
        """The next answer to its end."""
        head = await self.head()
        if method == "HEAD" or head.status in {204, 304}:
            return Answer(head, "none", (), whole=True)
        return await self.body_of(head)

    async def body_of(self, head: Head) -> Answer:
        """The rest of the answer whose head was read."""
        chunks: list[bytes] = []
        length = head.header("content-length")
        chunked = head.header("transfer-encoding") == "chunked"
        framing = "chunked" if chunked else "length" if length is not None else "close"
        assert not (chunked and length is not None)
        try:
            if framing == "chunked":
                while (chunk := await self.chunk()) is not None:
                    chunks.append(chunk)
            else:
                rest = await self._exactly(int(length)) if length is not None else await self.rest()
                chunks += [rest] if rest else []
        except Cut as cut:
            partial = cut.args[0] if framing == "length" else b""
            return Answer(head, framing, (*chunks, *([partial] if partial else [])), whole=False)
        return Answer(head, framing, tuple(chunks), whole=True)

    async def rest(self) -> bytes:
        """Everything until the other end closes; what came before a reset."""
        came = b""
        async with asyncio.timeout(PATIENCE_SECONDS):
            with contextlib.suppress(ConnectionError):
                while piece := await self._reader.read(65536):
                    came += piece
        return came

    def pause(self) -> None:
        """Read nothing more; what the sockets on the way hold is all that can still come."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        """Read again."""
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Leave by a reset."""
        opened = self.writer.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Leave."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def _until(self, mark: bytes) -> bytes:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self._reader.readuntil(mark)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Cut(getattr(error, "partial", b"")) from error

    async def _exactly(self, count: int) -> bytes:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self._reader.readexactly(count)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Cut(getattr(error, "partial", b"")) from error


@contextlib.asynccontextmanager
async def connected(host: str, port: int, *, source: str | None = None) -> AsyncIterator[RawClient]:
    """A client with a connection of its own, closed at the end."""
    reader, writer = await asyncio.open_connection(
        host, port, limit=1 << 24, local_addr=(source, 0) if source else None
    )
    client = RawClient(reader, writer)
    try:
        yield client
    finally:
        await client.close()
