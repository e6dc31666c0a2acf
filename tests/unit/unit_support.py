"""Factories and fakes of the unit and property tests: time, instances, tickets, recorded answers."""

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast

from balancer.admission.overload import WaitLimits
from balancer.admission.queue import RequestQueue
from balancer.core.decision import Decision
from balancer.core.ejection import Ejection
from balancer.core.names import ModelName, canonical_name
from balancer.core.scores import Candidate
from balancer.core.ticket import ClientId, InstanceId, Lease, Outcome, Priority, Ticket, TicketId, Verdict
from balancer.core.variant import Variant
from balancer.dispatch import Dispatcher
from balancer.fleet.breaker import BreakerPolicy, Breakers
from balancer.fleet.fleet import Fleet, Load
from balancer.fleet.health import Health, HealthPolicy
from balancer.fleet.instance import Instance
from balancer.fleet.instance_spec import InstanceSpec
from balancer.fleet.learned import Learned
from balancer.protocol.endings import Tail
from balancer.scheduling.scheduler import Scheduler
from balancer.scheduling.strategies import STRATEGIES, Shelf

RECORDINGS = Path(__file__).parents[1] / "recordings" / "exchanges.jsonl"
OK = Outcome(verdict=Verdict.SUCCESS, kind="ok")


@dataclass
class FakeClock:
    """Time that stands still until it is told to pass."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer as soon as nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        timers = [each for each in self._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
        if not self._ready and timers:  # type: ignore[attr-defined]
            self.now = max(self.now, min(each.when() for each in timers))
        super()._run_once()  # type: ignore[misc]


@dataclass
class LoopClock:
    """The time of a loop as a Clock."""

    loop: asyncio.AbstractEventLoop

    def monotonic(self) -> float:
        return self.loop.time()

    def wall(self) -> float:
        return self.loop.time()


def run_virtually(main: Callable[[LoopClock], Coroutine[Any, Any, None]]) -> None:
    """Run a test body in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = cast("VirtualLoop", runner.get_loop())
        runner.run(asyncio.wait_for(main(LoopClock(loop)), 1e6))


@dataclass(eq=False)
class FakeView:
    """An instance as scheduling sees it, with every answer settable."""

    id: InstanceId
    weight: float = 1.0
    usable: bool = True
    suspect: bool = False
    drained: bool = False
    held_until: float = float("-inf")
    health_score: float = 1.0
    ejection: Ejection | None = None
    starts_slowly_until: float | None = None
    running: int = 0
    models: frozenset[str] = frozenset({"m:latest"})
    reserved_for: frozenset[str] = frozenset()
    free: bool = True
    resident: bool = True
    loading: Variant | None = None
    load_overdue_at: float = float("inf")
    unproven: bool = False
    reopens_at: float | None = None
    trials_left: bool = True
    paused: float | None = None
    no_room: float | None = None
    gated: float | None = None
    unserved: frozenset[str] = frozenset()
    spare: bool = False
    small: bool = True
    others_at_work: int = 0
    load: float = 1.5
    spared: float = float("inf")
    learned: Learned = field(default_factory=lambda: Learned("http://view"))

    def settled(self, now: float) -> bool:
        return False  # so that each filter is asked

    def candidate(self, variant: Variant | None) -> Candidate:
        if variant is None:
            return Candidate(self.id, self.weight, self.health_score, self.running)
        return Candidate(
            id=self.id,
            weight=self.weight,
            health=self.health_score,
            running=self.running,
            running_of_model=self.running,
            slots=1,
            warm=self.resident,
            load_seconds=0.0 if self.resident else self.load,
            sharing=1 + self.others_at_work,
            rates=self.learned.rates(variant.model),
            answer_tokens=self.learned.output_tokens(variant.model),
        )

    def load_seconds(self, variant: Variant) -> float:
        return self.load

    def spared_until(self, now: float) -> float:
        return self.spared

    def slow_start_until(self, variant: Variant, now: float) -> float | None:
        return self.starts_slowly_until

    def small_enough(self, model: ModelName) -> bool:
        return self.small

    def breaker_reopens_at(self, variant: Variant, now: float) -> float | None:
        return self.reopens_at

    def breaker_allows(self, variant: Variant, now: float) -> bool:
        return self.trials_left

    def paused_until(self, now: float) -> float | None:
        return self.paused

    def no_room_until(self, variant: Variant, now: float) -> float | None:
        return self.no_room

    def gated_until(self, variant: Variant, now: float) -> float | None:
        return self.gated

    def warm(self, variant: Variant) -> bool:
        return self.resident

    def holds(self, model: ModelName) -> bool:
        return model in self.models

    def serves(self, path: str) -> bool:
        return path not in self.unserved

    def meant_for(self, model: ModelName) -> bool:
        return not self.reserved_for or model in self.reserved_for

    def has_free_slot(self, variant: Variant) -> bool:
        return self.free


@dataclass
class FakeFleet:
    """Instances in a fixed order."""

    views: Sequence[FakeView]

    def instances(self) -> Sequence[FakeView]:
        return self.views

    def holding(self, model: ModelName) -> Sequence[FakeView]:
        return [each for each in self.views if each.holds(model)]


def view(name: str, **facts: Any) -> FakeView:
    return FakeView(InstanceId(name), **facts)


def seen(views: Iterable[FakeView], asked: Ticket | None = None) -> list[Candidate]:
    """As candidates for a ticket, for one of model `m` unless told."""
    variant = (asked or ticket()).variant
    return [each.candidate(variant) for each in views]


def ticket(name: str = "t", **facts: Any) -> Ticket:
    """A ticket for model `m`; `model=None` names none."""
    model = facts.pop("model", "m")
    variant = None if model is None else Variant(canonical_name(model))
    values: dict[str, Any] = {
        "variant": variant,
        "arrival": 1,
        "client": ClientId("c"),
        "priority": Priority.NORMAL,
        "needs_slot": model is not None,
        "queued_at": 1000.0,
        "deadline": 1300.0,
    }
    return Ticket(id=TicketId(name), **{**values, **facts})


def instance(
    name: str,
    *,
    up: bool = True,
    models: Iterable[str] | None = ("m"),
    thresholds: tuple[int, int] = (3, 2),
    cold: bool = False,
    breaker: BreakerPolicy | None = None,
    **spec: Any,
) -> Instance:
    """An instance that answers and lists the models, on its disk and unless it is `cold` in memory;
    `models=None`: its lists were never read."""
    made = Instance(
        InstanceSpec(id=InstanceId(name), url=f"http://{name}:11434", **spec),
        Health(HealthPolicy(unhealthy_threshold=thresholds[0], healthy_threshold=thresholds[1])),
        Breakers(breaker or BreakerPolicy()),
    )
    if up:
        made.health.succeeded(0.0)
    else:
        made.health.failed("not up yet", 0.0, refused=False)
    if models is not None:
        rows = [{"name": each} for each in models]
        made.read_inventory(models=rows, runners=() if cold else rows, slots={}, at=0.0)
    return made


@dataclass
class House:
    """A dispatcher over a real fleet, queue and scheduler."""

    fleet: Fleet
    queue: RequestQueue
    dispatcher: Dispatcher
    decisions: list[Decision] = field(default_factory=list)
    loads: list[tuple[Instance, Load]] = field(default_factory=list)
    crowded: set[InstanceId] = field(default_factory=set)
    """Those without room for a load."""


NO_WAIT_LIMITS = WaitLimits(longest=float("inf"))


def house(
    clock: Any,
    *instances: Instance,
    limit: int = 1000,
    strategy: str = "least_connections",
    watch: Callable[[Decision], None] = lambda _: None,
    shelf: Shelf = STRATEGIES,
    wait_limits: WaitLimits = NO_WAIT_LIMITS,
) -> House:
    fleet = Fleet(instances, clock=clock)
    loads: list[tuple[Instance, Load]] = []
    crowded: set[InstanceId] = set()
    queue = RequestQueue(limit=limit)
    decisions: list[Decision] = []

    def decided(decision: Decision) -> None:
        decisions.append(decision)
        watch(decision)

    def load(where: Instance, variant: Variant) -> bool:
        if where.id in crowded:
            fleet.no_room(where, variant, among=fleet.instances())
            return False
        loads.append((where, fleet.load_began(where, variant, patience_seconds=60.0)))
        return True

    dispatcher = Dispatcher(
        fleet=fleet,
        queue=queue,
        scheduler=Scheduler(fleet, strategy=strategy, random=Random(1), shelf=shelf),
        clock=clock,
        load=load,
        wait_limits=wait_limits,
        on_decision=decided,
    )
    return House(fleet, queue, dispatcher, decisions, loads, crowded)


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


Wait = asyncio.Task[Lease]


async def ask(it: House, *tickets: Ticket) -> list[Wait]:
    """Let each ask for a slot, in this order."""
    waits = [asyncio.create_task(it.dispatcher.acquire(each)) for each in tickets]
    await settle()
    return waits


async def leave(*waits: Wait) -> None:
    """Nobody waits any more."""
    for each in waits:
        each.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


def fed(body: bytes, *, size: int | None = None) -> Tail:
    """The tail of a body that came in chunks of that size, in one by default."""
    tail = Tail()
    step = size or max(1, len(body))
    for begin in range(0, len(body), step):
        tail.feed(body[begin : begin + step])
    return tail


@dataclass(frozen=True)
class Recorded:
    """One recorded exchange, its bodies joined."""

    name: str
    method: str
    path: str
    request_body: bytes
    status: int
    content_type: str
    body: bytes


def recordings() -> list[Recorded]:
    return [_recorded(json.loads(line)) for line in RECORDINGS.read_bytes().splitlines()]


def _recorded(line: dict[str, Any]) -> Recorded:
    request, response = line["request"], line["response"]
    types = [value for key, value in response["headers"] if key.casefold() == "content-type"]
    return Recorded(
        name=line["name"],
        method=request["method"],
        path=request["path"].partition("?")[0],
        request_body=_bytes(request["body"]),
        status=response["status"],
        content_type=types[0].partition(";")[0] if types else "",
        body=b"".join(_bytes(chunk) for chunk in response["chunks"]),
    )


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])
