"""What several rows do, and what several of them ask for afterwards."""

from __future__ import annotations

from collections.abc import Iterable

from tests.faults.fleet import until
from tests.faults.passthrough import Conduct, Sent
from tests.faults.scene import Act, Scene

_MEMORY_BYTES = 64 << 20
"""A fault that costs the balancer more is not bounded."""


def conduct(made: Conduct) -> Act:
    """Inject that conduct of the first instance's passthrough."""

    async def inject(scene: Scene) -> None:
        scene.fleet.first.passthrough.conduct = made

    return inject


async def behave(scene: Scene) -> None:
    """Cure what a passthrough or a simulator was told to do."""
    for each in scene.fleet.instances:
        each.passthrough.conduct = Conduct()
        await each.clear()


def sent_between(scene: Scene, begin: str, end: str) -> list[Sent]:
    """What the first instance was sent in that time."""
    requests = scene.fleet.first.passthrough.requests
    return [each for each in requests if scene.at[begin] <= each.at < scene.at[end]]


def loads_between(scene: Scene, begin: str, end: str) -> list[Sent]:
    """What the balancer loaded, or tried to load, at the first instance in that time."""
    return [
        each for each in scene.fleet.first.passthrough.loads if scene.at[begin] <= each.at < scene.at[end]
    ]


async def until_a_stream_runs(scene: Scene) -> None:
    """Return once the first instance is in the middle of an answer."""
    await until(lambda: any(each.body and not each.over for each in scene.fleet.first.passthrough.requests))


async def until_down(scene: Scene) -> None:
    """Let the fault last until an instance was marked down, or for long; the check tells."""
    await until(lambda: downs(scene))


async def behave_once_down(scene: Scene) -> None:
    """As `behave`, when the instance was found out."""
    await until_down(scene)
    await behave(scene)


def struck(scene: Scene, seen: object, what: str) -> list[str]:
    """A row that met nothing proves nothing."""
    return [] if seen else [f"the fault struck nothing: no {what}"]


def retried(scene: Scene) -> int:
    """How many requests took more than one try."""
    return sum(event.get("attempts", 0) > 1 for event in scene.fleet.balancer.events("request_finished"))


def downs(scene: Scene) -> int:
    """How often an instance was marked down."""
    return len(scene.fleet.balancer.events("instance_down"))


def some_retried(scene: Scene) -> Iterable[str]:
    yield from struck(scene, retried(scene), "request was retried")


def note_memory(scene: Scene) -> None:
    """Remember how much the balancer held before the fault."""
    scene.counts["memory"] = scene.fleet.balancer.peak_bytes


def memory_is_bounded(scene: Scene) -> Iterable[str]:
    grown = scene.fleet.balancer.peak_bytes - scene.counts["memory"]
    scene.notes["memory grew by"] = f"{grown / (1 << 20):.1f} MiB"
    if grown > _MEMORY_BYTES:
        yield f"the balancer's memory grew by {grown / (1 << 20):.0f} MiB"
