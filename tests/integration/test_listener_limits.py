"""The listener's limits: what is too long, too slow or too much is told so, and nothing is lost by it."""

import errno

import pytest

from balancer.upstream.pool import Pool
from tests.fakes.running_balancer import balancing
from tests.fakes.scripted_instance import ScriptedInstance

pytestmark = pytest.mark.both_sinks

GENERATE = {"model": "m", "prompt": "hi", "stream": False}
HOST = b"Host: localhost\r\n"


async def test_head_that_is_never_ended_is_told_408() -> None:
    limits = {"header_seconds": 0.1}
    async with ScriptedInstance().running() as one, balancing(one, limits=limits) as running:
        async with running.client() as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: loc")
            assert (await client.answer()).status == 408
        async with running.client() as silent:
            assert await silent.rest() == b""


async def test_connection_that_is_idle_after_an_answer_is_closed() -> None:
    async with (
        ScriptedInstance().running() as one,
        balancing(one, limits={"idle_seconds": 0.1}) as running,
        running.client() as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await client.answer(method="GET")).status == 200

        assert await client.rest() == b""


async def test_connection_beyond_the_limit_is_closed() -> None:
    async with (
        ScriptedInstance().running() as one,
        balancing(one, limits={"connections": 1}) as running,
        running.client() as first,
    ):
        await first.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await first.answer(method="GET")).status == 200

        async with running.client() as second:
            assert await second.rest() == b""


async def test_whole_url_in_the_request_line_is_understood() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running, running.client() as client:
        await client.send(b"GET http://localhost/api/version?x HTTP/1.1\r\n" + HOST + b"\r\n")

        assert (await client.answer(method="GET")).json == {"version": "0.33.0"}


async def test_want_of_files_is_no_fault_of_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:

        async def no_files(_pool: Pool) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr("balancer.upstream.pool.Pool._open_connection", no_files)
        answer = await running.ask("/api/generate", GENERATE)

        assert (answer.status, answer.header("Retry-After")) == (503, "1")
        assert running.balancer.fleet.instances()[0].usable
