"""Who waits goes by class and fair share, and is told at once where waiting is of no use."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from itertools import count

import pytest

from tests.fakes.raw_client import Answer
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import (
    DONE,
    ReadBody,
    Script,
    ScriptedInstance,
    SeenRequest,
    Send,
    Wait,
    chunked,
)

pytestmark = pytest.mark.both_sinks

GENERATE = {"model": "m", "prompt": "hi"}
MODEST = "127.0.0.2"


class Busy:
    """A balancer in front of one slot, which a request holds; those that come wait, until all may go on."""

    def __init__(self, running: Running, instance: ScriptedInstance) -> None:
        self.running = running
        self.go_on = asyncio.Event()
        self._numbers = count()
        self._instance = instance
        self._tasks: list[asyncio.Task[Answer]] = []

    async def send(self, *headers: str, source: str | None = None) -> int:
        """One more, which is in the balancer before this returns; its number."""
        number, before = next(self._numbers), len(self.running.balancer.ledger.live())
        body = {**GENERATE, "number": number}
        asked = self.running.ask("/api/generate", body, *headers, source=source)
        self._tasks.append(asyncio.create_task(asked))
        await until(lambda: len(self.running.balancer.ledger.live()) == before + 1)
        await until(self._all_placed)
        return number

    async def measured(self) -> None:
        """Let the first go on, and some more, so that it is known how long a request takes, and have the slot
        held again."""
        for _ in range(3):
            await self.send()
        await self.served()
        self.go_on.clear()
        await self.send()

    async def served(self) -> list[int]:
        """Let all go on; in which order they were asked for at the instance."""
        self.go_on.set()
        answers = await asyncio.gather(*self._tasks)
        assert {each.status for each in answers} == {200}
        return [json.loads(each.body)["number"] for each in self._instance.requests]

    def _all_placed(self) -> bool:
        one = self.running.balancer
        return len(one.queue) + len(one.dispatcher.leases) == len(one.ledger.live())


@contextlib.asynccontextmanager
async def busy(**settings: object) -> AsyncIterator[Busy]:
    settings = {"each": {"slots": 1}, **settings}
    async with ScriptedInstance().running() as one, balancing(one, **settings) as running:
        house = Busy(running, one)

        def gated(_request: SeenRequest) -> Script:
            return (ReadBody(), Wait(house.go_on), Send(chunked(DONE)))

        one.otherwise = gated
        await house.send()
        yield house


async def test_better_classes_go_first() -> None:
    async with busy() as house:
        asked = [
            await house.send(f"X-Balancer-Priority: {each}")
            for each in ("batch", "normal", "interactive", "batch", "interactive")
        ]

        assert [0, *(asked[each] for each in (2, 4, 1, 0, 3))] == await house.served()


async def test_who_is_sure_to_wait_too_long_is_told_so_at_once() -> None:
    async with busy() as house:
        await house.measured()

        refused = await house.running.ask("/api/generate", GENERATE, "X-Balancer-Timeout: 0.000001")

        assert refused.status == 503
        assert "longer than it may" in refused.json["error"]
        assert int(refused.header("retry-after") or "0") >= 1
        metrics = house.running.balancer.report.metrics().decode()
        assert 'balancer_rejections_total{reason="queue_too_long"} 1' in metrics
        await house.served()


async def test_a_full_queue_turns_away_the_newest_of_who_has_most_waiting() -> None:
    async with busy(limits={"queue_requests": 2}) as house:
        await house.send()
        refused = asyncio.create_task(house.running.ask("/api/generate", {**GENERATE, "number": -1}))
        await until(lambda: len(house.running.balancer.queue) == 2)
        modest = asyncio.create_task(
            house.running.ask("/api/generate", {**GENERATE, "number": -2}, source=MODEST)
        )

        answer = await refused

        assert answer.status == 503
        assert "the queue is full (2 requests wait)" in answer.json["error"]
        await house.served()
        assert (await modest).status == 200


async def test_the_queue_tells_places_and_expected_waits() -> None:
    async with busy() as house:
        await house.measured()
        for priority in ("normal", "batch", "interactive"):
            await house.send(f"X-Balancer-Priority: {priority}")
        await house.send("X-Balancer-Priority: interactive")

        told = house.running.balancer.report.queue()["requests"]
        metrics = house.running.balancer.report.metrics().decode()

        assert isinstance(told, list)
        assert [(each["class"], each["position"]) for each in told] == [
            ("normal", 3),
            ("batch", 4),
            ("interactive", 1),
            ("interactive", 2),
        ]
        waits = {each["position"]: each["expected_wait_seconds"] for each in told}
        assert 0 < waits[1] < waits[2] < waits[3] < waits[4]
        assert 'balancer_waiting_work_seconds{class="interactive",model="m:latest"}' in metrics
        await house.served()
