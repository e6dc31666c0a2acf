"""What is measured of a proxy, one function each. A measure returns its figures by name; times are of the
window only, and every answer that was not whole is an error."""

from __future__ import annotations

import asyncio
import json
import math
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.bounds import Bound
from tests.benchmarks.crowd import crowd, large_bodies
from tests.benchmarks.instance import RELEASE, STATE, STOP
from tests.benchmarks.loads import Load, Window
from tests.benchmarks.proxies import SLOTS_PER_PORT, Proxy, Started
from tests.benchmarks.wire import Question

_CROWD_CLIENTS = 8
_CROWD_EVERY_SECONDS = 0.02
_IDLE_MS = 45_000
"""Longer than any measure lasts, shorter than the silence after which the balancer cuts an answer."""
_MIB = 1 << 20
BOUND_BYTES = 512 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is done."""

    connections: int = 64
    few: int = 8
    warm_seconds: float = 1.0
    seconds: float = 2.5
    streams: int = 1000
    every_ms: int = 50
    stream_seconds: float = 4.0
    idle: int = 5000
    settle_seconds: float = 1.0
    crowd: int = 200
    crowd_seconds: float = 4.0
    bounded_idle: int = 2000
    bodies: int = 500
    body_bytes: int = 8 * _MIB
    calm_seconds: float = 15.0
    """So long a measure waits at most for the rest of the machine to be quiet."""
    tries: int = 3
    """A measure that something else disturbed is taken so often at most; the quietest counts."""


FULL = Scale()
QUICK = Scale(seconds=1.5, streams=200, stream_seconds=3.0, idle=1000, crowd_seconds=3.0)
TINY = Scale(
    connections=4,
    few=2,
    warm_seconds=0.05,
    seconds=0.2,
    streams=10,
    stream_seconds=0.3,
    idle=20,
    settle_seconds=0.1,
    crowd=3,
    crowd_seconds=0.2,
    bounded_idle=5,
    bodies=3,
    body_bytes=_MIB,
    calm_seconds=0.0,
    tries=1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A proxy that runs, the instance behind it, and how to load it."""

    proxy: Proxy
    started: Started
    instance_port: int
    load: Load
    markers: Iterator[int]
    scale: Scale
    bound: Bound | str | None

    def release(self) -> None:
        """Let all streams of the instance end."""
        self._ask_instance(RELEASE)

    def stop(self) -> int:
        """Let the streams without an end stop; the number of chunks that each will have had."""
        return self._ask_instance(STOP)["chunks"]

    def connects(self) -> int:
        """How many connections the instance has had so far."""
        return self._ask_instance(STATE)["connects"]

    def _ask_instance(self, path: str) -> dict[str, int]:
        url = f"http://127.0.0.1:{self.instance_port}{path}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # none of the environment's
        with opener.open(url, timeout=30) as answer:
            told: dict[str, int] = json.load(answer)
        return told


@dataclass(frozen=True, slots=True)
class Found:
    """What a measure found. `figures` are numbers by name, `said` is for what no number tells."""

    figures: Mapping[str, float]
    errors: Sequence[str] = ()
    said: str = ""

    @property
    def disturbed(self) -> float:
        """The share of the cores that went elsewhere meanwhile; 0 where that does not matter."""
        return self.figures.get("others_share", 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One measure. Those that are not `fresh` share a process of the proxy within a round."""

    name: str
    about: Callable[[Scale], str]
    run: Callable[[Scene], Awaitable[Found]]
    at_once: Callable[[Scale], int]
    fresh: bool = False
    bounded: bool = False
    own_only: bool = False
    """Of the balancer only."""

    def ports(self, scale: Scale) -> int:
        """So many addresses the instance needs: each may be declared with a bounded number of slots."""
        return max(1, math.ceil(self.at_once(scale) / SLOTS_PER_PORT))


async def _whole(scene: Scene, connections: int) -> Found:
    scale, before = scene.scale, scene.connects()
    window = await scene.load.closed_loop(
        Question(path=scene.proxy.path),
        connections,
        warm_seconds=scale.warm_seconds,
        seconds=scale.seconds,
    )
    answers = max(1, window.tally.answers)
    figures = {
        "cpu_us": window.usage.proxy_cpu_seconds / answers * 1e6,
        "per_second": window.tally.answers / window.usage.seconds,
        "p50_ms": percentile(window.tally.latency_ns, 50) / 1e6,
        "p99_ms": percentile(window.tally.latency_ns, 99) / 1e6,
        "connects": scene.connects() - before - 1.0,  # the one that asks is the other
    }
    return _found(window, figures)


async def _streams(scene: Scene) -> Found:
    scale = scene.scale
    question = Question(path=scene.proxy.path, stream=True, chunk_bytes=40, every_ms=scale.every_ms)
    window = await scene.load.streams(
        question,
        scale.streams,
        warm_seconds=scale.warm_seconds,
        seconds=scale.stream_seconds,
        stop=scene.stop,
    )
    tally = window.tally
    figures = {
        "cpu_us": window.usage.proxy_cpu_seconds / max(1, tally.chunks) * 1e6,
        "per_second": tally.chunks / window.usage.seconds,
        "segments_per_chunk": tally.segments / max(1, tally.chunks),
        "delay_p50_ms": percentile(tally.delay_ns, 50) / 1e6,
        "delay_p99_ms": percentile(tally.delay_ns, 99) / 1e6,
    }
    # The kernel counts read(2) and write(2) of each process, not the recv(2) and send(2) of the foreign ones.
    if not scene.proxy.foreign and window.usage.proxy_reads:
        figures["writes_per_read"] = window.usage.proxy_writes / window.usage.proxy_reads
        figures["reads_per_chunk"] = window.usage.proxy_reads / max(1, tally.chunks)
    return _found(window, figures)


async def _memory(scene: Scene) -> Found:
    scale, child = scene.scale, scene.started.child
    before, held = child.private_bytes(), 0

    async def look() -> None:
        nonlocal held
        await asyncio.sleep(scale.settle_seconds)
        held = child.private_bytes()

    question = Question(path=scene.proxy.path, stream=True, chunks=2, every_ms=_IDLE_MS)
    tally = await scene.load.idle(question, scale.idle, during=look, release=scene.release)
    figures = {
        "kib_per_stream": (held - before) / scale.idle / 1024,
        "streams_ended": float(tally.answers),
    }
    return Found(figures, tuple(tally.errors))


async def _crowd(scene: Scene) -> Found:
    scale = scene.scale
    question = Question(path=scene.proxy.path)

    async def paced() -> Window:
        return await scene.load.paced(
            question,
            _CROWD_CLIENTS,
            pause_seconds=_CROWD_EVERY_SECONDS,
            warm_seconds=scale.warm_seconds,
            seconds=scale.crowd_seconds,
        )

    alone = await paced()
    async with crowd(scene.started.port, scale.crowd, scene.markers):
        await asyncio.sleep(scale.settle_seconds)
        among = await paced()
    p99 = [percentile(each.tally.latency_ns, 99) / 1e6 for each in (alone, among)]
    figures = {"alone_p99_ms": p99[0], "among_p99_ms": p99[1], "times": p99[1] / max(p99[0], 1e-6)}
    found = _found(among, figures)
    others = max(alone.usage.others_share, among.usage.others_share)
    return Found({**found.figures, "others_share": others}, (*alone.tally.errors, *found.errors))


async def _bounded(scene: Scene) -> Found:
    scale, child = scene.scale, scene.started.child
    question = Question(path=scene.proxy.path, stream=True, chunks=2, every_ms=_IDLE_MS)
    said: Mapping[int, int] = {}
    peak = 0

    async def send() -> None:
        nonlocal said, peak
        said = await large_bodies(
            scene.started.port, scale.bodies, scale.body_bytes, scene.markers, seconds=60.0
        )
        peak = scene.bound.peak_bytes() if isinstance(scene.bound, Bound) else child.peak_bytes()

    tally = await scene.load.idle(question, scale.bounded_idle, during=send, release=scene.release)
    lived = child.alive
    figures = {
        "survived": float(lived),
        "peak_mib": peak / _MIB,
        "answered": float(said.get(200, 0)),
        "refused": float(sum(count for status, count in said.items() if status >= 400)),
        "cut": float(said.get(0, 0)),
    }
    # What a killed proxy did not answer is no error of the benchmark, but its result.
    errors = tuple(tally.errors) if lived else ()
    return Found(figures, errors, scene.bound if isinstance(scene.bound, str) else "")


def _found(window: Window, figures: dict[str, float]) -> Found:
    usage = window.usage
    figures |= {"proxy_share": usage.proxy_share, "others_share": usage.others_share}
    errors = tuple(window.tally.errors)
    if not (window.tally.answers or window.tally.chunks):
        errors += ("nothing was answered in the measured time",)
    return Found(figures, errors)


def percentile(values: Sequence[int], percent: int) -> float:
    """The value that so many percent do not exceed; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)])


MEASURES = {
    each.name: each
    for each in (
        Measure(
            name="unary",
            about=lambda scale: f"whole answers of about 300 bytes, {scale.connections} connections",
            run=lambda scene: _whole(scene, scene.scale.connections),
            at_once=lambda scale: scale.connections,
        ),
        Measure(
            name="few",
            about=lambda scale: f"the same, {scale.few} connections",
            run=lambda scene: _whole(scene, scene.scale.few),
            at_once=lambda scale: scale.few,
        ),
        Measure(
            name="one",
            about=lambda _: "the same, one connection",
            run=lambda scene: _whole(scene, 1),
            at_once=lambda _: 1,
        ),
        Measure(
            name="streams",
            about=lambda scale: f"{scale.streams} streams, {1000 / scale.every_ms:g} chunks a second each",
            run=_streams,
            at_once=lambda scale: scale.streams,
        ),
        Measure(
            name="crowd",
            about=lambda scale: (
                f"{_CROWD_CLIENTS} clients, {1 / _CROWD_EVERY_SECONDS:g} requests a second each at most, "
                f"alone and among {scale.crowd} silent connections, {scale.crowd} slow bodies and "
                f"{scale.crowd} slow readers"
            ),
            run=_crowd,
            at_once=lambda scale: _CROWD_CLIENTS + 2 * scale.crowd,
            fresh=True,
        ),
        Measure(
            name="memory",
            about=lambda scale: f"{scale.idle} streams that have begun and say nothing",
            run=_memory,
            at_once=lambda scale: scale.idle,
            fresh=True,
        ),
        Measure(
            name="bounded",
            about=lambda scale: (
                f"{scale.bounded_idle} such streams, and {scale.bodies} bodies of "
                f"{scale.body_bytes // _MIB} MiB at once, in {BOUND_BYTES // _MIB} MiB"
            ),
            run=_bounded,
            at_once=lambda scale: scale.bounded_idle + scale.bodies,
            fresh=True,
            bounded=True,
            own_only=True,
        ),
    )
}
