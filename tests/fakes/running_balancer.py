"""A whole balancer in this process, in front of given instances, that must leave nothing behind."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from balancer.app import Addresses, Balancer
from balancer.control.reloader import ConfigSource
from balancer.core.device import Device
from balancer.provisioning.provisioned import Provisioned
from balancer.settings import Settings
from balancer.telemetry.logs import make_logger
from tests.fakes.raw_client import Answer, RawClient, connected, request
from tests.fakes.scripted_instance import PATIENCE_SECONDS, TASK_NAME, ScriptedInstance

_LOOK_SECONDS = 0.005
SETTINGS: dict[str, Any] = {}
"""What every balancer is given whose test does not say otherwise; for fixtures."""


async def until(holds: Callable[[], object], what: str = "a state that was to come") -> None:
    """Wait for a state, looking often; fails loudly when it never comes."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not holds():  # noqa: ASYNC110 - most states have no event
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise AssertionError(f"did not come: {what}") from None


@dataclass
class Running:
    """A balancer that accepts. `log_text` is what it logs; `expects_errors` allows errors of its own."""

    balancer: Balancer
    addresses: Addresses
    log_text: io.StringIO
    expects_errors: bool = False
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.addresses.clients)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    @property
    def idle(self) -> bool:
        """Whether nothing is under way in it."""
        one = self.balancer
        return not (one.dispatcher.leases or one.ledger.live() or len(one.queue))

    @property
    def upstream_open(self) -> int:
        """Connections to instances."""
        return sum(pool.open for pool in self.balancer.client.pools())

    @property
    def counted_as_running(self) -> float:
        """What the metrics hold for requests at instances, over all labels; none is below 0."""
        (gauge,) = self.balancer.metrics.requests_running.collect()
        assert all(sample.value >= 0 for sample in gauge.samples)
        return sum(sample.value for sample in gauge.samples)

    def client(self, source: str | None = None) -> contextlib.AbstractAsyncContextManager[RawClient]:
        """A client of it, at that address of the loopback."""
        return connected(*self.address, source=source)

    async def ask(
        self,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        *headers: str,
        source: str | None = None,
        **more: Any,
    ) -> Answer:
        """One request on a connection of its own, and its whole answer."""
        async with self.client(source) as client:
            await client.send(request(path, body, *headers, **more))
            return await client.answer(method=more.get("method", "POST"))

    def logged(self, event: str) -> list[dict[str, Any]]:
        """What was logged under a name."""
        events = [json.loads(line) for line in self.log_text.getvalue().splitlines()]
        return [each for each in events if each["event"] == event]


@contextlib.asynccontextmanager
async def balancing(
    *instances: ScriptedInstance,
    up: int | None = None,
    source: Callable[[Settings], ConfigSource] | None = None,
    devices: Sequence[Device] = (),
    undetected: str = "",
    **settings: Any,
) -> AsyncIterator[Running]:
    """A balancer in front of `instances`, named a, b, c …; yields once `up` of them (default: all) are.
    `source` tells where reloads find settings newer than those of the start; `devices` are watched;
    `undetected` is why there may be more.

    `settings` are those of the configuration. On the way out nothing may be left: no lease, no
    request, no task, no connection to an instance, and no exception that nobody took.
    """
    before = asyncio.all_tasks()
    loop = asyncio.get_running_loop()
    log_text = io.StringIO()
    configured = _settings(instances, settings)
    balancer = Balancer(
        configured,
        source=source(configured) if source else None,
        provisioned=Provisioned(devices=tuple(devices), undetected=undetected),
        log=make_logger(level="info", output_format="json", stream=log_text),
    )
    stop = asyncio.Event()
    opened: asyncio.Future[Addresses] = loop.create_future()
    run = asyncio.create_task(balancer.run(stop, opened=opened.set_result))
    faults: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: faults.append(context))
    try:
        await asyncio.wait({run, opened}, return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            await run
        running = Running(balancer, await opened, log_text, faults=faults)
        wanted = len(instances) if up is None else up
        await until(lambda: len(balancer.fleet.usable()) >= wanted, "instances that are up")
        yield running
        await until(lambda: running.idle, "a balancer with nothing under way")
        assert running.expects_errors or running.logged("request_failed") == []
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await run
        loop.set_exception_handler(None)
    await until(lambda: not _left_over(before), "the end of every task")
    assert running.upstream_open == 0
    assert running.counted_as_running == 0
    await until(lambda: all(each.open_connections == 0 for each in instances), "closed connections")
    assert faults == []


def _left_over(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    ours = {asyncio.current_task()}  # another than at the start where a fixture does this
    return {task for task in asyncio.all_tasks() - before - ours if task.get_name() != TASK_NAME}


def _settings(instances: Sequence[ScriptedInstance], settings: dict[str, Any]) -> Settings:
    names = "abcdefgh"
    each = settings.pop("each", {})
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "health": {"interval_seconds": 0.5, "timeout_seconds": 5},
        "instances": [
            {"url": instance.url, "name": names[index], "runtime": instance.runtime, **each}
            for index, instance in enumerate(instances)
        ],
    }
    return Settings.model_validate({**values, **SETTINGS, **settings})
