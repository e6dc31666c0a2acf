"""The run: rounds in which every proxy has its turn, in another order each; what came of them.

Whatever is started here is ended here.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import uvloop

from tests.benchmarks.bounds import Bound, bounded
from tests.benchmarks.loads import Load, fresh_markers
from tests.benchmarks.measures import BOUND_BYTES, Found, Measure, Scale, Scene
from tests.benchmarks.processes import Cores, Failed, Meter, own_core
from tests.benchmarks.proxies import Place, Proxy, start_instance, until_ready

_QUIET_SHARE = 0.15
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done. `seed` decides the orders."""

    proxies: Sequence[Proxy]
    measures: Sequence[Measure]
    rounds: int
    scale: Scale
    seed: int
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of the balancer, beside its defaults."""


@dataclass(slots=True)
class Results:
    """What came of a run: for each measure and proxy one finding a round."""

    cores: Cores
    found: dict[tuple[str, str], list[Found]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    rounds: int = 0

    def series(self, measure: str, proxy: str, figure: str) -> list[float]:
        """A figure of every round; empty where it was not measured."""
        return [
            each.figures[figure] for each in self.found.get((measure, proxy), []) if figure in each.figures
        ]

    def drop(self, proxy: str, reason: str) -> None:
        """Forget what was found of it."""
        self.skipped[proxy] = reason
        self.found = {key: found for key, found in self.found.items() if key[1] != proxy}


def run(plan: Plan, tell: Callable[[str], None]) -> Results:
    """All rounds. A failed turn of the balancer or the relay is an error of the results and ends the run: a
    table would lie. Another proxy that fails is left out, with the reason."""
    chance = random.Random(plan.seed)
    markers = fresh_markers()
    with own_core() as cores:
        results = Results(cores)
        present = _present(plan, results)
        for number in range(plan.rounds):
            order = [each for each in present if each.name not in results.skipped]
            chance.shuffle(order)
            tell(f"round {number + 1} of {plan.rounds}: {'; '.join(each.name for each in order)}")
            # All of a turn's processes are its own: nothing idles beside the one that is measured.
            for _, grouped in groupby(plan.measures, key=lambda each: each.name if each.fresh else ""):
                measures = list(grouped)
                for proxy in order:
                    wanted = [each for each in measures if _applies(each, proxy)]
                    if wanted and proxy.name not in results.skipped:
                        _turn(_Turn(proxy, wanted, plan, cores, markers), results, tell)
                    if results.errors:
                        return results
            results.rounds += 1
    return results


@dataclass(frozen=True, slots=True)
class _Turn:
    proxy: Proxy
    measures: Sequence[Measure]
    plan: Plan
    cores: Cores
    markers: Iterator[int]


def _present(plan: Plan, results: Results) -> list[Proxy]:
    present = []
    for proxy in plan.proxies:
        if (reason := proxy.missing()) is None:
            present.append(proxy)
        else:
            results.skipped[proxy.name] = reason
    return present


def _applies(measure: Measure, proxy: Proxy) -> bool:
    return (proxy.own or not measure.own_only) and (proxy.measures is None or measure.name in proxy.measures)


def _turn(turn: _Turn, results: Results, tell: Callable[[str], None]) -> None:
    """One proxy, started, measured and ended."""
    proxy = turn.proxy
    errors: list[str] = []
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            bound: Bound | str | None = None
            if any(each.bounded for each in turn.measures):
                bound = stack.enter_context(bounded(BOUND_BYTES))
            for measure, found in uvloop.run(_measured(turn, folder, bound, stack, tell)):
                results.found.setdefault((measure.name, proxy.name), []).append(found)
                errors += [f"{measure.name} of {proxy.name}: {each}" for each in found.errors]
    except (Failed, OSError) as error:
        errors.append(f"{proxy.name}: {error}")
    if errors and proxy.foreign:
        results.drop(proxy.name, f"it failed: {errors[0]}")
        tell(f"  {proxy.name:14} is left out: {errors[0]}")
    else:
        results.errors += errors


async def _measured(
    turn: _Turn,
    folder: Path,
    bound: Bound | str | None,
    stack: contextlib.ExitStack,
    tell: Callable[[str], None],
) -> list[tuple[Measure, Found]]:
    ports = max(each.ports(turn.plan.scale) for each in turn.measures)
    instance, instance_ports = start_instance(ports, cores=turn.cores, folder=folder)
    stack.callback(instance.end)
    started = turn.proxy.start(
        Place(
            core=turn.cores.proxy,
            folder=folder,
            instance_ports=instance_ports,
            wrapper=bound.wrapper if isinstance(bound, Bound) else (),
            settings=turn.plan.settings,
        )
    )
    stack.callback(started.child.end)
    await until_ready(turn.proxy, started)
    meter = Meter(started.child, [instance], turn.cores)
    scene = Scene(
        proxy=turn.proxy,
        started=started,
        instance_port=instance_ports[0],
        load=Load(port=started.port, meter=meter, markers=turn.markers),
        markers=turn.markers,
        scale=turn.plan.scale,
        bound=bound,
    )
    measured = []
    for measure in turn.measures:
        found = await _quietest(measure, scene)
        tell(f"  {turn.proxy.name:14} {measure.name:8} {_line(found)}")
        measured.append((measure, found))
    return measured


async def _quietest(measure: Measure, scene: Scene) -> Found:
    """What was found while the rest of the machine did least; chosen by that alone, never by the result."""
    least: Found | None = None
    for _ in range(scene.scale.tries):
        await _calm(scene)
        found = await measure.run(scene)
        if least is None or found.disturbed < least.disturbed:
            least = found
        if found.errors:
            return found
        if found.disturbed <= _QUIET_SHARE:
            break
    assert least is not None
    return least


async def _calm(scene: Scene) -> None:
    """Wait for the rest of the machine to do little, but not for long."""
    for _ in range(int(scene.scale.calm_seconds / _LOOK_SECONDS)):
        scene.load.meter.start()
        await asyncio.sleep(_LOOK_SECONDS)
        if scene.load.meter.stop().others_share <= _QUIET_SHARE:
            return


def _line(found: Found) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in found.figures.items())
