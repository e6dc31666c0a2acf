"""A cold model is loaded by the balancer's own request, once, while the clients' requests wait for it."""

import asyncio
import json
from typing import Any

import pytest

from balancer.core.names import ModelName
from balancer.core.ticket import InstanceId
from balancer.core.variant import Variant
from tests.fakes.raw_client import request
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
    whole,
)

GENERATE = {"model": "m", "prompt": "hi"}
LOADED = b'{"model":"m","response":"","done":true,"done_reason":"load"}'
FULL = "server busy, please try again.  maximum pending requests exceeded"


class ColdInstance(ScriptedInstance):
    """One whose models are on its disk only. A request of the balancer's own is a load: it waits for
    `may_load` and gets `load_answer`; those of clients are answered well."""

    def __init__(self, *models: str) -> None:
        super().__init__(*models)
        self.resident = set()
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.load_answer = whole(LOADED)
        self.otherwise = self._answer

    @property
    def loads(self) -> list[SeenRequest]:
        return [each for each in self.requests if each.header("user-agent") == "ollama-balancer"]

    @property
    def asked(self) -> list[SeenRequest]:
        return [each for each in self.requests if each not in self.loads]

    def fail_loads(self, status: int, text: str) -> None:
        self.load_answer = whole(json.dumps({"error": text}).encode(), status=status)

    def _answer(self, seen: SeenRequest) -> Script:
        if seen.header("user-agent") != "ollama-balancer":
            return (ReadBody(), Send(chunked(DONE)))
        if self.load_answer.startswith(b"HTTP/1.1 200"):
            assert self.resident is not None
            self.resident.update(self.models)
        return (ReadBody(), Wait(self.may_load), Send(self.load_answer))


def ask(running: Running, **body: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(running.ask("/api/generate", {**GENERATE, **body}))


async def test_cold_model_is_loaded_with_the_options_of_its_variant_and_no_others() -> None:
    async with ColdInstance().running() as one, balancing(one) as running:
        options = {"num_ctx": 4096, "temperature": 0.5, "num_thread": 2, "seed": 1}

        answer = await running.ask("/api/generate", {**GENERATE, "options": options, "keep_alive": "1h"})

        assert (answer.status, len(one.loads), len(one.asked)) == (200, 1, 1)
        (load,) = one.loads
        assert load.target == "/api/generate"
        assert json.loads(load.body) == {
            "model": "m",
            "stream": False,
            "options": {"num_ctx": 4096, "num_thread": 2},
        }


async def test_resident_model_is_not_loaded_by_the_balancer() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        await running.ask("/api/generate", GENERATE)

        assert [each.header("user-agent") for each in one.requests] == [None]


async def test_model_that_only_embeds_is_loaded_by_an_embedding_of_nothing() -> None:
    async with ColdInstance().running() as one, balancing(one) as running:
        one.play(Send(whole(b'{"error":"\\"m\\" does not support generate"}', status=400)))

        answer = await running.ask("/api/embed", {"model": "m", "input": "hi"})

        assert answer.status == 200
        assert [each.target for each in one.loads] == ["/api/generate", "/api/embed"]
        assert json.loads(one.loads[1].body)["input"] == []


@pytest.mark.parametrize("instances", [1, 2])
async def test_many_requests_for_a_cold_model_load_it_once_in_an_instance(instances: int) -> None:
    async with ColdInstance().running() as one, ColdInstance().running() as two:
        fleet = (one, two)[:instances]
        async with balancing(*fleet, each={"slots": 2}) as running:
            for each in fleet:
                each.may_load.clear()
            tasks = [ask(running, number=number) for number in range(40)]
            await until(lambda: len(running.balancer.queue) == 40)
            await until(lambda: sum(len(each.loads) for each in fleet) == 1, "one load of the model")
            for each in fleet:
                each.may_load.set()

            answers = await asyncio.gather(*tasks)

            assert [each.status for each in answers] == [200] * 40
            assert all(len(each.loads) <= 1 for each in fleet)
            assert sum(len(each.asked) for each in fleet) == 40


async def test_client_that_leaves_does_not_abort_the_load_that_it_caused() -> None:
    async with ColdInstance().running() as one, balancing(one) as running:
        one.may_load.clear()
        async with running.client() as client:
            await client.send(request("/api/generate", GENERATE))
            load = await one.seen(1)
        await until(lambda: len(running.balancer.queue) == 0)
        assert not load.connection.closed.is_set()
        one.may_load.set()
        await until(lambda: running.logged("load_ended"))

        assert running.logged("load_ended")[0]["outcome"] == "ok"
        assert (await running.ask("/api/generate", GENERATE)).status == 200
        assert (len(one.loads), len(one.asked)) == (1, 1)


@pytest.mark.parametrize(
    ("status", "text", "seconds"),
    [
        (500, "model requires more system memory (9 GiB) than is available (3 GiB)", (50, 60)),
        (500, "llama-server process has terminated: signal: killed", (50, 60)),
        (500, "nobody has seen this", (50, 60)),
    ],
)
async def test_failed_load_is_told_to_all_that_wait_for_it(
    status: int, text: str, seconds: tuple[int, int]
) -> None:
    async with ColdInstance().running() as one, balancing(one) as running:
        one.fail_loads(status, text)
        one.may_load.clear()
        tasks = [ask(running, number=number) for number in range(5)]
        await until(lambda: len(running.balancer.queue) == 5)
        one.may_load.set()

        answers = await asyncio.gather(*tasks)

        assert [each.status for each in answers] == [503] * 5
        for each in answers:
            assert text.strip() in each.json["error"]
            assert seconds[0] <= int(each.header("retry-after") or 0) <= seconds[1]
        assert (len(one.loads), one.asked) == (1, [])


async def test_load_that_a_full_instance_turns_down_is_tried_again_while_requests_wait() -> None:
    async with ColdInstance().running() as one, balancing(one, each={"slots": 9}) as running:
        one.fail_loads(503, FULL)
        tasks = [ask(running, number=number) for number in range(5)]
        await until(lambda: len(one.loads) >= 2 and len(running.balancer.queue) == 5)
        one.load_answer = whole(LOADED)

        answers = await asyncio.gather(*tasks)

        assert [each.status for each in answers] == [200] * 5
        # The last load serves as soon as it is answered, and is told when the lists have been read.
        await until(lambda: running.logged("load_ended")[-1]["outcome"] == "ok")
        turned_down = [each["outcome"] for each in running.logged("load_ended")][:-1]
        assert set(turned_down) == {"busy"}
        assert len(turned_down) >= 2


async def test_where_one_fails_to_load_another_instance_loads() -> None:
    async with (
        ColdInstance().running() as one,
        ColdInstance().running() as two,
        balancing(one, two, each={"slots": 9}) as running,
    ):
        one.fail_loads(500, "llama-server process has terminated: signal: killed")

        answers = await asyncio.gather(*(ask(running, number=number) for number in range(6)))

        assert [each.status for each in answers] == [200] * 6
        assert {each.header("x-balancer-instance") for each in answers} == {"b"}
        assert one.asked == []
        assert (len(one.loads) <= 1, len(two.loads)) == (True, 1)


async def test_load_that_the_instance_refuses_leaves_it_to_the_requests_to_tell() -> None:
    async with ColdInstance().running() as one, balancing(one) as running:
        one.load_answer = whole(b'{"error":"\\"m\\" does not support this"}', status=400)

        assert (await running.ask("/api/generate", GENERATE)).status == 200
        assert ([each.target for each in one.loads], len(one.asked)) == (["/api/generate", "/api/embed"], 1)


async def test_load_that_loses_its_connection_is_told_and_tried_again_later() -> None:
    async with ColdInstance().running() as one, balancing(one) as running:
        one.may_load.clear()
        waiting = ask(running)
        (await one.seen(1)).connection.reset()

        assert (await waiting).status == 503

        one.may_load.set()
        clock, a = running.balancer.clock, running.balancer.fleet.get(InstanceId("a"))
        variant = Variant(ModelName("m:latest"))
        await until(lambda: a.breakers.reopens_at(variant, clock.monotonic()) is None)
        await until(lambda: a.usable)
        assert (await running.ask("/api/generate", GENERATE)).status == 200


async def test_starved_load_holds_other_models_back_until_it_is_over() -> None:
    async with ColdInstance("m", "n").running() as one, balancing(one, each={"slots": 2}) as running:
        one.resident = {"n"}
        running.balancer.prober.look(InstanceId("a"))
        a = running.balancer.fleet.get(InstanceId("a"))
        await until(lambda: a.inventory is not None and "n:latest" in a.inventory.runners)
        running.balancer.loader._gate_after_seconds = 0.02
        end, run = asyncio.Event(), one.otherwise
        one.may_load.clear()
        one.play(Wait(end), Send(chunked(DONE)))
        running_n = ask(running, model="n")
        await one.seen(1)
        waiting_m = ask(running)
        await until(lambda: running.logged("gated_for_load"), "a gate")

        held = ask(running, model="n", number=2)
        await until(lambda: len(running.balancer.queue) == 2)
        assert run is one.otherwise
        assert len(one.asked) == 1
        end.set()
        assert (await running_n).status == 200
        assert (len(running.balancer.queue), len(one.asked)) == (2, 1)

        one.may_load.set()
        assert [(await each).status for each in (waiting_m, held)] == [200, 200]


async def test_drained_instance_ends_its_load() -> None:
    async with ColdInstance().running() as one, balancing(one) as running:
        one.may_load.clear()
        waiting = ask(running)
        await one.seen(1)

        running.balancer.drain(InstanceId("a"), True)
        assert (await waiting).status == 503
        one.may_load.set()
        await until(lambda: running.logged("load_ended"))

        assert running.logged("load_ended")[0]["outcome"] == "ok"
        running.balancer.drain(InstanceId("a"), False)
        assert (await running.ask("/api/generate", GENERATE)).status == 200
        assert len(one.loads) == 1


async def test_load_at_an_instance_that_is_removed_is_aborted_and_done_elsewhere() -> None:
    async with (
        ColdInstance().running() as one,
        ColdInstance().running() as two,
        balancing(one, two, each={"slots": 1}) as running,
    ):
        for each in (one, two):
            each.may_load.clear()
        waiting = ask(running)
        await until(lambda: one.requests or two.requests)
        removed, kept = (one, two) if one.requests else (two, one)
        kept.may_load.set()
        settings = running.balancer.settings
        left = tuple(each for each in settings.instances if each.url == kept.url)

        running.balancer.apply(settings.model_copy(update={"instances": left}))

        assert (await waiting).status == 200
        await asyncio.wait_for(removed.requests[0].connection.closed.wait(), 20)
        await until(lambda: len(running.logged("load_ended")) == 2)
        assert [each["outcome"] for each in running.logged("load_ended")] == ["aborted", "ok"]
        assert (len(kept.loads), removed.asked) == (1, [])
