"""Rows of the fault matrix in which an instance fails, or the network on the way to it.

All of them do it to the first of three instances, if nothing else is said. The rows in which clients
misbehave are in rows_clients.py, those in which what comes back is no answer in rows_answers.py.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable

from tests.faults import conducts
from tests.faults.acts import (
    behave,
    behave_once_down,
    conduct,
    downs,
    loads_between,
    memory_is_bounded,
    note_memory,
    retried,
    sent_between,
    some_retried,
    struck,
    until_a_stream_runs,
    until_down,
)
from tests.faults.client import Seen, View
from tests.faults.fleet import until
from tests.faults.scene import Row, Scene
from tests.faults.talks import CHAT, COLD, GENERATE

_BREAKER_FAULTS = 5
_NARROW_BYTES = 64_000.0
_BROKEN = frozenset({Seen.BROKEN})
_CYCLE_SECONDS = 2.0
_WATCHFUL = {"health": {"timeout_seconds": 1.0, "unhealthy_threshold": 2}}


# -- 1 to 6: an instance that is gone, silent, or ends in the middle


async def refuse(scene: Scene) -> None:
    scene.fleet.first.passthrough.refuse()


async def accept(scene: Scene) -> None:
    await until_down(scene)
    await scene.fleet.first.passthrough.open()


def marked_down_at_once(scene: Scene) -> Iterable[str]:
    yield from struck(scene, downs(scene), "instance went down")
    if retried(scene) > scene.served.slots * max(1, downs(scene)):
        yield f"{retried(scene)} requests were retried, more than before the first refusal was known"


async def die_before_heads(scene: Scene) -> None:
    """Take requests and be killed before answering them."""
    first = scene.fleet.first
    await first.hang()
    hung_at = time.monotonic()
    await until(
        lambda: any(each.at > hung_at and not each.said for each in first.passthrough.requests), seconds=5
    )
    await asyncio.sleep(0.3)
    await first.kill()


async def kill_in_streams(scene: Scene) -> None:
    await until_a_stream_runs(scene)
    await scene.fleet.first.kill()


async def start(scene: Scene) -> None:
    await scene.fleet.first.start()


def some_broken(scene: Scene) -> Iterable[str]:
    broken = [each for each in scene.load.views if each.seen is Seen.BROKEN and each.talk.streams]
    yield from struck(scene, broken, "stream was broken")


async def truncate(scene: Scene) -> None:
    """One instance ends its connection in a body, another ends bodies properly without the last record."""
    scene.fleet.first.passthrough.conduct = conducts.CutMidway(600)
    await scene.fleet.instances[1].fault("unfinished", after_tokens=4)


def both_truncations_told(scene: Scene) -> Iterable[str]:
    outcomes = {event["outcome"] for event in scene.fleet.balancer.events("request_finished")}
    for wanted in ("truncated", "unfinished"):
        yield from struck(scene, wanted in outcomes, f"outcome '{wanted}'")


async def stop_process(scene: Scene) -> None:
    """Stop it while a request waits there for the first byte of its answer."""
    first = scene.fleet.first

    def asked() -> bool:
        return any(not each.said and not each.over for each in first.passthrough.requests)

    while True:
        await until(asked)
        first.pause()
        await asyncio.sleep(0.05)  # by then what it had said before is in
        if asked():
            return
        first.go_on()


async def continue_process(scene: Scene) -> None:
    await until_down(scene)
    scene.fleet.first.go_on()


async def black_hole(scene: Scene) -> None:
    """Packets are dropped: connections of before never speak again, and no new one is answered."""
    await until_a_stream_runs(scene)
    scene.fleet.first.passthrough.freeze()
    scene.fleet.first.passthrough.conduct = conducts.BlackHole()


# -- 7 and 8: slow, which is no failure


async def slow_tokens(scene: Scene) -> None:
    seconds = 0.5 if scene.short else 10.0
    await scene.fleet.first.fault("slow", factor=seconds * scene.served.decode_rate)


def not_counted_as_failure(scene: Scene) -> Iterable[str]:
    if downs(scene):
        yield "an instance that is merely slow was marked down"
    if retried(scene):
        yield f"{retried(scene)} requests were taken from an instance that is merely slow"


async def narrow(scene: Scene) -> None:
    note_memory(scene)
    rate = _NARROW_BYTES / (4 if scene.short else 1)
    scene.fleet.first.passthrough.conduct = conducts.Narrow(rate)


# -- 9 to 12: errors in good shape


async def fail_all(scene: Scene) -> None:
    await scene.fleet.first.fault("status_500")


def breaker_opened(scene: Scene) -> Iterable[str]:
    """What was sent to it before the breaker opened went at most in as many rounds as it takes faults."""
    struck_there = sent_between(scene, "injected", "cured")
    yield from struck(scene, struck_there, "request was sent to it")
    most = _BREAKER_FAULTS * scene.served.slots
    if len(struck_there) > most:
        yield f"{len(struck_there)} requests were sent to an instance that answers 500 (at most {most})"


async def say_busy(scene: Scene) -> None:
    await scene.fleet.first.fault("busy_503")


def full_and_not_down(scene: Scene) -> Iterable[str]:
    yield from some_retried(scene)
    if downs(scene):
        yield "an instance that is merely full was marked down"


async def lose_memory(scene: Scene) -> None:
    """Ask for a model that is loaded nowhere, and that one instance has no memory for."""
    await scene.fleet.first.fault("out_of_memory", model=COLD)

    async def ask() -> None:
        while "cured" not in scene.at:
            await scene.load.ask(GENERATE, model=COLD)
            for each in scene.fleet.instances[1:]:  # so that it must be loaded somewhere again
                await each.ask("POST", "/api/generate", {"model": COLD, "keep_alive": 0})

    for _ in range(scene.served.slots):
        scene.begin(ask())


async def find_memory(scene: Scene) -> None:
    await until(lambda: any(each.status == 500 for each in scene.fleet.first.passthrough.loads), seconds=10)
    await behave(scene)


def pair_is_cooled(scene: Scene) -> Iterable[str]:
    """One load tells, and no client's request is spent on it."""
    failed = [each for each in loads_between(scene, "injected", "cured") if each.status == 500]
    yield from struck(scene, failed, "load failed")
    if len(failed) > 1:
        yield f"{len(failed)} loads failed at an instance without memory for the model (at most 1)"
    spent = [each for each in sent_between(scene, "injected", "cured") if each.status == 500]
    if spent:
        yield f"{len(spent)} requests of clients carried a load"


async def lose_model(scene: Scene) -> None:
    await scene.fleet.first.ask("DELETE", "/api/delete", {"model": CHAT})


async def pull_model(scene: Scene) -> None:
    await scene.fleet.first.ask("POST", "/api/pull", {"model": CHAT, "stream": False})


def model_was_missed(scene: Scene) -> Iterable[str]:
    missed = [each for each in sent_between(scene, "injected", "cured") if each.status == 404]
    scene.notes["404"] = str(len(missed))
    if not scene.short:  # lists may be read anew sooner than the next request comes
        yield from struck(scene, missed, "404")


# -- 17: restarts


async def restart_again_and_again(scene: Scene) -> None:
    async def restart() -> None:
        pause = 0.5 if scene.short else _CYCLE_SECONDS
        for number in itertools.count(1):
            if "cured" in scene.at:
                return
            await scene.fleet.first.kill()
            await asyncio.sleep(pause)
            await scene.fleet.first.start()
            scene.mark(f"back {number}")
            await asyncio.sleep(pause)

    scene.begin(restart())


def few_broken(scene: Scene) -> Iterable[str]:
    broken = sum(each.seen is Seen.BROKEN for each in scene.load.views)
    share = broken / max(1, len(scene.load.views))
    scene.notes["broken off"] = f"{share:.2%}"
    if scene.short:
        return
    if share > 0.01:
        yield f"{share:.2%} of the answers were broken off (at most 1 %)"
    risked = sent_between(scene, "back 2", "cured")
    if risked:
        yield f"{len(risked)} requests were sent to an instance that comes and goes, after its second fall"


# -- 21 and 38


async def all_down(scene: Scene) -> None:
    for each in scene.fleet.instances:
        each.passthrough.refuse()
    await scene.fleet.balancer.until_ready_is(503)
    scene.mark("all down")
    for path, wanted in (("/health", 503), ("/livez", 200)):
        status, _ = await scene.fleet.balancer.get(path)
        if status != wanted:
            scene.found.append(f"{path} answered {status} while every instance was down")


async def all_up(scene: Scene) -> None:
    scene.mark("coming up")
    for each in scene.fleet.instances:
        await each.passthrough.open()
    await scene.fleet.balancer.until_ready_is(200)


def is_turned_away(scene: Scene, view: View) -> bool:
    """Told to come again; 502 is for those that were under way when the last instance went."""
    if view.seen is not Seen.TOLD or not scene.during_fault(view):
        return False
    if view.status == 503:
        return "retry-after" in view.headers
    return view.status == 502 and view.sent_at < scene.at["all down"]


def answered_at_once(scene: Scene) -> Iterable[str]:
    took = sorted(
        each.ended_at - each.sent_at
        for each in scene.load.views
        if scene.at["all down"] <= each.sent_at < scene.at["coming up"] and each.status == 503
    )
    yield from struck(scene, took, "request came while all were down")
    if took:
        scene.notes["503 told in, p95"] = f"{took[int(len(took) * 0.95)] * 1000:.0f} ms"


def stale_and_silent(scene: Scene) -> Iterable[str]:
    reused = [each for each in sent_between(scene, "injected", "cured") if each.place > 1 and not each.said]
    yield from struck(scene, reused, "kept connection was used")
    if downs(scene):
        yield "an instance was marked down for a connection that it had closed idle"


ROWS = (
    Row(key="1", fault="an instance refuses connections", requires="tried elsewhere; down after one refusal",
        inject=refuse, cure=accept, check=marked_down_at_once),
    Row(key="2", fault="killed after it took requests, before any answer", requires="tried elsewhere",
        inject=die_before_heads, cure=start, check=some_retried, permits=_BROKEN, processes=True),
    Row(key="3", fault="killed in the middle of streams", requires="told in the stream; never tried again",
        inject=kill_in_streams, cure=start, check=some_broken, permits=_BROKEN, processes=True),
    Row(key="4", fault="answers end early without a reset, or without their last record",
        requires="told in the stream", inject=truncate, cure=behave, check=both_truncations_told,
        permits=_BROKEN),
    Row(key="5", fault="stopped before it answers", requires="moved elsewhere when probes fail",
        inject=stop_process, cure=continue_process, check=some_retried, permits=_BROKEN, processes=True,
        short_settings=_WATCHFUL),
    Row(key="6", fault="packets dropped in the middle of streams", requires="told after the idle deadline",
        inject=black_hole, cure=behave_once_down, check=some_broken, permits=_BROKEN,
        settings={"limits": {"stream_idle_seconds": 5.0}}, short_seconds=4.5,
        short_settings={"limits": {"stream_idle_seconds": 1.0}, **_WATCHFUL}),
    Row(key="7", fault="a token every 10 s", requires="never cut, no failure", inject=slow_tokens,
        cure=behave, check=not_counted_as_failure),
    Row(key="8", fault="a line of 512 kbit/s", requires="whole, memory bounded", inject=narrow, cure=behave,
        check=memory_is_bounded),
    Row(key="9", fault="500 on everything", requires="tried elsewhere; breaker opens",
        inject=fail_all, cure=behave, check=breaker_opened, short_seconds=4.5),
    Row(key="10", fault="503, server busy", requires="tried elsewhere", inject=say_busy, cure=behave,
        check=full_and_not_down),
    Row(key="11", fault="out of memory at a load", requires="loaded elsewhere; model and instance kept apart",
        inject=lose_memory, cure=find_memory, check=pair_is_cooled,
        settings={"strategy": "weighted_round_robin"}),
    Row(key="12", fault="404, the model is gone", requires="tried elsewhere", inject=lose_model,
        cure=pull_model, check=model_was_missed),
    Row(key="17", fault="up 2 s, down 2 s, again and again", requires="at most 1 % broken off",
        inject=restart_again_and_again, check=few_broken, permits=_BROKEN, processes=True),
    Row(key="21", fault="every instance is down", requires="503 with Retry-After; /livez stays 200",
        inject=all_down, cure=all_up, check=answered_at_once, allows=is_turned_away),
    Row(key="38", fault="kept connections closed as they are used again", requires="one silent try",
        inject=conduct(conducts.StaleClose()), cure=behave, check=stale_and_silent),
)  # fmt: skip
