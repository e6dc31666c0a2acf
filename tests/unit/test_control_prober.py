"""The prober where the ground gives way: connections that vanish, and defects of our own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from balancer.clock import SystemClock
from balancer.control.prober import Prober, ProbeTimes
from balancer.errors import ConnectionLost
from balancer.fleet.fleet import Fleet
from balancer.fleet.health import HealthState
from balancer.fleet.instance import Instance
from balancer.telemetry.logs import make_logger
from balancer.upstream.control_client import ControlClient
from tests.unit.unit_support import instance

TIMES = ProbeTimes(interval_seconds=0.01, timeout_seconds=1.0)


def vanishing(_request: httpx.Request) -> httpx.Response:
    raise AttributeError("'NoneType' object has no attribute 'getpeername'")


def control_client(answer: httpx.MockTransport) -> ControlClient:
    client = ControlClient()
    client._client = httpx.AsyncClient(transport=answer)
    return client


@asynccontextmanager
async def probing(prober: Prober) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(prober.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))


def prober_of(each: Instance, client: ControlClient, **more: object) -> Prober:
    return Prober(
        fleet=Fleet([each]),
        client=client,
        times=TIMES,
        clock=SystemClock(),
        log=make_logger(level="critical", output_format="json"),
        find_local=more.get("find_local", lambda _instance: None),  # type: ignore[arg-type]
    )


async def test_a_connection_that_vanishes_while_it_opens_is_a_lost_one() -> None:
    client = control_client(httpx.MockTransport(vanishing))

    with pytest.raises(ConnectionLost):
        await client.get("http://127.0.0.1:1", "/api/version", timeout_seconds=1.0)


async def test_a_defect_met_with_one_instance_ends_nothing() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"version": "1", "models": []})

    def broken(_instance: Instance) -> None:
        raise ZeroDivisionError

    each = instance("a", up=False)
    prober = prober_of(each, control_client(httpx.MockTransport(answer)), find_local=broken)

    async with asyncio.timeout(10), probing(prober) as task:
        await prober.probed.wait()
        await asyncio.sleep(0.05)

        assert not task.done()


async def test_the_first_round_ends_though_nothing_answers() -> None:
    each = instance("a", up=False)
    prober = prober_of(each, control_client(httpx.MockTransport(vanishing)))

    async with asyncio.timeout(10), probing(prober):
        await prober.probed.wait()

    assert each.health.state is HealthState.DOWN
