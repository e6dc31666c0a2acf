"""Factories and small clients for tests that talk to a simulated server over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import aiohttp

from balancer.simulator import ModelStore, ServerConfig, ServiceRates, SimulatedOllama

CHAT, THINKER, EMBEDDER, SEER = "llama3.2:latest", "qwen3:8b", "nomic-embed-text:latest", "gemma3:4b"
_LOOK_SECONDS = 0.005
FOREVER = {"simulated_tokens": 2000}
SLOW_RATES = ServiceRates(decode_tokens_per_second=5, prefill_tokens_per_second=1e6)


def fast(**changes: Any) -> ServerConfig:
    """A server on which nothing takes noticeable time and nothing expires."""
    return replace(ServerConfig(speed=500, keep_alive_seconds=1e6), **changes)


def steady(**changes: Any) -> ServerConfig:
    """A server in real time that loads at once and speaks slowly, for tests that hold it busy."""
    return replace(ServerConfig(load_seconds=0, rates=SLOW_RATES), **changes)


class Client:
    """One aiohttp session on one simulated server."""

    def __init__(self, server: SimulatedOllama, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def post(self, path: str, body: Any) -> aiohttp.ClientResponse:
        response = await self.session.post(path, json=body)
        await response.read()
        return response

    async def get(self, path: str) -> Any:
        async with self.session.get(path) as response:
            return await response.json(content_type=None)

    async def ask(self, model: str = CHAT, text: str = "hi", **fields: Any) -> dict[str, Any]:
        """A whole chat answer, read as JSON."""
        messages = fields.pop("messages", [{"role": "user", "content": text}])
        body = {"model": model, "messages": messages, "stream": False, **fields}
        response = await self.post("/api/chat", body)
        answer: dict[str, Any] = await response.json()
        return answer

    @contextlib.asynccontextmanager
    async def held(self, model: str = CHAT, **fields: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """A stream that has begun and would go on for minutes; left when the block ends."""
        body = {"model": model, "prompt": "go on", "options": FOREVER, **fields}
        response = await self.session.post("/api/generate", json=body)
        try:
            await response.content.readline()
            yield response
        finally:
            response.close()

    def background(self, model: str = CHAT, **fields: Any) -> asyncio.Task[dict[str, Any]]:
        return asyncio.create_task(self.ask(model, **fields))

    async def resident(self) -> list[str]:
        return [item["name"] for item in (await self.get("/api/ps"))["models"]]

    async def fault(self, **fields: Any) -> None:
        assert (await self.post("/simulator/faults", fields)).status == 201


@contextlib.asynccontextmanager
async def simulated(
    config: ServerConfig | None = None, store: ModelStore | None = None
) -> AsyncIterator[Client]:
    """A running server and a client of it."""
    async with SimulatedOllama(config or fast(), store).running() as server, client_of(server) as client:
        yield client


@contextlib.asynccontextmanager
async def client_of(server: SimulatedOllama) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, connector=connector) as session:
        yield Client(server, session)


async def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a state, looking often; fails loudly when it never comes."""
    for _ in range(int(seconds / _LOOK_SECONDS)):
        if holds():
            return
        await asyncio.sleep(_LOOK_SECONDS)
    raise AssertionError(f"not so within {seconds} s")


def request_bytes(path: str, body: Any, *, version: str = "1.1", headers: Sequence[str] = ()) -> bytes:
    """A POST as it goes over the wire."""
    payload = json.dumps(body).encode()
    head = [
        f"POST {path} HTTP/{version}",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(payload)}",
        *headers,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + payload


async def raw_exchange(server: SimulatedOllama, request: bytes) -> bytes:
    """Everything that a connection gives until it ends; add `Connection: close` to end it."""
    reader, writer = await asyncio.open_connection(server.config.host, server.port)
    try:
        writer.write(request)
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def wire_chunks(answer: bytes) -> tuple[bytes, list[bytes], bool]:
    """The head, the chunks, and whether the terminating chunk came."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    chunks: list[bytes] = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return head, chunks, True
        chunks.append(rest[:length])
        rest = rest[length + 2 :]
    return head, chunks, False


def lines_of(body: str) -> list[dict[str, Any]]:
    """The records of a native stream."""
    return [json.loads(line) for line in body.splitlines()]


def events_of(body: str) -> Iterator[tuple[str, Any]]:
    """The name and data of each server-sent event; [DONE] as text."""
    for block in body.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        data = fields["data"]
        yield fields.get("event", ""), data if data == "[DONE]" else json.loads(data)
