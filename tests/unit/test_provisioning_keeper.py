"""How a keeper talks: whom it serves, and when it waits for another."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from balancer.provisioning.keeper import MESSAGE_BYTES, PROTOCOL, Keeper


@dataclass
class Talk:
    """One connection to a keeper."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hear(self) -> Any:
        """The next message; None where the keeper has hung up."""
        line = await self.reader.readline()
        return json.loads(line) if line else None

    def say(self, line: bytes) -> None:
        self.writer.write(line)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Keeper]:
    """A keeper in this process that holds nothing, waiting for a balancer."""
    keeper = Keeper(folder)
    keeper._begin_grace()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "s"))
    server = await asyncio.start_unix_server(keeper._connected, sock=listener, limit=MESSAGE_BYTES)
    try:
        yield keeper
    finally:
        server.close()
        assert keeper._grace is not None
        keeper._grace.cancel()
        for talk in keeper._talks:
            talk.cancel()
        await asyncio.gather(*keeper._talks, return_exceptions=True)


@asynccontextmanager
async def talking(folder: Path) -> AsyncIterator[Talk]:
    reader, writer = await asyncio.open_unix_connection(folder / "s")
    try:
        yield Talk(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


async def test_a_balancer_that_connects_ends_the_wait_for_one(folder: Path) -> None:
    async with serving(folder) as keeper, talking(folder) as talk:
        hello = await talk.hear()

        assert (hello["event"], hello["protocol"], hello["instances"]) == ("hello", PROTOCOL, [])
        assert keeper._grace is not None
        assert keeper._grace.cancelled()
        assert not keeper._stopping.is_set()


async def test_a_keeper_that_holds_nothing_waits_for_nobody(folder: Path) -> None:
    async with serving(folder) as keeper:
        async with talking(folder) as talk:
            await talk.hear()
        async with asyncio.timeout(30):
            await keeper._stopping.wait()


async def test_a_newer_balancer_takes_the_place_of_an_older(folder: Path) -> None:
    async with serving(folder) as keeper, talking(folder) as older, talking(folder) as newer:
        await older.hear()
        await newer.hear()

        assert await older.hear() is None
        assert keeper._grace is not None
        assert keeper._grace.cancelled()
        newer.say(b'{"do": "stop", "name": "nobody", "term_seconds": 1}\n')
        newer.say(b'{"do": "start", "name": "a", "arguments": ["no-such-program"], "environment": {}}\n')
        assert (await newer.hear())["error"] == "no-such-program: there is no such program"


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"[]\n",
        b"{}\n",
        b'{"do": "dance"}\n',
        b'{"do": "end"}\n',
        b'{"do": "hello", "adopt_grace_seconds": "long"}\n',
        b"x" * (2 * MESSAGE_BYTES + 1),
        b"\xff\xfe\n",
    ],
)
async def test_who_talks_nonsense_is_cut_off_and_nobody_else(
    folder: Path, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(folder) as keeper, talking(folder) as talk:
        await talk.hear()
        talk.say(line)
        with suppress(ConnectionError):
            assert await talk.hear() is None

        assert "a balancer was cut off" in capsys.readouterr().err
        assert keeper._writer is None


@pytest.mark.parametrize(
    "arguments", ['["\\u0000"]', '["sh", "\\u0000"]', "[3]", "[]", '["/"]', '["sh"], "environment": {"A": 3}']
)
async def test_a_start_that_cannot_be_is_refused_and_harms_nothing(folder: Path, arguments: str) -> None:
    async with serving(folder) as keeper, talking(folder) as talk:
        await talk.hear()
        talk.say(b'{"do": "start", "name": "a", "environment": {}, "arguments": %s}\n' % arguments.encode())
        told = await talk.hear()

        assert (told["event"], told["name"]) == ("refused", "a")
        assert keeper._held == {}
        assert keeper._writer is not None
