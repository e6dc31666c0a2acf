"""Clients that leave in unusual ways: half-closed, and stopped in the middle of a stream."""

from __future__ import annotations

import asyncio
import json
import socket

from simulation_support import CHAT, FOREVER, Client, fast, request_bytes, simulated, steady, until

GENERATE = {"model": CHAT, "prompt": "go on", "options": FOREVER}


async def test_half_closing_counts_as_leaving() -> None:
    async with simulated(steady()) as client:
        _, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
        writer.write(request_bytes("/api/generate", {**GENERATE, "stream": False}))
        await until(lambda: client.server.seen.running == 1)
        writer.write_eof()
        await until(lambda: client.server.seen.cancelled == 1)
        (runner,) = client.server.scheduler.runners
        writer.close()

        assert runner.slots.free == 1


async def stopped_reader(client: Client) -> socket.socket:
    """A client that asks for a long stream over a narrow path and never reads."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    reader.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(reader, ("127.0.0.1", client.server.port))
    await loop.sock_sendall(reader, request_bytes("/api/generate", GENERATE))
    return reader


async def test_stopped_reader_that_leaves_leaks_its_slot_until_an_unload() -> None:
    """Observed on a real server: the model then hangs for everybody, and looks healthy."""
    async with simulated(fast(send_buffer_bytes=2048)) as client:
        reader = await stopped_reader(client)
        await until(lambda: client.server.seen.running == 1)
        (runner,) = client.server.scheduler.runners
        await until(lambda: runner.slots.busy == 1 and _stuck(client))
        reader.close()
        await until(lambda: runner.slots.leaked == 1)

        hanging = client.background()
        await until(lambda: runner.slots.waiting == 1)
        healthy = await client.resident()
        hanging.cancel()
        await until(lambda: runner.refs == 0)
        await client.post("/api/generate", {"model": CHAT, "keep_alive": 0})
        cured = await client.ask()

        assert healthy == [CHAT]
        assert cured["done"] is True
        assert client.server.seen.slots_leaked == 1


def _stuck(client: Client) -> bool:
    return client.server.seen.stalled_writes > 0


async def test_stopped_reader_that_reads_on_gets_everything() -> None:
    async with simulated(fast(send_buffer_bytes=2048)) as client:
        reader = await stopped_reader(client)
        await until(lambda: _stuck(client))
        loop, received = asyncio.get_running_loop(), b""
        async with asyncio.timeout(20):
            while not received.endswith(b"0\r\n\r\n"):
                received += await loop.sock_recv(reader, 65536)
        reader.close()

        last = json.loads(received.splitlines()[-4])
        assert last["done"] is True
        assert client.server.seen.slots_leaked == 0
