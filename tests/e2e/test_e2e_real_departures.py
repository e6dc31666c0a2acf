"""What real servers go through when clients leave: while a model loads, in the prompt, with an answer
unread; and when some clients never leave a model to others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from harness import http, until
from real_ollama import Behind, Gate, behind, gate, in_front_of, needs_ollama, serving

pytestmark = needs_ollama

ROUNDS = 10
TURNS = 4
PATIENCE_SECONDS = 8.0
COLD = {
    "/api/chat": {"model": "say", "messages": [{"role": "user", "content": "hi"}]},
    "/api/embed": {"model": "e", "input": "hi"},
    "/v1/chat/completions": {"model": "say", "messages": [{"role": "user", "content": "hi"}], "stream": True},
}
BATCH = {"num_batch": 128, "temperature": 0}
"""A prompt can be left between two batches only, so these are small."""
ASKED = {"model": "t", "prompt": "hi"}
SHORT = {**ASKED, "stream": False, "options": {"num_predict": 2}}
WORDY = {**ASKED, "logprobs": True, "top_logprobs": 20, "options": {"seed": 1, "num_predict": 100_000}}

each_cold = pytest.mark.parametrize("path", COLD)


@pytest.fixture(scope="module")
def alone(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """One server with one slot, and a balancer that keeps little for who does not read."""
    little = {"BALANCER_LIMITS__STREAM_BUFFER_BYTES": "1MiB"}
    folder = tmp_path_factory.mktemp("alone")
    with serving("alone", store, folder) as server, in_front_of([server], folder, **little) as started:
        yield started


@contextlib.contextmanager
def gated(store: Path, folder: Path) -> Iterator[tuple[Behind, Gate]]:
    """A server that finishes no load before its gate is open, and a balancer."""
    closed = gate(folder / "gate")
    with (
        serving("slow", store, folder, binary=closed.binary) as server,
        in_front_of([server], folder) as started,
    ):
        yield started, closed


@contextlib.asynccontextmanager
async def asking(client: httpx.AsyncClient, path: str, body: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A request under way, whose client leaves at the end of the block if it did not before."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(client.post(path, json=body))
        yield task
        task.cancel()


def outcomes(started: Behind) -> list[str]:
    """How the requests for a model ended, the newest first."""
    return [each["outcome"] for each in started.recent() if "model" in each]


@each_cold
async def test_load_goes_on_when_its_client_leaves(store: Path, tmp_path: Path, path: str) -> None:
    """Ollama itself would end a load with the request that began it."""
    with gated(store, tmp_path) as (started, closed):
        (server,) = started.servers
        async with http(started.url) as client:
            async with asking(client, path, COLD[path]):
                await until(closed.loads)
                loading = server.runners()
            await until(lambda: outcomes(started) == ["cancelled"])
            closed.open()
            await until(lambda: f"{COLD[path]['model']}:latest" in server.resident(), PATIENCE_SECONDS)
            answer = await client.post(path, json=COLD[path])
            await until(lambda: started.running() == [0])

        assert answer.status_code == 200
        assert closed.loads() == 1
        assert server.runners() == loading


async def test_load_serves_whoever_waits_when_the_first_client_leaves(store: Path, tmp_path: Path) -> None:
    with gated(store, tmp_path) as (started, closed):
        path, body = "/api/chat", COLD["/api/chat"]
        async with http(started.url) as client, asyncio.TaskGroup() as group:
            async with asking(client, path, body):
                await until(closed.loads)
                following = group.create_task(client.post(path, json=body))
                await until(lambda: started.live() == 2)
            await until(lambda: outcomes(started) == ["cancelled"])
            closed.open()
            answer = await following

        assert answer.status_code == 200
        assert closed.loads() == 1


async def test_client_that_leaves_in_its_prompt_gives_the_slot_back(alone: Behind) -> None:
    """A server logs a request when it has ended; this one would be in its prompt for seconds more. Its
    lease is back at once, and the slot is lent again when the batch that it leaves behind is over."""
    (server,) = alone.servers
    body = {"model": "m", "prompt": "word " * 200, "stream": False, "options": {**BATCH, "num_predict": 2}}
    async with http(alone.url) as client:
        assert (await client.post("/api/generate", json=body)).status_code == 200
        before, ended = server.busy_ticks(), server.served("/api/generate")
        async with asking(client, "/api/generate", {**body, "prompt": "other " * 1800}):
            await until(lambda: server.busy_ticks() > before + 20)
        await until(lambda: alone.cooling() == [1])
        returned = alone.running()
        after = await client.post("/api/generate", json=body)
        await until(lambda: server.served("/api/generate") == ended + 2, 2)

    assert returned == [0]
    assert (after.status_code, after.headers["X-Balancer-Attempts"]) == (200, "1")
    assert int(after.headers["X-Balancer-Queue-Ms"]) > 0
    assert outcomes(alone)[:2] == ["ok", "cancelled"]
    assert alone.cooling() == [0]


@pytest.mark.parametrize("goodbye", ["fin", "rst"])
async def test_reader_that_stops_and_leaves_takes_no_slot_along(alone: Behind, goodbye: str) -> None:
    """Straight at Ollama, one in a few of these left the only slot of the model taken for good."""
    answers: list[httpx.Response] = []
    async with http(alone.url) as client:
        for turn in range(ROUNDS):
            reader = StoppedReader(alone.url)
            await asyncio.sleep(turn * 0.05)
            reader.leave(reset=goodbye == "rst")
            answers.append(await client.post("/api/generate", json=SHORT, timeout=PATIENCE_SECONDS))

    assert [each.status_code for each in answers] == [200] * ROUNDS
    assert sorted(outcomes(alone)[: 2 * ROUNDS]) == ["cancelled"] * ROUNDS + ["ok"] * ROUNDS
    assert alone.running() == [0]


async def test_reader_that_stops_and_stays_is_cut_off_and_takes_no_slot_along(alone: Behind) -> None:
    reader = StoppedReader(alone.url)
    async with http(alone.url) as client:
        answer = await client.post("/api/generate", json=SHORT, timeout=2 * PATIENCE_SECONDS)

    assert answer.status_code == 200
    assert not reader.rest().endswith(b"0\r\n\r\n")
    assert alone.running() == [0]


async def test_model_in_constant_use_makes_room_for_another(store: Path, tmp_path: Path) -> None:
    """Ollama itself loads nothing else while requests for a loaded model overlap. These decode in step,
    so their lengths have no common measure: they would end together else, and make room by themselves.
    A third always waits, so that whoever ends is followed at once."""
    asked: list[httpx.Response] = []
    with behind([store], tmp_path, OLLAMA_MAX_LOADED_MODELS="1", OLLAMA_NUM_PARALLEL="2") as started:
        (server,) = started.servers
        async with http(started.url) as client, asyncio.TaskGroup() as group:
            ask_on = [group.create_task(keep_asking(client, tokens, asked)) for tokens in (83, 101, 127)]
            await until(lambda: started.running() == [2] and len(asked) > 2)
            limit = {"X-Balancer-Timeout": str(3 * PATIENCE_SECONDS)}
            other = await client.post(
                "/api/chat", json=COLD["/api/chat"], headers=limit, timeout=3 * PATIENCE_SECONDS
            )
            served = len(asked)
            await until(lambda: len(asked) >= served + 4)
            for task in ask_on:
                task.cancel()
        resident = server.resident()

    assert (other.status_code, other.headers["X-Balancer-Attempts"]) == (200, "1")
    assert {each.status_code for each in asked} == {200}
    assert resident == {"m:latest"}


async def test_clients_of_two_context_lengths_are_both_served(store: Path, tmp_path: Path) -> None:
    """A server has a model with one of them at a time. No client's request carries a load, so each load
    is the balancer's, and an answer finds its runner loaded."""
    with gated(store, tmp_path) as (started, closed):
        closed.open()
        async with http(started.url) as client:
            told = await asyncio.gather(ask_in_turn(client, 512), ask_in_turn(client, 1024))
        url = started.servers[0].url
        await until(lambda: len(started.loads()[url]) == closed.loads())
        loads = started.loads()[url]

    answers = [each for answers in told for each in answers]
    assert [each.status_code for each in answers] == [200] * 2 * TURNS
    assert {each.headers["X-Balancer-Attempts"] for each in answers} == {"1"}
    assert set(loads) == {"ok"}
    assert len(loads) >= 2


async def ask_in_turn(client: httpx.AsyncClient, context: int) -> list[httpx.Response]:
    """Questions with a context length of so many tokens, one after the other."""
    body = {**SHORT, "options": {"num_predict": 2, "num_ctx": context}}
    return [await client.post("/api/generate", json=body) for _ in range(TURNS)]


async def keep_asking(client: httpx.AsyncClient, tokens: int, asked: list[httpx.Response]) -> None:
    """One question after the other for so many tokens, until cancelled."""
    options = {"temperature": 0, "num_predict": tokens}
    body = {"model": "m", "prompt": "hi", "stream": False, "options": options}
    while True:
        asked.append(await client.post("/api/generate", json=body))


class StoppedReader:
    """A client with the smallest of buffers, which reads the head of a long and wordy stream and then
    nothing."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        body = json.dumps(WORDY).encode()
        head = f"POST /api/generate HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket = socket.socket()
        self._socket.settimeout(PATIENCE_SECONDS)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self._socket.connect((address.hostname, address.port))
        self._socket.sendall(head.encode() + body)
        assert self._socket.recv(64).startswith(b"HTTP/1.1 200")

    def leave(self, *, reset: bool) -> None:
        """Close the connection, with a reset or without."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def rest(self) -> bytes:
        """What is left to read, to the end of the connection."""
        parts: list[bytes] = []
        with self._socket, contextlib.suppress(ConnectionResetError):
            while part := self._socket.recv(65536):
                parts.append(part)
        return b"".join(parts)
