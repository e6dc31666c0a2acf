"""Longer runs with a fault that comes again and again: instances killed, configurations reloaded."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp

from balancer.simulator import SimulatedOllama
from tests.faults.client import Seen
from tests.faults.fleet import Served, merged, until
from tests.faults.rows_clients import leaves_sometimes, upstream_closed
from tests.faults.scene import Row, Scene
from tests.faults.talks import GENERATE

_RELOADED, _REFUSED = "config_reloaded", "config_refused"
_TAKEN_SECONDS = 1.0


async def kill_again_and_again(scene: Scene) -> None:
    """Any of them, every 5 s, gone for 3 s; quicker in a short run."""

    async def kill() -> None:
        cycle, gone = (1.6, 0.6) if scene.short else (5.0, 3.0)
        while "cured" not in scene.at:
            due = time.monotonic() + cycle
            victim = scene.random.choice(scene.fleet.instances)
            await victim.kill()
            scene.counts["kills"] = scene.counts.get("kills", 0) + 1
            await asyncio.sleep(gone)
            await victim.start()
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    scene.begin(kill())


def closed_and_killed(scene: Scene) -> Iterable[str]:
    scene.notes["kills"] = str(scene.counts["kills"])
    yield from upstream_closed(scene)


# -- reloads


def _bad_files(good: Mapping[str, Any]) -> list[str]:
    """Configurations that must be refused whole."""
    instances = list(good["instances"])

    def changed(**more: Any) -> str:
        return json.dumps(merged(good, more))

    return [
        json.dumps(good)[: len(json.dumps(good)) // 2],
        "instances: [\n",
        changed(unheard_of=1),
        changed(strategy="by_the_moon"),
        changed(instances=[*instances, instances[0]]),
        changed(instances=[*instances, {"url": "http://127.0.0.1:70000"}]),
        changed(instances=[*instances, {"url": "ftp://somewhere"}]),
        changed(health={"interval_seconds": "soon"}),
        changed(limits={"queue_requests": -1}),
        "just some words\n",
    ]


async def reload_again_and_again(scene: Scene) -> None:
    """Good and bad files in turn, with long streams open."""
    streams, tokens = (3, 30) if scene.short else (20, 600)
    for _ in range(streams):
        scene.begin(_long_stream(scene, tokens))
    scene.begin(_reload_all(scene, reloads=5 if scene.short else 50, pause=0.5 if scene.short else 1.1))


async def _long_stream(scene: Scene, tokens: int) -> None:
    view = await scene.load.ask(GENERATE, tokens=tokens)
    scene.counts[view.request_id] = tokens


async def _reload_all(scene: Scene, *, reloads: int, pause: float) -> None:
    balancer, good = scene.fleet.balancer, scene.fleet.settings
    bad = _bad_files(good)
    for number in range(reloads):
        due = time.monotonic() + pause
        before = await _told(scene)
        if number % 5 == 4:
            await _reload(scene, bad[number // 5 % len(bad)], _REFUSED)
            if await _told(scene) != before:
                scene.found.append("a bad file changed what runs")
        else:
            wanted = _variation(good, number)
            await _reload(scene, json.dumps(wanted), _RELOADED)
            told = await _told(scene)
            if told[0] == before[0] or told[1:] != [
                (each["url"], each["weight"]) for each in wanted["instances"]
            ]:
                scene.found.append(f"a good file did not change what runs: {told}")
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    taken, refused = len(balancer.events(_RELOADED)), len(balancer.events(_REFUSED))
    scene.notes["reloads"] = f"{taken} taken, {refused} refused"
    if taken + refused != reloads:
        scene.found.append(f"{reloads} reloads were asked for, and {taken + refused} done")


def _variation(good: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Another good file: weights and the strategy change, and one in three leaves an instance out."""
    weights = [1.0 + (number + place) % 3 for place in range(len(good["instances"]))]
    instances = [{**each, "weight": weight} for each, weight in zip(good["instances"], weights, strict=True)]
    if number % 3 == 1:
        del instances[number % len(instances)]
    strategy = ("weighted_round_robin", "least_connections")[number % 2]
    return merged(good, {"instances": instances, "strategy": strategy})


async def _reload(scene: Scene, text: str, wanted: str) -> None:
    balancer = scene.fleet.balancer
    seen = len(balancer.events(wanted))
    balancer.write_config(text)
    balancer.signal(signal.SIGHUP)
    seconds = _TAKEN_SECONDS + scene.late_seconds
    if not await until(lambda: len(balancer.events(wanted)) > seen, seconds):
        scene.found.append(f"no {wanted} within {seconds:g} s of SIGHUP")


async def _told(scene: Scene) -> list[object]:
    """What runs, as far as it is told: the configuration's id, then the instances and their weights."""
    balancer = scene.fleet.balancer
    config = json.loads((await balancer.get("/admin/v1/config", admin=True))[1])["config"]
    return [config, *((each["url"], each["weight"]) for each in await balancer.instances())]


async def compare_with_direct(scene: Scene) -> None:
    """The long streams say what a direct request is told: answers repeat for a seed and a prompt."""
    long = [view for view in scene.load.views if view.request_id in scene.counts]
    quick = Served(seed=scene.served.seed, decode_rate=1e6, prefill_rate=1e6, load_seconds=0.0)
    async with (
        SimulatedOllama(quick.config("direct")).running() as server,
        aiohttp.ClientSession() as session,
    ):
        for view in long:
            asked = GENERATE.ask(f"{view.marker} tell me something", scene.counts[view.request_id])
            async with session.post(f"{server.url}/api/generate", json=asked) as response:
                direct = GENERATE.text(await response.read())
            if view.seen is not Seen.WHOLE or GENERATE.text(bytes(view.body)) != direct:
                scene.found.append(f"{view.request_id}: not what a direct request is told")
    scene.notes["streams compared"] = str(len(long))


RUNS = (
    Row(key="killed", fault="kill -9 of an instance every 5 s, back after 3 s; one client in ten leaves",
        requires="nothing lost; closed upstream within 500 ms", inject=kill_again_and_again,
        check=closed_and_killed, permits=frozenset({Seen.BROKEN}), leaving=leaves_sometimes, span=(0.0, 1.0),
        short_seconds=5.0, full_seconds=120.0, processes=True),
    Row(key="reloads", fault="50 reloads in 60 s, 10 of them of bad files, with 20 long streams",
        requires="none refused, none reset, bad files change nothing", inject=reload_again_and_again,
        after=compare_with_direct, span=(0.0, 1.0), served={"slots": 16, "decode_rate": 30.0}),
)  # fmt: skip
