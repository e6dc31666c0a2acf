"""One soak: echoing instances, the balancer in a process of its own, traffic for some time, the reckoning."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression
from typing import Any

import aiohttp

from tests.faults.client import Seen
from tests.faults.fleet import ROOT, SETTINGS, BalancerProcess, environment, merged, until
from tests.faults.ledger import against_log
from tests.soak.traffic import Tally, Traffic
from tests.soak.watched import INSIDE_FILE

_SLOTS = 8
_WARM_SHARE, _WARM_SECONDS = 1 / 3, 120.0
_SAMPLES = 200
_SETTLE_SECONDS = 20.0
_LOOK_SECONDS = 0.05
_MIB = 1 << 20
_SHOWN = 50
_BASE_SAMPLES = 10
_BASE_PAUSE_SECONDS = 0.13
_DEFECTS = ("request_failed", "probe_failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the balancer's process holds at a time, in seconds since the begin. `blocks` are those that
    Python has allocated: they tell of a leak what the memory, which bursts raise for good, does not."""

    seconds: float
    memory_bytes: int
    blocks: int
    descriptors: int
    tasks: int
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Soaked:
    """What came of a soak. `base` was sampled before, `rest` when everything had settled."""

    tally: Tally
    base: Sample
    samples: Sequence[Sample]
    rest: Sample
    violations: Sequence[str]
    seconds: float
    retried: int

    @property
    def warm(self) -> Sequence[Sample]:
        """The samples behind the warm-up: what is kept for a time is let go of as fast as it comes."""
        begin = min(_WARM_SECONDS, self.seconds * _WARM_SHARE)
        return [each for each in self.samples if each.seconds >= begin]

    @property
    def ended_whole(self) -> int:
        """How many requests were answered in full."""
        return sum(each.seen is Seen.WHOLE for each in self.tally.ended.values())

    @property
    def growth_bytes(self) -> int:
        """By how much the memory grew from the warm-up to the end of the load, medians of ten samples."""
        return _median(self.warm[-10:]) - _median(self.warm[:10])

    @property
    def slope_mib_per_minute(self) -> float:
        """How fast the memory grew behind the warm-up."""
        line = linear_regression(
            [each.seconds for each in self.warm], [each.memory_bytes for each in self.warm]
        )
        return line.slope * 60 / _MIB

    @property
    def slope_mib_per_10000(self) -> float:
        """The same for 10,000 requests."""
        line = linear_regression(
            [each.requests for each in self.warm], [each.memory_bytes for each in self.warm]
        )
        return line.slope * 10_000 / _MIB

    @property
    def blocks_per_request(self) -> float:
        """How many blocks of memory stay behind of a request, behind the warm-up."""
        line = linear_regression([each.requests for each in self.warm], [each.blocks for each in self.warm])
        return line.slope

    def lines(self) -> Iterator[str]:
        """What is to be told of it."""
        count = Counter(str(each.seen) for each in self.tally.ended.values() if each.parsed)
        hostile = sum(not each.parsed for each in self.tally.ended.values())
        yield _row("requests", f"{len(self.tally.ended)} in {self.seconds:.0f} s, {self.retried} retried")
        yield _row("ended", ", ".join(f"{n} {name}" for name, n in sorted(count.items())))
        yield _row("hostile", f"{hostile}, none served")
        yield _row("went away", ", ".join(f"{n} {name}" for name, n in sorted(self.tally.aborts.items())))
        held = ((self.base, "before"), (self.warm[0], "warm"), (self.rest, "after"))
        yield _row("memory", ", ".join(f"{at.memory_bytes / _MIB:.1f} MiB {when}" for at, when in held))
        grew, by_time, by_requests = (
            self.growth_bytes / _MIB, self.slope_mib_per_minute, self.slope_mib_per_10000
        )  # fmt: skip
        told = f"{grew:+.1f} MiB behind the warm-up, {by_time:+.2f} MiB a minute"
        yield _row("memory grew", f"{told}, {by_requests:+.2f} MiB for 10,000 requests")
        yield _row("blocks grew", f"{self.blocks_per_request:+.2f} for each request")
        for name in ("descriptors", "tasks"):
            base, rest = getattr(self.base, name), getattr(self.rest, name)
            most = max(getattr(each, name) for each in self.samples)
            yield _row(name, f"{base} before, {most} at most, {rest} after")
        yield _row("violations", str(len(self.violations)))
        yield from (f"    {each}" for each in self.violations[:_SHOWN])


def _row(name: str, told: str) -> str:
    return f"{name:16} {told}"


def _median(samples: Sequence[Sample]) -> int:
    return sorted(each.memory_bytes for each in samples)[len(samples) // 2]


async def soak(
    *,
    seconds: float,
    clients: int,
    settings: Mapping[str, Any],
    seed: int = 1,
    requests: int | None = None,
) -> Soaked:
    """Traffic for so long, or until so many requests were sent, whichever is first."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        async with _running(Path(folder), settings) as (balancer, urls):
            traffic = Traffic(balancer.port, seed=seed, requests=requests)
            await _warm_connections(balancer)
            watch = _Watch(balancer, traffic)
            base = await watch.base()
            loading = asyncio.create_task(traffic.run(clients))
            while not loading.done() and time.monotonic() < watch.began + seconds:
                await asyncio.wait([loading], timeout=max(0.1, seconds / _SAMPLES))
                watch.samples.append(await watch.sample())
            traffic.stop()
            await loading
            took = time.monotonic() - watch.began
            left = await _settled(balancer, urls, watch, base)
            rest = await watch.sample()
            retried, of_log = _against_log(traffic.tally, balancer.log)
            return Soaked(
                tally=traffic.tally,
                base=base,
                samples=watch.samples,
                rest=rest,
                violations=[*traffic.tally.violations, *of_log, *left],
                seconds=took,
                retried=retried,
            )


class _Watch:
    """Looks at the balancer's process from outside; its tasks it tells when asked by a signal."""

    def __init__(self, balancer: BalancerProcess, traffic: Traffic) -> None:
        self.began = time.monotonic()
        self.samples: list[Sample] = []
        self._balancer = balancer
        self._traffic = traffic
        self._place = balancer.config.with_name(INSIDE_FILE)

    async def sample(self) -> Sample:
        """What it holds now."""
        self._place.unlink(missing_ok=True)
        self._balancer.signal(signal.SIGUSR1)
        assert await until(self._place.exists), "the balancer does not tell its tasks"
        return Sample(
            seconds=time.monotonic() - self.began,
            memory_bytes=self._balancer.held_bytes,
            blocks=self._inside()["blocks"],
            descriptors=len(os.listdir(f"/proc/{self._balancer.process.pid}/fd")),
            tasks=sum(self.tasks_by_name().values()),
            requests=len(self._traffic.tally.ended),
        )

    async def base(self) -> Sample:
        """What it holds at rest: the least of several looks, as a probe may be under way."""
        samples = []
        for _ in range(_BASE_SAMPLES):
            samples.append(await self.sample())
            await asyncio.sleep(_BASE_PAUSE_SECONDS)
        return min(samples, key=lambda each: (each.tasks, each.descriptors))

    def tasks_by_name(self) -> dict[str, int]:
        """Its tasks when it was asked last."""
        told: dict[str, int] = self._inside()["tasks"]
        return told

    def _inside(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._place.read_text())
        return told


async def _settled(balancer: BalancerProcess, urls: Sequence[str], watch: _Watch, base: Sample) -> list[str]:
    """What is not as it was before the load, once it has had some time; idle connections are closed by the
    instances, as they are kept on purpose."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        for url in urls:
            async with balancer.session.post(f"{url}/close-idle") as response:
                await response.read()
        left = await balancer.left_over()
        now = await watch.sample()
        if now.descriptors > base.descriptors:
            left.append(f"{now.descriptors} descriptors, {base.descriptors} before")
        if now.tasks > base.tasks:
            left.append(f"{now.tasks} tasks, {base.tasks} before: {watch.tasks_by_name()}")
        if not left or time.monotonic() > deadline:
            return [f"left over: {each}" for each in left]
        await asyncio.sleep(_LOOK_SECONDS)


def _against_log(tally: Tally, log: Path) -> tuple[int, list[str]]:
    """How many requests were tried again, and what the log says otherwise than the clients."""
    events: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    wrong: list[str] = []
    retried = 0
    event: dict[str, Any]
    with log.open("rb") as lines:
        for line in lines:
            event = json.loads(line) if line.startswith(b"{") else {"event": "none"}
            if event["event"] in _DEFECTS:
                wrong.append(f"{event['event']}: {event}")
            elif event["event"] == "request_finished" and event["request_id"].startswith("soak-"):
                retried += event.get("attempts", 0) > 1
                kept = {name: event[name] for name in ("outcome", "status")}
                events[event["request_id"]].append(kept)
    for request_id, ended in tally.ended.items():
        found = events.get(request_id, [])
        told = against_log(ended.seen, ended.status, found) if ended.parsed else []
        if not ended.parsed and (len(found) > 1 or any(each["outcome"] == "ok" for each in found)):
            told = [f"hostile, and the log has {found}"]
        wrong += [f"{request_id}: {each}" for each in told]
        if ended.seen is Seen.TOLD:
            wrong.append(f"{request_id}: told {ended.status}, the log has {found}")
    wrong += [f"{each}: no client sent it" for each in events.keys() - tally.ended.keys()]
    return retried, wrong


@contextlib.asynccontextmanager
async def _running(
    folder: Path, settings: Mapping[str, Any]
) -> AsyncIterator[tuple[BalancerProcess, Sequence[str]]]:
    """A balancer that has seen its instances."""
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), trust_env=False)
        )
        echo = _start_echo()
        stack.callback(_end, echo)
        assert echo.stdout is not None
        urls: list[str] = json.loads(await asyncio.to_thread(echo.stdout.readline))
        attached = [
            {"name": f"echo-{number}", "url": url, "slots": _SLOTS} for number, url in enumerate(urls)
        ]
        whole = merged(SETTINGS, settings, {"instances": attached})
        balancer = BalancerProcess(folder, whole, session, module="tests.soak.watched")
        stack.push_async_callback(balancer.end)
        await balancer.opened()
        async with asyncio.timeout(_SETTLE_SECONDS):
            while {each["state"] for each in await balancer.instances()} != {"up"}:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)
        yield balancer, urls


def _start_echo() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.soak.echo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        cwd=ROOT,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


async def _warm_connections(balancer: BalancerProcess) -> None:
    """Everything that is opened once and kept is open before the base is taken."""
    for path in ("/readyz", "/api/tags", "/api/ps"):
        await balancer.get(path)
    await balancer.metric("balancer_retries_refused_total")
