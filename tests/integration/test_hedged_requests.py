"""Where the first instance is slow to begin an embedding or a short answer, a second one is asked; who begins
first answers, and nothing of the other is left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from balancer.accounting.first_bytes import FEWEST
from balancer.core.ticket import InstanceId
from balancer.settings import Settings
from tests.fakes.raw_client import Answer, request
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import (
    DONE,
    ReadBody,
    Script,
    ScriptedInstance,
    SeenRequest,
    Send,
    Stall,
    Wait,
    whole,
)

pytestmark = pytest.mark.both_sinks

EMBED = {"model": "m", "input": "hi"}
SHORT = {"model": "m", "prompt": "hi", "stream": False, "options": {"temperature": 0, "num_predict": 8}}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}
HEDGING = {"enabled": True, "max_share": 0.2, "min_delay_seconds": 0.01}
ANSWER = (ReadBody(), Send(whole(DONE.strip())))
"""What an instance does that is well."""
BROKEN = Send(b"SSH-2.0-OpenSSH\r\n")
"""No answer; and not to be taken for a kept connection that was closed meanwhile."""


class Fleet:
    """A balancer in front of instances that are told apart by who is asked first."""

    def __init__(self, running: Running, instances: tuple[ScriptedInstance, ...]) -> None:
        self.running = running
        self.instances = instances
        self.asked: list[SeenRequest] = []
        self._urls: list[str] = []

    def then(self, *scripts: Script) -> None:
        """From now on, whoever is asked first does the first of these, and so on; then all answer."""
        self.asked.clear()
        self._urls.clear()
        for each in self.instances:
            # mypy infers no type for a default argument.
            each.otherwise = lambda seen, url=each.url: self._script(seen, url, scripts)  # type: ignore[misc]

    def _script(self, seen: SeenRequest, url: str, scripts: tuple[Script, ...]) -> Script:
        self.asked.append(seen)
        self._urls.append(url)
        return scripts[len(self.asked) - 1] if len(self.asked) <= len(scripts) else ANSWER

    def name(self, number: int) -> str:
        """Who was asked as that number, counted from 0, as the balancer names it."""
        (name,) = [
            each.id for each in self.running.balancer.fleet.instances() if each.spec.url == self._urls[number]
        ]
        return name

    async def learn(self, path: str, body: dict[str, Any], count: int = FEWEST) -> None:
        """Let it answer so often."""
        for _ in range(count):
            assert (await self.running.ask(path, body)).status == 200

    def counted(self) -> dict[str, float]:
        """The hedges by their fate, and the retries, errors of instances and running requests."""
        metrics = self.running.balancer.metrics
        (hedges,), (retries,), (errors,) = (
            each.collect() for each in (metrics.hedges, metrics.retries, metrics.errors)
        )
        found = {sample.labels["outcome"]: sample.value for sample in hedges.samples}
        return found | {
            name: sum(sample.value for sample in family.samples)
            for name, family in (("retries", retries), ("errors", errors))
            if family.samples
        }

    def finished(self) -> dict[str, Any]:
        """The newest event of a request that ended."""
        return self.running.logged("request_finished")[-1]


@contextlib.asynccontextmanager
async def fleet(count: int = 2, **settings: Any) -> AsyncIterator[Fleet]:
    """So many instances with four slots each, that have embedded often enough to know what is slow."""
    async with contextlib.AsyncExitStack() as stack:
        instances = tuple(
            [await stack.enter_async_context(ScriptedInstance().running()) for _ in range(count)]
        )
        values = {"hedging": HEDGING, "each": {"slots": 4}, **settings}
        running = await stack.enter_async_context(balancing(*instances, **values))
        it = Fleet(running, instances)
        await it.learn("/api/embed", EMBED)
        yield it


def tells(answer: Answer) -> tuple[int, str | None, str | None, bool]:
    """Its status, who gave it, after how many tries, and whether that was the second one asked."""
    reason = answer.header("x-balancer-reason") or ""
    return (
        answer.status,
        answer.header("x-balancer-instance"),
        answer.header("x-balancer-attempts"),
        reason.endswith("hedge"),
    )


async def test_second_instance_answers_where_the_first_does_not_begin() -> None:
    async with fleet() as it:
        it.then((ReadBody(), Stall()))

        answer = await it.running.ask("/api/embed", EMBED)

        assert tells(answer) == (200, it.name(1), "2", True)
        assert answer.body == DONE.strip()
        assert it.asked[0].body == it.asked[1].body
        await it.asked[0].connection.closed.wait()
        assert it.counted() == {"won": 1}
        finished = it.finished()
        assert (finished["hedge"], finished["instance"], finished["attempts"]) == ("won", it.name(1), 2)
        assert finished["outcome"] == "ok"
        silent = it.running.balancer.fleet.get(InstanceId(it.name(0)))
        assert silent.breakers.untroubled
        decisions = it.running.balancer.ledger.decisions(finished["id"])
        assert decisions is not None
        (_, second) = decisions
        assert second["picked"] == it.name(1)
        assert second["reason"] == answer.header("x-balancer-reason")
        assert "failure" not in str(second["reason"])
        considered = second["considered"]
        assert isinstance(considered, list)
        assert {each["instance"]: each["filtered"] for each in considered} == {
            it.name(0): "asked already",
            it.name(1): None,
        }


async def test_first_instance_answers_where_it_begins_first_after_all() -> None:
    async with fleet() as it:
        begin = asyncio.Event()
        it.then((ReadBody(), Wait(begin), *ANSWER[1:]), (ReadBody(), Stall()))
        asking = asyncio.create_task(it.running.ask("/api/embed", EMBED))
        await until(lambda: len(it.asked) == 2)

        begin.set()

        assert tells(await asking) == (200, it.name(0), "2", False)
        await it.asked[1].connection.closed.wait()
        assert it.counted() == {"lost": 1}
        assert it.finished()["hedge"] == "lost"


async def test_first_instance_is_given_its_time() -> None:
    async with fleet(hedging={**HEDGING, "min_delay_seconds": 0.2}) as it:
        it.then((ReadBody(), Stall()), (ReadBody(), Stall()))
        async with it.running.client() as client:
            await client.send(request("/api/embed", EMBED))
            await until(lambda: len(it.asked) == 2)

            first, second = it.running.balancer.dispatcher.leases

        assert (first.instance, second.instance) == (it.name(0), it.name(1))
        assert second.leased_at - first.leased_at >= 0.19


async def test_a_short_answer_that_is_the_same_each_time_is_hedged() -> None:
    async with fleet() as it:
        await it.learn("/api/generate", SHORT)
        it.then((ReadBody(), Stall()))

        assert tells(await it.running.ask("/api/generate", SHORT)) == (200, it.name(1), "2", True)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/chat", CHAT), ("/api/generate", {**SHORT, "options": {"num_predict": 8}})],
    ids=["chat", "drawn by chance"],
)
async def test_others_are_never_asked_twice(path: str, body: dict[str, Any]) -> None:
    async with fleet() as it:
        await it.learn(path, body)
        begin = asyncio.Event()
        it.then((ReadBody(), Wait(begin), *ANSWER[1:]), (ReadBody(), Stall()))
        asking = asyncio.create_task(it.running.ask(path, body))
        await until(lambda: len(it.asked) == 1)

        hedged = await it.running.ask("/api/embed", EMBED)  # its own time began later, and is over by now
        assert hedged.header("x-balancer-attempts") == "2"
        begin.set()

        assert (await asking).header("x-balancer-attempts") == "1"
        assert len(it.asked) == 3


@pytest.mark.parametrize("policy", [{}, {"enabled": False}])
async def test_without_the_setting_nothing_is_hedged(policy: dict[str, Any]) -> None:
    async with fleet(hedging=policy) as it:
        begin = asyncio.Event()
        it.then((ReadBody(), Wait(begin), *ANSWER[1:]))
        asking = asyncio.create_task(it.running.ask("/api/embed", EMBED))
        await until(lambda: len(it.asked) == 1)
        apply(it.running, hedging=HEDGING)
        await it.learn("/api/embed", EMBED)
        it.then((ReadBody(), Stall()))
        assert tells(await it.running.ask("/api/embed", EMBED))[2] == "2"
        apply(it.running, hedging={"enabled": False})
        begin.set()

        assert (await asking).header("x-balancer-attempts") == "1"
        assert it.counted() == {"won": 1}


def apply(running: Running, **changes: Any) -> None:
    """Reload with these settings changed."""
    settings = running.balancer.settings
    group = Settings.model_validate(changes).hedging
    running.balancer.apply(settings.model_copy(update={"hedging": group}))


async def test_nothing_is_hedged_before_enough_was_seen() -> None:
    async with fleet() as it:
        bigger = {**EMBED, "input": "hi" * 200}
        await it.learn("/api/embed", bigger, FEWEST - 1)
        begin = asyncio.Event()
        it.then((ReadBody(), Wait(begin), *ANSWER[1:]), (ReadBody(), Stall()))
        asking = asyncio.create_task(it.running.ask("/api/embed", bigger))
        await until(lambda: len(it.asked) == 1)
        assert tells(await it.running.ask("/api/embed", EMBED))[2] == "2"
        begin.set()

        assert tells(await asking)[2] == "1"


async def test_second_is_the_next_try_where_the_first_fails_meanwhile() -> None:
    async with fleet() as it:
        fail, begin = asyncio.Event(), asyncio.Event()
        it.then((ReadBody(), Wait(fail), BROKEN), (ReadBody(), Wait(begin), *ANSWER[1:]))
        asking = asyncio.create_task(it.running.ask("/api/embed", EMBED))
        await until(lambda: len(it.asked) == 2)
        fail.set()
        await until(lambda: len(it.running.balancer.dispatcher.leases) == 1)
        begin.set()

        assert tells(await asking) == (200, it.name(1), "2", True)
        assert it.counted() == {"won": 1, "errors": 1}


async def test_first_is_waited_for_where_the_second_fails() -> None:
    async with fleet() as it:
        begin = asyncio.Event()
        it.then((ReadBody(), Wait(begin), *ANSWER[1:]), (ReadBody(), BROKEN))
        asking = asyncio.create_task(it.running.ask("/api/embed", EMBED))
        await until(lambda: "errors" in it.counted())
        begin.set()

        assert tells(await asking) == (200, it.name(0), "2", False)
        assert it.counted() == {"failed": 1, "errors": 1}


async def test_error_answer_does_not_win() -> None:
    async with fleet() as it:
        begin = asyncio.Event()
        broken = Send(whole(b'{"error":"out of order"}', status=500))
        it.then((ReadBody(), Wait(begin), *ANSWER[1:]), (ReadBody(), broken))
        asking = asyncio.create_task(it.running.ask("/api/embed", EMBED))
        await until(lambda: "errors" in it.counted())
        begin.set()

        assert tells(await asking) == (200, it.name(0), "2", False)


async def test_what_is_wrong_with_the_request_is_told_by_whoever_says_so_first() -> None:
    async with fleet() as it:
        refusal = Send(whole(b'{"error":"input is too long"}', status=400))
        it.then((ReadBody(), Stall()), (ReadBody(), refusal))

        assert tells(await it.running.ask("/api/embed", EMBED)) == (400, it.name(1), "2", True)
        assert it.counted() == {"won": 1}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first, second", "second, first"])
async def test_where_both_fail_a_third_is_tried(order: tuple[int, int]) -> None:
    async with fleet(3) as it:
        fail = asyncio.Event(), asyncio.Event()
        it.then(*((ReadBody(), Wait(each), BROKEN) for each in fail))
        asking = asyncio.create_task(it.running.ask("/api/embed", EMBED))
        await until(lambda: len(it.asked) == 2)
        fail[order[0]].set()
        await until(lambda: "errors" in it.counted())
        fail[order[1]].set()

        assert tells(await asking) == (200, it.name(2), "3", False)
        assert len({it.name(number) for number in range(3)}) == 3
        assert it.counted() == {"failed": 1, "retries": 1, "errors": 2}


async def test_where_both_fail_and_nobody_is_left_the_failure_is_told() -> None:
    async with fleet() as it:
        fail = asyncio.Event()
        it.then((ReadBody(), Wait(fail), BROKEN), (ReadBody(), Wait(fail), BROKEN))
        asking = asyncio.create_task(it.running.ask("/api/embed", EMBED))
        await until(lambda: len(it.asked) == 2)
        fail.set()

        assert (await asking).status == 502
        assert it.counted() == {"failed": 1, "errors": 2}


async def test_client_that_leaves_cancels_both() -> None:
    async with fleet() as it:
        it.then((ReadBody(), Stall()), (ReadBody(), Stall()))
        async with it.running.client() as client:
            await client.send(request("/api/embed", EMBED))
            await until(lambda: len(it.asked) == 2)

        for each in it.asked:
            await each.connection.closed.wait()
        await until(lambda: it.running.idle)
        assert it.counted() == {"cancelled": 1}
        assert it.finished()["outcome"] == "cancelled"


async def test_balancer_that_is_stopped_tells_so_and_leaves_nothing() -> None:
    async with fleet(limits={"stop_seconds": 0}) as it:
        it.then((ReadBody(), Stall()), (ReadBody(), Stall()))
        asking = asyncio.create_task(it.running.ask("/api/embed", EMBED))
        await until(lambda: len(it.asked) == 2)

        it.running.balancer.client.break_off("the balancer was stopped before the answer was complete")

        assert (await asking).status == 503
        assert it.counted() == {"cancelled": 1}
