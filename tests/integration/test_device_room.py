"""Instances that share a device: a load begins once there is room, for which idle siblings are unloaded."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from balancer.control.room import NoRoom
from balancer.core.names import canonical_name
from balancer.core.ticket import InstanceId
from balancer.core.variant import Variant
from balancer.fleet.device_ledger import Share
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
    chunk,
    chunked,
    head,
    whole,
)

GIB = 1 << 30
NO_MEMORY = b'{"error":"llama-server reported out-of-memory during startup: cudaMalloc failed"}'
HEAD = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")


class Sized(ScriptedInstance):
    """One model of a size on its disk, loaded and unloaded as it is asked; `seen` tells of both."""

    def __init__(self, model: str, seen: list[str], *, gib: int = 6, loaded: bool = False) -> None:
        super().__init__(model)
        self.model = model
        self.row = {"name": model, "model": model, "digest": model, "size": gib * GIB, "size_vram": gib * GIB}
        self.seen = seen
        self.out_of_memory = False
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.otherwise = self._answer
        self.list_runner(loaded=loaded)
        self.lies["/api/tags"] = json.dumps({"models": [self.row]}).encode()

    def list_runner(self, *, loaded: bool) -> None:
        self.lies["/api/ps"] = json.dumps({"models": [self.row] if loaded else []}).encode()

    def _answer(self, request: SeenRequest) -> Script:
        asker = request.header("user-agent") or ""
        if asker.startswith("python-httpx"):  # the control client
            self.seen.append(f"unload {self.model}")
            self.list_runner(loaded=False)
            return (ReadBody(), Send(whole(b'{"done":true,"done_reason":"unload"}')))
        if asker == "ollama-balancer":
            self.seen.append(f"load {self.model}")
            if self.out_of_memory:
                return (ReadBody(), Send(whole(NO_MEMORY, status=500)))
            self.list_runner(loaded=True)
            return (ReadBody(), Send(whole(b'{"done":true,"done_reason":"load"}')))
        first, last = Send(HEAD + chunk(b'{"response":"a","done":false}\n')), Send(chunk(DONE) + b"0\r\n\r\n")
        return (ReadBody(), first, Wait(self.may_end), last)


def plan(running: Running, *, gib: int = 10) -> None:
    """Both instances on one device, half of it each."""
    names = [each.id for each in running.balancer.fleet.instances()]
    shares = {each: Share(devices=("0",), bytes_each=gib * GIB // len(names)) for each in names}
    running.balancer.device_ledger.use({"0": gib * GIB}, shares)


@contextlib.asynccontextmanager
async def siblings(seen: list[str], *, gib: int = 6) -> AsyncIterator[tuple[Sized, Running]]:
    """`m` is loaded in one, `n` of so many GiB is on the disk of the other; the first, and the balancer."""
    one, two = Sized("m", seen, loaded=True), Sized("n", seen, gib=gib)
    async with one.running(), two.running(), balancing(one, two) as running:
        yield one, running


def ask(running: Running, model: str) -> asyncio.Task[Answer]:
    return asyncio.create_task(running.ask("/api/generate", {"model": model, "prompt": "hi"}))


def no_room(running: Running, model: str) -> bool:
    """Whether the second instance remembers that it found no room for it."""
    now, second = running.balancer.clock.monotonic(), running.balancer.fleet.instances()[1]
    return second.no_room_until(Variant(canonical_name(model)), now) is not None


async def test_idle_model_of_a_sibling_makes_way() -> None:
    seen: list[str] = []
    async with siblings(seen) as (_, running):
        plan(running)

        answer = await ask(running, "n")

        assert answer.status == 200
        assert seen == ["unload m", "load n"]
        page = running.balancer.report.metrics().decode()
        assert 'balancer_model_evictions_total{model="m:latest",reason="room"} 1.0' in page


async def test_with_room_for_both_nothing_is_unloaded() -> None:
    seen: list[str] = []
    async with siblings(seen) as (_, running):
        plan(running, gib=13)

        assert (await ask(running, "n")).status == 200
        assert seen == ["load n"]


async def test_a_load_waits_while_the_sibling_serves() -> None:
    seen: list[str] = []
    async with siblings(seen) as (one, running):
        plan(running)
        one.may_end.clear()
        serving = ask(running, "m")
        await until(lambda: running.balancer.dispatcher.leases, "a request at the sibling")
        waiting = ask(running, "n")
        await until(lambda: no_room(running, "n"), "a load that found no room")

        assert not running.logged("load_ended"), "none is begun"
        assert seen == []
        one.may_end.set()
        assert (await serving).status == (await waiting).status == 200
        assert seen == ["unload m", "load n"]


async def test_what_is_in_memory_is_served_beside_a_load_that_waits_for_room() -> None:
    seen: list[str] = []
    one, two = Sized("m", seen, loaded=True), Sized("n", seen)
    small = {"name": "w", "model": "w", "digest": "w", "size": GIB, "size_vram": GIB}
    two.lies["/api/tags"] = json.dumps({"models": [two.row, small]}).encode()
    two.lies["/api/ps"] = json.dumps({"models": [small]}).encode()
    async with one.running(), two.running(), balancing(one, two) as running:
        plan(running)
        one.may_end.clear()
        serving = ask(running, "m")
        await until(lambda: running.balancer.dispatcher.leases, "a request at the sibling")
        waiting = ask(running, "n")
        await until(lambda: no_room(running, "n"), "a load that found no room")

        for _ in range(20):
            assert (await ask(running, "w")).status == 200

        assert not waiting.done()
        assert seen == [], "nothing is unloaded where that makes too little room"
        assert not running.logged("load_ended"), "none is begun"
        one.may_end.set()
        assert (await serving).status == (await waiting).status == 200


async def test_model_larger_than_its_device_is_loaded_once_it_has_it_for_itself() -> None:
    seen: list[str] = []
    async with siblings(seen, gib=20) as (_, running):
        plan(running)

        assert (await ask(running, "n")).status == 200
        assert seen == ["unload m", "load n"]


async def test_what_is_on_other_devices_keeps_no_model_out() -> None:
    seen: list[str] = []
    one, two = Sized("m", seen, loaded=True), Sized("n", seen, loaded=True)
    big = {**two.row, "name": "big", "size": 9 * GIB}
    two.lies["/api/tags"] = json.dumps({"models": [two.row, big]}).encode()
    async with one.running(), two.running(), balancing(one, two) as running:
        first, second = running.balancer.fleet.instances()
        shares = {each.id: Share(devices=(each.id,), bytes_each=10 * GIB) for each in (first, second)}
        running.balancer.device_ledger.use({first.id: 10 * GIB, second.id: 10 * GIB}, shares)

        promise = await running.balancer.room.promise(second, Variant(canonical_name("big")))

        assert promise.instance == second.id, "Ollama makes room among its own models"
        assert seen == []


async def test_of_two_models_larger_than_the_device_one_is_loaded_after_the_other() -> None:
    seen: list[str] = []
    one, two = Sized("m", seen, gib=20), Sized("n", seen, gib=20)
    async with one.running(), two.running(), balancing(one, two) as running:
        plan(running)
        room, ledger = running.balancer.room, running.balancer.device_ledger
        first, second = running.balancer.fleet.instances()

        promise = await room.promise(first, Variant(canonical_name("m")))
        with pytest.raises(NoRoom):
            await room.promise(second, Variant(canonical_name("n")))
        ledger.settle(promise)

        ledger.settle(await room.promise(second, Variant(canonical_name("n"))))
        assert ledger.promised_bytes("0") == 0


async def test_end_of_memory_shrinks_what_is_promised_and_then_restarts() -> None:
    seen: list[str] = []
    async with Sized("n", seen).running() as one:
        assert isinstance(one, Sized)
        one.out_of_memory = True
        async with balancing(one, circuit_breaker={"reset_seconds": 0.1}) as running:
            plan(running)
            restarted: list[InstanceId] = []

            def restart(instance: InstanceId) -> bool:
                restarted.append(instance)
                return True

            running.balancer.room._restart = restart

            async def fail() -> dict[str, Any]:
                before = len(running.logged("out_of_memory"))
                assert (await ask(running, "n")).status == 503
                await until(lambda: len(running.logged("out_of_memory")) > before, "what was met")
                await asyncio.sleep(1.1)  # the load is not tried again for a second
                return running.logged("out_of_memory")[-1]

            told = [await fail() for _ in range(3)]

            assert [each["limit_bytes"] for each in told] == [
                int(10 * GIB * 0.8),
                int(int(10 * GIB * 0.8) * 0.8),
                int(int(int(10 * GIB * 0.8) * 0.8) * 0.8),
            ]
            assert [each["restarts"] for each in told] == [False, False, True]
            assert restarted == ["a"]


@pytest.mark.both_sinks
async def test_out_of_memory_in_the_middle_of_an_answer_is_told_too() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        plan(running)
        error = b'{"error":"an error was encountered while running the model: CUDA error: out of memory"}\n'
        one.play(Send(chunked(b'{"response":"a","done":false}\n', error)))

        await running.ask("/api/generate", {"model": "m", "prompt": "hi"})

        await until(lambda: running.logged("out_of_memory"), "what was met")
        assert running.logged("out_of_memory")[0]["instance"] == "a"


async def test_whoever_was_not_planned_is_never_unloaded() -> None:
    seen: list[str] = []
    async with siblings(seen) as (_, running):
        assert (await ask(running, "n")).status == 200
        assert seen == ["load n"]


async def test_an_idle_model_beside_it_makes_way_before_a_sibling_that_answered_later() -> None:
    """Ollama itself would not see that there is no room for it."""
    seen: list[str] = []
    one, two = Sized("m", seen, gib=4, loaded=True), Sized("n", seen, gib=4)
    async with one.running(), two.running(), balancing(one, two) as running:
        plan(running, gib=12)
        beside = {"name": "o", "model": "o", "digest": "o", "size": 4 * GIB, "size_vram": 4 * GIB}
        two.lies["/api/ps"] = json.dumps({"models": [beside]}).encode()
        await running.balancer.prober.read(running.balancer.fleet.get(InstanceId("b")), 5.0)
        assert (await ask(running, "m")).status == 200

        assert (await ask(running, "n")).status == 200

        unloaded = [each["model"] for each in running.logged("unloaded_for_room")]
        assert unloaded == ["o:latest"]
        assert seen == ["unload n", "load n"]
