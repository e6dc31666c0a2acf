"""A model that takes requests and gives nothing, as its runner lost a slot: found by evidence, then cured."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from balancer.control.stall_watch import StallTimes
from balancer.core.names import ModelName
from balancer.core.ticket import InstanceId
from balancer.provisioning.local import LocalOllama
from tests.fakes.raw_client import Answer
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
    chunked,
    whole,
)

QUICK = StallTimes(look=0.05, ask=0.0, silent=0.3)
LOADED = b'{"model":"m","response":"","done":true,"done_reason":"load"}'
UNLOADED = b'{"model":"m","response":"","done":true,"done_reason":"unload"}'


class LeakyInstance(ScriptedInstance):
    """One whose runner has lost its slot: requests stay silent until the model is unloaded. With `incurable`
    they do so after it, too."""

    def __init__(self, *, incurable: bool = False) -> None:
        super().__init__()
        self.leaking = True
        self.incurable = incurable
        self.unloads: list[SeenRequest] = []
        self.otherwise = self._answer

    def _answer(self, seen: SeenRequest) -> Script:
        asker = seen.header("user-agent") or ""
        if asker.startswith("python-httpx"):  # the control client
            self.unloads.append(seen)
            self.leaking = self.incurable
            return (ReadBody(), Send(whole(UNLOADED)))
        if asker == "ollama-balancer":
            return (ReadBody(), Send(whole(LOADED)))
        return (ReadBody(), Stall()) if self.leaking else (ReadBody(), Send(chunked(DONE)))


def ask(running: Running) -> asyncio.Task[Answer]:
    return asyncio.create_task(running.ask("/api/generate", {"model": "m", "prompt": "hi"}))


async def told(running: Running, tasks: list[asyncio.Task[Any]]) -> list[dict[str, Any]]:
    """Look until a lost slot was found, and wait for what comes of the requests."""
    found = running.balancer.stall_watch

    async def looking() -> None:
        while not all(each.done() for each in tasks):
            await found.look()
            await asyncio.sleep(QUICK.look)

    async with asyncio.timeout(30):
        await looking()
    return running.logged("slot_lost")


def manage(running: Running) -> None:
    for each in running.balancer.fleet.instances():
        each.spec = replace(each.spec, managed=True)
    running.balancer.stall_watch.times = QUICK


def says_idle(running: Running, *answers: bool | None) -> None:
    """What the runner says of itself, the last for ever."""
    left = list(answers)

    async def is_idle(*_: object) -> bool | None:
        return left.pop(0) if len(left) > 1 else left[0]

    running.balancer.stall_watch._is_idle = is_idle


@pytest.mark.both_sinks
async def test_idle_runner_under_silent_requests_is_unloaded_and_they_are_sent_again() -> None:
    async with LeakyInstance().running() as one, balancing(one) as running:
        assert isinstance(one, LeakyInstance)
        manage(running)
        says_idle(running, True)
        asked = ask(running)

        events = await told(running, [asked])

        assert (await asked).status == 200
        assert [each["action"] for each in events] == ["unload"]
        assert len(one.unloads) == 1
        assert json.loads(one.unloads[0].body) == {"model": "m", "keep_alive": 0}
        page = _page(running)
        assert 'balancer_model_evictions_total{model="m:latest",reason="slot_lost"} 1.0' in page
        assert 'kind="slot_lost"' in page


async def test_one_idle_look_is_no_evidence_and_a_busy_runner_clears_it() -> None:
    async with LeakyInstance().running() as one, balancing(one) as running:
        assert isinstance(one, LeakyInstance)
        manage(running)
        says_idle(running, True, False, True, False, True, False, False)
        asked = ask(running)
        await until(running.balancer.attempts.silences, "a silent request")

        for _ in range(8):
            await running.balancer.stall_watch.look()

        assert running.logged("slot_lost") == []
        assert one.unloads == []
        asked.cancel()


async def test_where_no_runner_can_be_asked_a_second_request_must_meet_the_silence() -> None:
    async with LeakyInstance().running() as one, balancing(one) as running:
        assert isinstance(one, LeakyInstance)
        manage(running)
        says_idle(running, None)
        first = ask(running)
        await until(running.balancer.attempts.silences, "a silent request")
        for _ in range(10):
            await running.balancer.stall_watch.look()
        assert running.logged("slot_lost") == []

        first.cancel()  # as its client gives up; the next one waits just as long
        await until(lambda: running.idle, "the first has left")
        second = ask(running)
        events = await told(running, [second])

        assert (await second).status == 200
        assert [each["action"] for each in events] == ["unload"]


async def test_an_answer_while_the_runner_is_asked_is_no_lost_slot() -> None:
    may_answer = asyncio.Event()
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.otherwise = lambda _seen: (ReadBody(), Wait(may_answer), Send(chunked(DONE)))
        manage(running)
        looks: list[object] = []

        async def is_idle(*_: object) -> bool:
            looks.append(running.balancer.attempts.silences())
            if len(looks) == 2:
                may_answer.set()
                await until(lambda: not running.balancer.attempts.silences(), "an answer")
            return True

        running.balancer.stall_watch._is_idle = is_idle
        asked = ask(running)
        await until(running.balancer.attempts.silences, "a silent request")
        await running.balancer.stall_watch.look()
        await running.balancer.stall_watch.look()

        assert len(looks) == 2
        assert (await asked).status == 200
        assert running.logged("slot_lost") == []


async def test_answers_that_do_not_stream_are_no_evidence_where_no_runner_can_be_asked() -> None:
    async with LeakyInstance().running() as one, balancing(one, each={"slots": 2}) as running:
        assert isinstance(one, LeakyInstance)
        manage(running)
        says_idle(running, None)
        whole_answers = {"model": "m", "prompt": "hi", "stream": False}
        asked = [asyncio.create_task(running.ask("/api/generate", whole_answers)) for _ in range(2)]
        await until(lambda: len(running.balancer.attempts.silences()) == 2, "silent requests")
        running.balancer.stall_watch.times = replace(QUICK, silent=0.0)

        for _ in range(10):
            await running.balancer.stall_watch.look()

        assert running.logged("slot_lost") == []
        for each in asked:
            each.cancel()


@pytest.mark.parametrize("idle", [True, None])
async def test_a_large_request_may_be_silent_for_longer(idle: bool | None) -> None:
    async with LeakyInstance().running() as one, balancing(one, each={"slots": 2}) as running:
        assert isinstance(one, LeakyInstance)
        manage(running)
        says_idle(running, idle)
        chat = {"model": "m", "messages": [{"role": "user", "content": "x" * 400_000}]}
        asked = [asyncio.create_task(running.ask("/api/chat", chat)) for _ in range(2)]
        await until(lambda: len(running.balancer.attempts.silences()) == 2, "silent requests")
        running.balancer.stall_watch.times = replace(QUICK, silent=0.0)

        for _ in range(10):
            await running.balancer.stall_watch.look()

        assert running.logged("slot_lost") == []
        for each in asked:
            each.cancel()


async def test_a_request_that_every_cure_fails_is_not_sent_again_for_ever() -> None:
    async with LeakyInstance(incurable=True).running() as one, balancing(one) as running:
        assert isinstance(one, LeakyInstance)
        manage(running)
        says_idle(running, True)
        running.balancer.stall_watch._restart = lambda _instance: True
        asked = ask(running)

        events = await told(running, [asked])

        assert (await asked).status == 502
        assert [each["action"] for each in events] == ["unload", "restart", "restart"]


async def test_an_answer_between_them_clears_the_suspicion() -> None:
    async with LeakyInstance().running() as one, balancing(one) as running:
        assert isinstance(one, LeakyInstance)
        manage(running)
        says_idle(running, None)
        first = ask(running)
        await until(running.balancer.attempts.silences, "a silent request")
        await running.balancer.stall_watch.look()
        first.cancel()
        await until(lambda: running.idle, "the first has left")
        one.leaking = False
        assert (await ask(running)).status == 200
        one.leaking = True
        third = ask(running)
        await until(running.balancer.attempts.silences, "a silent request")

        for _ in range(10):
            await running.balancer.stall_watch.look()

        assert running.logged("slot_lost") == []
        third.cancel()


async def test_attached_instance_is_not_unloaded_but_left_alone() -> None:
    async with LeakyInstance().running() as one, balancing(one) as running:
        assert isinstance(one, LeakyInstance)
        running.balancer.stall_watch.times = QUICK
        says_idle(running, True)
        asked = ask(running)

        events = await told(running, [asked])

        assert (await asked).status == 502
        assert [each["action"] for each in events] == ["left_alone"]
        assert one.unloads == []
        assert 'breaker_state{instance="a",model="m:latest"} 2.0' in _page(running)


async def test_attached_instance_is_unloaded_where_that_is_allowed() -> None:
    async with LeakyInstance().running() as one:
        assert isinstance(one, LeakyInstance)
        async with balancing(one, health={"unload_stalled": True}) as running:
            running.balancer.stall_watch.times = QUICK
            says_idle(running, True)
            asked = ask(running)

            await told(running, [asked])

            assert (await asked).status == 200
            assert len(one.unloads) == 1


async def test_what_has_answered_since_its_cure_is_cured_in_the_same_way() -> None:
    async with LeakyInstance().running() as one, balancing(one) as running:
        assert isinstance(one, LeakyInstance)
        manage(running)
        says_idle(running, True)
        for _ in range(2):
            one.leaking = True
            asked = ask(running)
            await told(running, [asked])
            assert (await asked).status == 200

        assert [each["action"] for each in running.logged("slot_lost")] == ["unload", "unload"]


async def test_what_stalls_again_after_the_cure_is_restarted() -> None:
    async with LeakyInstance(incurable=True).running() as one, balancing(one) as running:
        assert isinstance(one, LeakyInstance)
        manage(running)
        says_idle(running, True)
        restarted: list[InstanceId] = []

        def restart(instance: InstanceId) -> bool:
            restarted.append(instance)
            one.leaking = False
            return True

        running.balancer.stall_watch._restart = restart
        asked = ask(running)

        events = await told(running, [asked])

        assert (await asked).status == 200
        assert [each["action"] for each in events] == ["unload", "restart"]
        assert restarted == ["a"]
        assert len(one.unloads) == 1


@pytest.mark.parametrize(
    ("slots", "idle"),
    [
        (b'[{"id":0,"is_processing":false},{"id":1,"is_processing":false}]', True),
        (b'[{"id":0,"is_processing":false},{"id":1,"is_processing":true}]', False),
        (b"[]", None),
        (b'[{"id":0}]', None),
        (b'{"error":"not enabled"}', None),
        (b"no json", None),
    ],
)
async def test_a_runner_is_asked_for_its_slots(slots: bytes, idle: bool | None) -> None:
    async with ScriptedInstance().running() as runner, ScriptedInstance().running() as one:
        blob = "ab" * 32
        shown = json.dumps({"modelfile": f"FROM /blobs/sha256-{blob}"}).encode()
        one.otherwise = lambda _seen: (ReadBody(), Send(whole(shown)))
        runner.otherwise = lambda _seen: (Send(whole(slots)),)
        async with balancing(one) as running:
            prober = running.balancer.prober
            port = int(runner.url.rpartition(":")[2])
            prober._find_local = lambda _instance: LocalOllama(1, "x", ports={blob: port})
            (instance,) = running.balancer.fleet.instances()

            assert await prober.is_idle(instance, ModelName("m:latest")) is idle
            assert [each.target for each in runner.requests] == ["/slots"]


def _page(running: Running) -> str:
    return running.balancer.report.metrics().decode()
