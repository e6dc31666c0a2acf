"""The tries of requests in virtual time: all parts are the real ones, only what an instance answers, and
when, is told by the test in place of a network."""

import asyncio
import io
import json
from collections.abc import Callable
from typing import Any, cast

from balancer.accounting.ledger import Ledger
from balancer.accounting.prefix_learner import PrefixLearner
from balancer.accounting.record import RequestRecord
from balancer.accounting.teacher import Teacher
from balancer.attempts import Attempts
from balancer.core.operation import Dialect, Kind, Operation
from balancer.core.ticket import ClientId, InstanceId
from balancer.errors import BadResponse
from balancer.fleet.instance import Instance
from balancer.hedging import HedgePolicy, Hedging
from balancer.scheduling.prefix_index import PrefixIndex
from balancer.telemetry.logs import make_logger
from balancer.telemetry.metrics import Metrics
from balancer.upstream.client import UpstreamClient, UpstreamRequest
from balancer.upstream.exchange import Exchange, ResponseHead
from balancer.upstream.stream_memory import StreamMemory
from tests.unit.unit_support import LoopClock, house, ticket

Answering = Callable[[str, int], tuple[float, int]]
"""After how many seconds an instance answers, by its name and the number of the request there, and with which
status; 0: what it says is no HTTP; 500: its runner is gone."""


class TimedClient:
    """Exchanges without a network. `open` are those under way, by instance."""

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self.asked: list[str] = []
        self.open: list[str] = []

    async def exchange(self, url: str, request: UpstreamRequest) -> Exchange:
        """As `UpstreamClient.exchange`: the whole answer is in with its first byte."""
        name = url.removeprefix("http://").partition(":")[0]
        seconds, status = self.answering(name, self.asked.count(name))
        self.asked.append(name)
        self.open.append(name)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.open.remove(name)
        if status == 0:
            raise BadResponse("no HTTP")
        return _answered(status)


def _answered(status: int) -> Exchange:
    exchange = Exchange(
        buffer_bytes=1 << 20, cancel=lambda: None, read=lambda _: None, memory=StreamMemory(1 << 20)
    )
    body = b"{}" if status < 400 else b'{"error":"health resp: connection refused"}'
    exchange.receive_head(
        ResponseHead(
            status=status,
            reason="",
            headers=(),
            media_type="application/json",
            content_length=len(body),
            chunked=False,
        )
    )
    exchange.receive(body)
    exchange.finish()
    return exchange


class Rig:
    """Requests to given instances, that embed with the model `m`."""

    def __init__(self, clock: LoopClock, answering: Answering, *instances: Instance, **policy: float) -> None:
        self.clock = clock
        self.house = house(clock, *instances)
        self.metrics = Metrics()
        self._log = io.StringIO()
        log = make_logger(level="debug", output_format="json", stream=self._log)
        self.client = TimedClient(answering)
        fleet, dispatcher = self.house.fleet, self.house.dispatcher
        prefixes = PrefixLearner(index=PrefixIndex(limit_bytes=1 << 20), fleet=fleet)
        self.attempts = Attempts(
            fleet=fleet,
            dispatcher=dispatcher,
            client=cast("UpstreamClient", self.client),
            ledger=Ledger(metrics=self.metrics, log=log, clock=clock, known_model=lambda _: True),
            teacher=Teacher(fleet=fleet, prefixes=prefixes, clock=clock),
            hedging=Hedging(
                dispatcher=dispatcher,
                policy=HedgePolicy(enabled=True, **{"max_share": 0.1, **policy}),
                metrics=self.metrics,
                clock=clock,
                log=log,
            ),
            refresh=_no_refresh,
            look=lambda _: None,
            out_of_memory=lambda _: None,
            clock=clock,
            silent_seconds=60.0,
        )
        self._count = 0

    async def ask(self, **facts: Any) -> RequestRecord:
        """One request to its end; raises what it ends with."""
        self._count += 1
        record = RequestRecord(
            id=str(self._count),
            request_id="",
            client=ClientId("c"),
            method="POST",
            route="",
            received_at=0.0,
            model="m",
            hedgeable=True,
            operation=Operation(
                kind=Kind.EMBED, dialect=Dialect.OLLAMA, upstream_path="/api/embed", needs_slot=True
            ),
        )
        for name, value in facts.items():
            setattr(record, name, value)
        deadline = self.clock.monotonic() + 1000
        asked = ticket(record.id, arrival=self._count, deadline=deadline, prompt_tokens=10)
        upstream = UpstreamRequest(method="POST", target="/api/embed", headers=())
        exchange = await self.attempts.answered(asked, upstream, record)
        record.status = exchange.status
        exchange.cancel()
        return record

    async def learn(self, count: int = 20) -> None:
        """That many requests, one after the other."""
        for _ in range(count):
            await self.ask()

    def hedges(self) -> list[dict[str, Any]]:
        """What was told of each."""
        return [
            event
            for event in map(json.loads, self._log.getvalue().splitlines())
            if event["event"] == "hedge_ended"
        ]

    def counted(self, name: str) -> float:
        """The sum over a metric of that name."""
        (family,) = getattr(self.metrics, name).collect()
        return float(sum(sample.value for sample in family.samples))

    def slots_out(self) -> list[int]:
        """How many leases are out, by the dispatcher, by each instance, and by the metrics."""
        running = [each.running for each in self.house.fleet.instances()]
        return [len(self.house.dispatcher.leases), *running, int(self.counted("requests_running"))]

    def instance(self, name: str) -> Instance:
        return self.house.fleet.get(InstanceId(name))


async def _no_refresh(_older: float, _within: float) -> None:
    pass
