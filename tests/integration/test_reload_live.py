"""Settings taken over while requests run: what is open ends whole, what comes later finds the new ones."""

import asyncio
from typing import Any

import pytest

from balancer.core.ticket import InstanceId
from balancer.settings import Settings, SettingsError
from tests.fakes.raw_client import RawClient, request
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import (
    DONE,
    END,
    Close,
    ReadBody,
    Script,
    ScriptedInstance,
    SeenRequest,
    Send,
    Stall,
    Wait,
    chunk,
    chunked,
    head,
)

GENERATE = {"model": "m", "prompt": "hi"}
STREAMED = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
LINE = b'{"model":"m","response":"a","done":false}\n'
A, B = InstanceId("a"), InstanceId("b")


def changed(running: Running, **changes: Any) -> Settings:
    """The settings in force with other values; groups are merged."""
    values = running.balancer.settings.model_dump(mode="json", by_alias=True)
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return Settings.model_validate(values)


def rows(*instances: ScriptedInstance, names: str = "abc", **more: Any) -> list[dict[str, Any]]:
    return [{"url": each.url, "name": names[index], **more} for index, each in enumerate(instances)]


async def begin_stream(running: Running, client: RawClient) -> None:
    await client.send(request("/api/generate", GENERATE))
    await client.head()
    assert await client.chunk() == LINE


async def end_stream(client: RawClient) -> None:
    assert [await client.chunk() for _ in range(3)] == [LINE, DONE, None]


def streaming(go_on: asyncio.Event) -> Script:
    return (Send(STREAMED + chunk(LINE)), Wait(go_on), Send(chunk(LINE) + chunk(DONE) + END))


@pytest.mark.parametrize("again", [False, True])
async def test_stream_at_an_instance_that_is_removed_ends_whole(again: bool) -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one) as running,
        running.client() as client,
    ):
        one.play(*streaming(go_on))
        await begin_stream(running, client)
        old = running.balancer.fleet.get(A)

        running.balancer.apply(changed(running, instances=rows(two, names="b")))
        await until(lambda: running.balancer.fleet.get(B).usable)
        answer = await running.ask("/api/generate", GENERATE)
        assert (answer.status, answer.header("x-balancer-instance"), len(one.requests)) == (200, "b", 1)
        if again:
            running.balancer.apply(changed(running, instances=rows(one, two)))
            await until(lambda: running.balancer.fleet.get(A).usable)
            assert running.balancer.fleet.get(A) is not old
            assert running.balancer.fleet.get(A).incarnation > old.incarnation
            running.balancer.drain(B, True)
            assert (await running.ask("/api/generate", GENERATE)).header("x-balancer-instance") == "a"

        go_on.set()
        await end_stream(client)
        await until(lambda: running.idle)
        assert (old.running, running.counted_as_running) == (0, 0)
        if not again:  # its connection is not kept for anybody
            await asyncio.wait_for(one.requests[0].connection.closed.wait(), 20)


async def test_added_instance_serves_those_that_wait() -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, each={"slots": 1}) as running,
    ):
        one.play(Wait(go_on), Send(chunked(DONE)))
        first = asyncio.create_task(running.ask("/api/generate", GENERATE))
        await one.seen(1)
        second = asyncio.create_task(running.ask("/api/generate", GENERATE))
        await until(lambda: len(running.balancer.queue) == 1)

        running.balancer.apply(changed(running, instances=rows(one, two, slots=1)))

        assert (await second).header("x-balancer-instance") == "b"
        go_on.set()
        assert (await first).header("x-balancer-instance") == "a"


async def test_who_waits_only_for_an_instance_that_is_removed_is_told() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance("n").running() as two,
        balancing(one, two, each={"slots": 1}) as running,
        running.client() as client,
    ):
        go_on = asyncio.Event()
        one.play(*streaming(go_on))
        await begin_stream(running, client)
        waiting = asyncio.create_task(running.ask("/api/generate", GENERATE))
        await until(lambda: len(running.balancer.queue) == 1)

        running.balancer.apply(changed(running, instances=rows(two, names="b")))

        assert (await waiting).status == 404
        go_on.set()
        await end_stream(client)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
async def test_changed_slots_hold_from_then_on_and_end_nothing(before: int, after: int) -> None:
    async with ScriptedInstance().running() as one, balancing(one, each={"slots": before}) as running:
        gates: list[asyncio.Event] = []

        def gated(_request: SeenRequest) -> Script:
            gates.append(asyncio.Event())
            return (ReadBody(), Wait(gates[-1]), Send(chunked(DONE)))

        one.otherwise = gated
        tasks = [asyncio.create_task(running.ask("/api/generate", GENERATE)) for _ in range(6)]
        await until(lambda: len(gates) == before and len(running.balancer.queue) == 6 - before)
        kept = running.balancer.fleet.get(A)

        running.balancer.apply(changed(running, instances=rows(one, slots=after)))

        assert running.balancer.fleet.get(A) is kept
        await until(lambda: len(gates) == max(before, after))
        for served in range(6):
            await until(lambda wanted=served + 1: len(gates) >= wanted)
            if served >= before:
                assert kept.running <= after
            gates[served].set()
        assert [(await each).status for each in tasks] == [200] * 6


async def test_changed_strategy_decides_from_then_on() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, strategy="weighted_round_robin") as running,
    ):
        assert "weighted" in (
            (await running.ask("/api/generate", GENERATE)).header("x-balancer-reason") or ""
        )

        running.balancer.apply(changed(running, strategy="least_connections"))

        reason = (await running.ask("/api/generate", GENERATE)).header("x-balancer-reason") or ""
        assert reason.startswith("least_connections")


async def test_changed_limits_hold_from_then_on() -> None:
    async with ScriptedInstance().running() as one, balancing(one, each={"slots": 1}) as running:
        limits = {"queue_requests": 0, "body_bytes": 1024, "stream_idle_seconds": 0.1, "queue_seconds": 5}
        running.balancer.apply(changed(running, limits=limits))

        assert (await running.ask("/api/generate", {**GENERATE, "long": "x" * 2000})).status == 413
        one.play(Send(STREAMED + chunk(LINE)), Stall())
        assert (await running.ask("/api/generate", GENERATE)).whole is False
        await until(lambda: running.idle)
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(chunked(DONE)))
        first = asyncio.create_task(running.ask("/api/generate", GENERATE))
        await one.seen(2)
        assert (await running.ask("/api/generate", GENERATE)).status == 503
        go_on.set()
        assert (await first).status == 200


async def test_changed_breaker_keeps_what_was_counted() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.otherwise = lambda _request: (ReadBody(), Close())
        assert [(await running.ask("/api/generate", GENERATE)).status for _ in range(2)] == [502, 502]

        running.balancer.apply(changed(running, circuit_breaker={"threshold": 3}))

        assert (await running.ask("/api/generate", GENERATE)).status == 502
        assert (await running.ask("/api/generate", GENERATE)).status == 503
        assert len(one.requests) == 3


async def test_name_that_moves_to_another_url_is_another_instance() -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one) as running,
        running.client() as client,
    ):
        one.play(*streaming(go_on))
        await begin_stream(running, client)
        old = running.balancer.fleet.get(A)

        running.balancer.apply(changed(running, instances=rows(two)))
        await until(lambda: running.balancer.fleet.get(A).usable)

        moved = running.balancer.fleet.get(A)
        assert (moved is old, moved.running, old.running) == (False, 0, 1)
        assert moved.incarnation > old.incarnation
        assert (await running.ask("/api/generate", GENERATE)).status == 200
        assert (len(one.requests), len(two.requests)) == (1, 1)
        go_on.set()
        await end_stream(client)
        await until(lambda: running.idle)
        assert (moved.running, old.running) == (0, 0)


@pytest.mark.parametrize("fixed", [{"listen": "127.0.0.1:1"}, {"admin_listen": "127.0.0.1:2"}])
async def test_nothing_is_taken_over_where_a_fixed_setting_changes(fixed: dict[str, str]) -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one) as running,
    ):
        before, kept = running.balancer.settings, running.balancer.fleet.get(A)
        wanted = changed(running, **fixed, instances=rows(two, slots=7), limits={"queue_requests": 3})

        with pytest.raises(SettingsError, match=next(iter(fixed))):
            running.balancer.apply(wanted)

        assert running.balancer.settings is before
        assert running.balancer.fleet.instances() == (kept,)
        assert running.balancer.queue.limit == before.limits.queue_requests
        assert (await running.ask("/api/generate", GENERATE)).header("x-balancer-instance") == "a"
        assert two.requests == []
