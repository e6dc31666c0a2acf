"""Rows of the fault matrix in which clients are the trouble, or the operator: 28 to 32."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from random import Random

from tests.faults.acts import struck
from tests.faults.client import Client, Leaving, Seen, View
from tests.faults.fleet import BalancerProcess, until
from tests.faults.load import Load
from tests.faults.passthrough import Sent
from tests.faults.scene import Row, Scene
from tests.faults.talks import CHAT_STREAM, CHAT_UNARY, COLD, GENERATE

CLOSE_SECONDS = 0.5
_SLOW_BYTES_PER_SECOND = 4096.0
_SLOW_READERS = 4
_TELL_SECONDS, _SPARE_SECONDS = 2.0, 3.0
_AT_ONCE_SECONDS = 0.5
_LATE_PAUSE_SECONDS = 0.1
_UPSTREAM_SECONDS = 75.0
_UNSENT = Sent(instance="", link=0, place=0, at=0.0)


def sent_of(scene: Scene) -> dict[str, list[Sent]]:
    """What went over the lines, by request."""
    found: dict[str, list[Sent]] = {}
    for instance in scene.fleet.instances:
        for each in instance.passthrough.requests:
            found.setdefault(each.request_id, []).append(each)
    return found


def percentile(values: Iterable[float], share: float) -> float:
    """The value that so many of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# -- 28: clients that leave


def leaves_sometimes(random: Random) -> Leaving | None:
    """One in ten goes away at any point."""
    if random.random() > 0.1:
        return None
    by_reset = random.random() < 0.5
    if random.random() < 0.5:
        return Leaving(seconds=random.uniform(0.0, 0.6), by_reset=by_reset)
    return Leaving(answer_bytes=random.randint(1, 4000), by_reset=by_reset)


async def leave_at_every_stage(scene: Scene) -> None:
    """Some leave while they send; others while they wait in the queue, for a load or for a first byte;
    others in a stream."""
    scene.begin(_leave_while_sending(scene))
    for seconds in (0.03, 0.15):
        scene.begin(_leave_while_waiting(scene, seconds=seconds, model=""))
    scene.begin(_leave_while_waiting(scene, seconds=scene.served.load_seconds / 2, model=COLD))
    scene.begin(_leave_in_streams(scene))


async def _leave_while_sending(scene: Scene) -> None:
    """Right after the connection, in the head, in the body."""
    for share in itertools.cycle((0.0, 0.2, 0.9)):
        if "cured" in scene.at:
            return
        view, request = scene.load.prepare(GENERATE)
        view.left = True
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", scene.fleet.balancer.port)
            writer.write(request[: int(len(request) * share)])
            await asyncio.sleep(0.03)
            writer.transport.abort()
        view.ended_at = time.monotonic()


async def _leave_while_waiting(scene: Scene, *, seconds: float, model: str) -> None:
    while "cured" not in scene.at:
        leaving = Leaving(seconds=seconds, by_reset=scene.random.random() < 0.5)
        await scene.load.ask(GENERATE, leaving=leaving, model=model)


async def _leave_in_streams(scene: Scene) -> None:
    while "cured" not in scene.at:
        await scene.load.ask(CHAT_STREAM, leaving=Leaving(answer_bytes=scene.random.randint(1, 1500)))


def upstream_closed(scene: Scene) -> Iterable[str]:
    """How soon the instance's connection of a client that left was closed."""
    sent = sent_of(scene)
    gone = [(view, each) for view in scene.load.views if view.left for each in sent.get(view.request_id, ())]
    waited = sum(each.first_byte_at is None for _, each in gone)
    yield from struck(scene, gone, "client left after its request was sent on")
    took = [max(0.0, each.closed_at - view.ended_at) for view, each in gone if each.closed_at is not None]
    if not took:
        return
    scene.notes["left"] = f"{waited} before and {len(gone) - waited} after a first byte"
    scene.notes["closed upstream in, p95"] = f"{percentile(took, 0.95) * 1000:.0f} ms"
    if not scene.short and percentile(took, 0.95) > CLOSE_SECONDS:
        yield f"connections of clients that left were closed in {percentile(took, 0.95):.2f} s at p95"


# -- 29: slow readers


async def read_slowly(scene: Scene) -> None:
    """Long streams for clients that read 4 KB a second, until the cure."""
    tokens = 300 if scene.short else 3000
    for _ in range(_SLOW_READERS):
        client = scene.load.client(
            pace=lambda: None if "upstream done" in scene.at else _SLOW_BYTES_PER_SECOND
        )
        view, request = scene.load.prepare(GENERATE, tokens=tokens)
        scene.counts[view.request_id] = 1
        scene.begin(_ask_apart(scene, view, request, client))


async def _ask_apart(scene: Scene, view: View, request: bytes, client: Client | None = None) -> None:
    own = client or scene.load.client()
    await own.ask(view, request)
    await own.close()


async def wait_for_upstream(scene: Scene) -> None:
    """The instances must be done with those streams while their clients still read."""

    def done() -> bool:
        sent = sent_of(scene)
        return all(each.complete_at for request in scene.counts for each in sent.get(request, [_UNSENT]))

    if not await until(done, seconds=_UPSTREAM_SECONDS):
        scene.found.append("streams were not read to their end for slow readers")
    scene.mark("upstream done")


def slow_ones_were_slow(scene: Scene) -> Iterable[str]:
    sent = sent_of(scene)
    slow = [view for view in scene.load.views if view.request_id in scene.counts]
    late = [
        view.ended_at - each.complete_at
        for view in slow
        for each in sent.get(view.request_id, ())
        if each.complete_at is not None
    ]
    yield from struck(scene, late, "slow reader had an answer")
    if late and min(late) <= 0:
        yield "a slow reader was done before the instance"
    others = [view for view in scene.load.views if view.request_id not in scene.counts]
    before = [view.ended_at - view.sent_at for view in others if view.ended_at < scene.at["injected"]]
    during = [view.ended_at - view.sent_at for view in others if scene.during_fault(view)]
    if before and during and late:
        scene.notes["slots freed before the reader was done, at least"] = f"{min(late):.1f} s"
        scene.notes["p99 of others before and during"] = (
            f"{percentile(before, 0.99):.2f} s, {percentile(during, 0.99):.2f} s"
        )


# -- 30 and 31: many at once


async def herd(scene: Scene) -> None:
    """Very many connections at the same moment, each with a request."""
    count = 200 if scene.short else 2000
    await asyncio.gather(*(scene.load.ask(CHAT_UNARY, tokens=2) for _ in range(count)))


def dropped_connections(port: int) -> int | None:
    """Connection attempts that the listener on a port has dropped; None where this machine cannot tell.

    Source: ss(8), the last field of skmem.
    """
    ss = shutil.which("ss")
    if ss is None:
        return None
    told = subprocess.run([ss, "-ltnmH", f"sport = :{port}"], capture_output=True, text=True, check=True)
    found = re.search(r"skmem:\(.*,d(\d+)\)", told.stdout)
    return int(found.group(1)) if found else None


def is_asked_to_come_again(_scene: Scene, view: View) -> bool:
    return view.seen is Seen.TOLD and view.status == 503 and "retry-after" in view.headers


def herd_was_spread(scene: Scene) -> Iterable[str]:
    told = [int(view.headers["retry-after"]) for view in scene.load.views if "retry-after" in view.headers]
    if told:
        scene.notes["turned away"] = f"{len(told)}, with Retry-After of {min(told)} to {max(told)} s"
    yield from struck(scene, told, "request was turned away")
    dropped = dropped_connections(scene.fleet.balancer.port)
    scene.notes["connection attempts dropped"] = "not known" if dropped is None else str(dropped)
    if dropped and not scene.short:
        yield f"{dropped} connection attempts were dropped"


async def all_want_one_model(scene: Scene) -> None:
    """Hundreds of requests for a model that is loaded nowhere; the first tenth leaves while it loads."""
    for each in scene.fleet.instances:
        state = await each.state()
        scene.counts[each.name] = state["loads"] + state["load_aborts"]
    count = 60 if scene.short else 500
    leaving = Leaving(seconds=scene.served.load_seconds / 3)
    for place in range(count):
        gone = leaving if place < count // 10 else None
        scene.begin(scene.load.ask(CHAT_UNARY, model=COLD, tokens=2, leaving=gone))
        if place == count // 10:
            await asyncio.sleep(0.02)


async def count_loads(scene: Scene) -> None:
    """What the balancer asked for and what the instances did: no client's request carries a load."""
    for each in scene.fleet.instances:
        state = await each.state()
        loads = state["loads"] + state["load_aborts"] - scene.counts[each.name]
        asked = sum(sent.loads == COLD for sent in each.passthrough.loads)
        if loads > 1 or asked > 1:
            scene.found.append(f"{asked} loads of one model were asked of {each.name}, and {loads} begun")
        if loads != asked:
            scene.found.append(f"{each.name} began {loads} loads, and was asked for {asked}")


# -- 32: the operator stops it


def grace_seconds(scene: Scene) -> float:
    """How long answers under way may go on."""
    return float(scene.fleet.settings["limits"]["stop_seconds"])


async def terminate(scene: Scene) -> None:
    """SIGTERM with streams under way: those of the load are short, these are not."""
    grace = grace_seconds(scene)
    tokens = int(scene.served.decode_rate * 60)
    long = [scene.load.prepare(GENERATE, tokens=tokens) for _ in range(_SLOW_READERS)]
    for view, request in long:
        scene.counts[view.request_id] = 1
        scene.begin(_ask_apart(scene, view, request))
    if not await until(lambda: all(view.body for view, _ in long)):
        scene.found.append("no stream began")
    scene.mark("terminated")
    scene.fleet.balancer.signal(signal.SIGTERM)
    await _until_not_ready(scene)
    scene.load.stop()
    await _ask_late(scene, until_at=scene.at["terminated"] + grace - _AT_ONCE_SECONDS)
    code = await scene.fleet.balancer.exit_code(grace + _TELL_SECONDS + _SPARE_SECONDS)
    took = time.monotonic() - scene.at["terminated"]
    scene.notes["ended after"] = f"{took:.1f} s with {code}"
    if code != 0:
        scene.found.append(f"exit code {code} after SIGTERM")
    if took > grace + _TELL_SECONDS + scene.late_seconds and not scene.short:
        scene.found.append(f"it took {took:.1f} s to end, with {grace:g} s for answers under way")


async def _until_not_ready(scene: Scene) -> None:
    """Both listeners must say so at once."""
    balancer = scene.fleet.balancer
    for admin in (False, True):
        while (told := await balancer.get("/readyz", admin=admin))[0] != 503:
            took = time.monotonic() - scene.at["terminated"]
            if took > _AT_ONCE_SECONDS + scene.late_seconds:
                where = "the admin listener" if admin else "the clients' listener"
                scene.found.append(f"/readyz of {where} is {told} {took:.1f} s after SIGTERM")
                break
    scene.notes["not ready after"] = f"{(time.monotonic() - scene.at['terminated']) * 1000:.0f} ms"


async def _ask_late(scene: Scene, *, until_at: float) -> None:
    """New connections are taken to the end of the grace, and their requests turned away in words."""
    late: list[View] = []
    while time.monotonic() < until_at:
        late.append(await scene.load.ask(CHAT_UNARY))
        await asyncio.sleep(_LATE_PAUSE_SECONDS)
    scene.notes["turned away while it stops"] = str(len(late))
    scene.found += struck(scene, late, "request came while it stopped")
    scene.found += [
        f"a request while it stops saw '{view.seen}' {view.status}"
        for view in late
        if view.seen is not Seen.TOLD or view.status != 503
    ]


async def signal_twice(scene: Scene) -> None:
    """Another balancer, with streams under way, is told twice."""
    fleet, grace = scene.fleet, grace_seconds(scene)
    other = BalancerProcess(fleet.balancer.config.parent, fleet.settings, fleet.balancer.session)
    try:
        await other.opened()
        await other.until_ready_is(200)
        load = Load(other.port, name="again", seed=2, patience_seconds=grace + _SPARE_SECONDS)
        scene.aside.append(load)
        streams = [asyncio.create_task(load.ask(GENERATE, tokens=5000)) for _ in range(_SLOW_READERS)]
        if not await until(lambda: load.views and all(view.body for view in load.views)):
            scene.found.append("no stream began")
        other.signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        other.signal(signal.SIGTERM)
        code = await other.exit_code(grace / 2)
        if code != 1:
            scene.found.append(f"exit code {code} after a second SIGTERM")
        await asyncio.gather(*streams)
    finally:
        await other.end()


def is_stopped(scene: Scene, view: View) -> bool:
    """Long streams are told; who waits or comes late is turned away, and its connection ended."""
    if view.seen is Seen.BROKEN:
        return view.request_id in scene.counts
    closed = view.headers.get("connection", "").casefold() == "close"
    return closed and is_asked_to_come_again(scene, view) and view.ended_at >= scene.at["terminated"]


def long_ones_were_told(scene: Scene) -> Iterable[str]:
    long = [view for view in scene.load.views if view.request_id in scene.counts]
    if any(view.seen is not Seen.BROKEN for view in long):
        yield f"long streams ended otherwise than by an error record: {[str(view.seen) for view in long]}"
    early = [view for view in long if view.ended_at < scene.at["terminated"] + grace_seconds(scene)]
    if early:
        yield f"{len(early)} streams were ended before their time was up"


CLIENT_ROWS = (
    Row(key="28", fault="clients leave at every stage", requires="closed upstream within 500 ms",
        inject=leave_at_every_stage, check=upstream_closed, served={"load_seconds": 0.4}),
    Row(key="29", fault="readers of 4 KB/s on fast streams", requires="read to the end upstream, slot freed",
        inject=read_slowly, cure=wait_for_upstream, check=slow_ones_were_slow, served={"decode_rate": 150.0},
        clients_share=0.25),
    Row(key="30", fault="2,000 connections at once, twice", requires="none dropped; 503 with Retry-After",
        inject=herd, cure=herd, check=herd_was_spread, allows=is_asked_to_come_again,
        short_settings={"limits": {"queue_requests": 60}}),
    Row(key="31", fault="500 requests for one cold model, a tenth leaves", requires="one load an instance",
        inject=all_want_one_model, after=count_loads, served={"load_seconds": 0.5}),
    Row(key="32", fault="SIGTERM with streams under way, then twice",
        requires="short ones whole, long ones told, new ones told 503",
        inject=terminate, cure=signal_twice, check=long_ones_were_told, allows=is_stopped,
        settings={"limits": {"stop_seconds": 5.0}}, short_settings={"limits": {"stop_seconds": 2.0}},
        ends_balancer=True),
)  # fmt: skip
