"""`python -m balancer.simulator` serves as a process, and dies as a real server does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from simulation_support import CHAT, FOREVER

from balancer.simulator.__main__ import build_parser, config_of
from balancer.simulator.models import Kind


@contextlib.asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[Process, dict[str, Any]]]:
    """A simulator in a process of its own, and the line that it printed."""
    command = (sys.executable, "-m", "balancer.simulator", "--exit-with-stdin", *arguments)
    child = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        assert child.stdout is not None
        async with asyncio.timeout(20):
            line = json.loads(await child.stdout.readline())
        yield child, line
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def begun_stream(session: aiohttp.ClientSession, options: dict[str, Any]) -> aiohttp.ClientResponse:
    body = {"model": CHAT, "prompt": "go on", "options": options}
    response = await session.post("/api/generate", json=body)
    await response.content.readline()
    return response


async def ended_badly(response: aiohttp.ClientResponse) -> bool:
    try:
        await response.read()
    except aiohttp.ClientPayloadError:
        return True
    return False


async def test_first_line_says_where_it_listens_and_stdin_ends_it() -> None:
    async with process("--name", "left", "--model", "tiny:1b:500MB:chat") as (child, line):
        async with aiohttp.ClientSession(line["url"]) as session, session.get("/api/tags") as response:
            (model,) = (await response.json())["models"]
        assert child.stdin is not None
        child.stdin.close()
        async with asyncio.timeout(20):
            code = await child.wait()

    assert (line["event"], line["name"], model["name"], code) == ("listening", "left", "tiny:1b", 0)


async def test_sigterm_cuts_streams_at_once() -> None:
    async with process("--load-seconds", "0", "--decode-rate", "5") as (child, line):
        async with aiohttp.ClientSession(line["url"]) as session:
            stream = await begun_stream(session, FOREVER)
            child.send_signal(signal.SIGTERM)
            cut = await ended_badly(stream)
        async with asyncio.timeout(20):
            code = await child.wait()

    assert cut
    assert code == 0


async def test_dying_process_is_really_killed() -> None:
    fault = json.dumps({"kind": "server_dies", "process": True, "after_tokens": 3})
    async with process("--speed", "100", "--fault", fault) as (child, line):
        async with aiohttp.ClientSession(line["url"]) as session:
            cut = await ended_badly(await begun_stream(session, {}))
        async with asyncio.timeout(20):
            code = await child.wait()

    assert cut
    assert code == -signal.SIGKILL


def test_flags_reach_the_configuration() -> None:
    flags = ["--slots", "4", "--memory", "8GiB", "--keep-alive", "-1", "--model", "qwen3:8b:5GB:thinking"]
    config = config_of(build_parser().parse_args(flags))

    assert (config.slots, config.memory_bytes, config.keep_alive_seconds) == (4, 8 << 30, float("inf"))
    assert (config.models[0].name, config.models[0].size_bytes) == ("qwen3:8b", 5 * 10**9)
    assert config.models[0].kind is Kind.THINKING
