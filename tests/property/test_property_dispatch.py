"""Dispatch under any order of events: what must hold after each of them, whatever came before."""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from balancer.core.ejection import Ejection
from balancer.core.names import canonical_name
from balancer.core.ticket import Blame, ClientId, InstanceId, Lease, Outcome, Priority, Ticket, Verdict
from balancer.core.variant import Variant
from balancer.errors import DeadlinePassed, NoInstance, QueueFull, UnknownModel
from balancer.fleet.breaker import BreakerPolicy
from balancer.fleet.fleet import Load
from balancer.fleet.health import Health
from balancer.fleet.instance import Instance
from balancer.scheduling.strategies import STRATEGIES
from tests.property.dispatch_oracle import EPSILON, Oracle
from tests.unit.unit_support import OK, LoopClock, VirtualLoop, house, instance, settle, ticket

MODELS = ("m", "n")
VARIANTS = (
    Variant(canonical_name("m")),
    Variant(canonical_name("n")),
    Variant("m:latest", (("num_ctx", 8),)),
)
LIMIT = 6
POLICY = BreakerPolicy(threshold=2, reset_seconds=7.0, permits=1)
OUTCOMES = {
    "ok": OK,
    "left": Outcome(verdict=Verdict.NEUTRAL, kind="cancelled"),
    "left in prefill": Outcome(verdict=Verdict.NEUTRAL, kind="cancelled", in_prefill=True),
    "fault": Outcome(verdict=Verdict.FAILURE, kind="crash"),
    "instance's fault": Outcome(verdict=Verdict.FAILURE, kind="lost", blames=Blame.INSTANCE),
    "model's fault": Outcome(verdict=Verdict.FAILURE, kind="no_model", blames=Blame.MODEL),
    "variant's fault": Outcome(verdict=Verdict.FAILURE, kind="oom", blames=Blame.VARIANT),
}
FAULTS = [name for name in OUTCOMES if "fault" in name]
LOADS = {
    "ok": OK,
    "cannot": Outcome(verdict=Verdict.FAILURE, kind="load", blames=Blame.VARIANT),
    "gone": Outcome(verdict=Verdict.FAILURE, kind="no_model", blames=Blame.MODEL),
    "lost": Outcome(verdict=Verdict.FAILURE, kind="connection_lost", blames=Blame.INSTANCE),
    "rejected": Outcome(verdict=Verdict.NEUTRAL, kind="rejected"),
    "busy": Outcome(verdict=Verdict.NEUTRAL, kind="busy"),
    "aborted": Outcome(verdict=Verdict.NEUTRAL, kind="aborted"),
}
NAMES = st.sampled_from("abc")
Task = asyncio.Task[Lease]


class DispatchMachine(RuleBasedStateMachine):
    """Three instances, two models, three variants; requests come, end, fail, leave and run late while
    instances load, drain, die, come back, leave the fleet and join it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.clock = LoopClock(self.loop)
        self.waits: dict[str, tuple[Ticket, Task]] = {}
        self.held: dict[int, tuple[Lease, Instance]] = {}
        self.left: set[str] = set()
        self.answered: list[str] = []
        self.known: list[Instance] = []
        self.oracle = Oracle(self.clock)
        self.taken = self.released = self.arrivals = 0

    @initialize(
        strategy=st.sampled_from(sorted(STRATEGIES)),
        slots=st.lists(st.integers(1, 2), min_size=3, max_size=3),
        caps=st.lists(st.none() | st.integers(1, 2), min_size=3, max_size=3),
        holding=st.lists(st.sampled_from([MODELS, ("m",), ("n",)]), min_size=3, max_size=3),
        cold=st.lists(st.booleans(), min_size=3, max_size=3),
    )
    def build(
        self,
        strategy: str,
        slots: list[int],
        caps: list[int | None],
        holding: list[tuple[str, ...]],
        cold: list[bool],
    ) -> None:
        self.known = [
            self.made(name, slots[index], caps[index], models=holding[index], cold=cold[index])
            for index, name in enumerate("abc")
        ]
        self.it = house(
            self.clock,
            *self.known,
            limit=LIMIT,
            strategy=strategy,
            watch=self.oracle.check_decision,
        )
        self.oracle.house = self.it

    def made(
        self, name: str, slots: int, cap: int | None, *, models: tuple[str, ...] = MODELS, cold: bool = True
    ) -> Instance:
        return instance(
            name, models=models, cold=cold, slots=slots, max_concurrent_requests=cap, breaker=POLICY
        )

    def teardown(self) -> None:
        try:
            if self.known:
                self.end()
        finally:
            self.loop.close()

    def end(self) -> None:
        self.run(*(partial(self.leave_by_name, name) for name in self.waits))
        self.run(*(partial(self.give_back, number, "ok") for number in self.held))
        assert self.taken == self.released
        assert self.it.dispatcher.leases == ()
        self.loop.run_until_complete(asyncio.sleep(6))
        self.it.dispatcher.wake()
        for each in self.known:
            assert (each.running, each.cooling) == (0, 0)
            for breaker in (each.breakers._own, *each.breakers._pairs.values()):
                assert breaker._trials == set()
        assert (len(self.it.queue), self.it.dispatcher._waiters, self.it.dispatcher._loads_at) == (0, {}, {})
        assert not self.it.queue.shares._present
        assert not self.it.queue.backlog.models()
        assert self.it.dispatcher.charges._charged == {}
        assert self.it.dispatcher.charges._lent_at == {}

    def run(self, *events: Callable[[], object]) -> None:
        """Let things happen and every task go on, without letting time pass; take over what was answered."""

        async def turns() -> None:
            for event in events:
                event()
            await settle()
            await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        for name, (asked, task) in list(self.waits.items()):
            if task.done():
                del self.waits[name]
                self.take_over(asked, task)

    def take_over(self, asked: Ticket, task: Task) -> None:
        key = f"{asked.id}/{asked.attempt}"
        assert key not in self.answered, "a ticket was answered twice"
        self.answered.append(key)
        if task.cancelled():
            assert asked.id in self.left
            return
        error = task.exception()
        if error is not None:
            assert isinstance(error, QueueFull | NoInstance | UnknownModel | DeadlinePassed), error
            if isinstance(error, DeadlinePassed):
                assert asked.deadline <= self.clock.monotonic()
            return
        lease = task.result()
        assert asked == lease.ticket
        self.taken += 1
        self.held[lease.id] = self.it.dispatcher._leases[lease.id]

    def send(self, asked: Ticket) -> None:
        self.waits[asked.id] = (asked, self.loop.create_task(self.it.dispatcher.acquire(asked)))

    def give_back(self, number: int, ending: str) -> None:
        lease, where = self.held.pop(number)
        outcome = OUTCOMES[ending]
        late = lease.incarnation != where.incarnation
        before = _counted(where)
        if outcome.in_prefill and not late:
            variant = lease.ticket.variant
            assert variant is not None
            until = self.clock.monotonic() + where.cooling_seconds(lease.ticket)
            self.oracle.cooling.append((until, where, variant.model))
        self.it.dispatcher.release(lease, outcome)
        self.released += 1
        assert not late or _counted(where) == before, "an earlier life changed a breaker"

    def leave_by_name(self, name: str) -> None:
        asked, task = self.waits[name]
        self.left.add(asked.id)
        task.cancel()

    def at(self, name: str) -> Instance | None:
        return self.it.fleet.get(InstanceId(name)) if name in self.it.fleet else None

    def end_load(self, where: Instance, load: Load, ending: str, resident: set[str] | None = None) -> None:
        """As the loader does: between the answer and the end the lists are read, where they can be."""
        self.it.loads.remove((where, load))
        self.it.fleet.loaded(where, load, LOADS[ending])
        if resident is not None:
            self.list_runners(where, resident)
        self.it.fleet.load_ended(where, load, LOADS[ending])

    def list_runners(
        self,
        where: Instance,
        resident: set[str],
        *,
        models: tuple[str, ...] | None = None,
        digest: str = "1",
        context: int = 4,
        age: int = 0,
    ) -> None:
        runners = [{"name": each, "digest": digest, "context_length": context} for each in sorted(resident)]
        rows = None if models is None else [{"name": each} for each in models]
        at = self.clock.monotonic() - age
        self.it.fleet.inventory_read(where, models=rows, runners=runners, slots={}, at=at)

    @rule(
        variant=st.sampled_from(VARIANTS),
        patience=st.integers(1, 90),
        excluded=st.sets(NAMES, max_size=1),
        client=st.sampled_from("xyz"),
        priority=st.sampled_from(Priority),
    )
    def arrive(
        self, variant: Variant, patience: int, excluded: set[str], client: str, priority: Priority
    ) -> None:
        self.arrivals += 1
        now = self.clock.monotonic()
        asked = ticket(
            f"t{self.arrivals}",
            variant=variant,
            arrival=self.arrivals,
            queued_at=now,
            deadline=now + patience,
            excluded=frozenset(map(InstanceId, excluded)),
            client=ClientId(client),
            priority=priority,
        )
        self.run(lambda: self.send(asked))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), ending=st.sampled_from(sorted(OUTCOMES)))
    def finish(self, data: st.DataObject, ending: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        self.run(lambda: self.give_back(number, ending))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), refused=st.booleans(), ending=st.sampled_from(FAULTS))
    def fail_and_try_again(self, data: st.DataObject, refused: bool, ending: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        lease, where = self.held[number]

        def refuse() -> None:
            if refused and self.it.fleet.find(lease) is where:
                self.it.fleet.failed(where, "x", refused=True, incarnation=lease.incarnation)

        self.run(
            refuse,
            lambda: self.give_back(number, ending),
            lambda: self.send(lease.ticket.excluding(lease.instance)),
        )

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waits)))
        self.run(lambda: self.leave_by_name(name))

    @precondition(lambda self: self.waits and self.held)
    @rule(data=st.data(), leaves_first=st.booleans())
    def leave_while_a_slot_comes_back(self, data: st.DataObject, leaves_first: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.waits)))
        number = data.draw(st.sampled_from(sorted(self.held)))
        events = [lambda: self.leave_by_name(name), lambda: self.give_back(number, "ok")]
        self.run(*(events if leaves_first else reversed(events)))

    @precondition(lambda self: self.it.loads)
    @rule(
        data=st.data(),
        ending=st.sampled_from(["ok", *sorted(LOADS)]),
        resident=st.none() | st.sets(st.sampled_from(MODELS)),
    )
    def load_ends(self, data: st.DataObject, ending: str, resident: set[str] | None) -> None:
        where, load = self.it.loads[data.draw(st.integers(0, len(self.it.loads) - 1))]
        self.run(lambda: self.end_load(where, load, ending, resident))

    @precondition(lambda self: self.it.loads)
    @rule(data=st.data(), seconds=st.integers(1, 20))
    def gate(self, data: st.DataObject, seconds: int) -> None:
        where, load = self.it.loads[data.draw(st.integers(0, len(self.it.loads) - 1))]
        gated = where.gated_until(Variant(canonical_name("other")), self.clock.monotonic())
        if gated is None:  # there is one gate for a load
            self.run(lambda: self.it.fleet.gate(where, load.variant, for_seconds=seconds))

    @rule(name=NAMES)
    def pause(self, name: str) -> None:
        if where := self.at(name):
            self.run(lambda: self.it.fleet.pause(where, for_seconds=1.0))

    @rule(name=NAMES, drained=st.booleans())
    def drain(self, name: str, drained: bool) -> None:
        if where := self.at(name):
            self.run(lambda: self.it.fleet.drain(where, drained=drained))

    @rule(name=NAMES, refused=st.booleans(), late=st.booleans())
    def go_down(self, name: str, refused: bool, late: bool) -> None:
        if not (where := self.at(name)):
            return
        before = (where.usable, where.suspect, where.incarnation)
        incarnation = where.incarnation - late
        self.run(lambda: self.it.fleet.failed(where, "x", refused=refused, incarnation=incarnation))
        assert not late or before == (where.usable, where.suspect, where.incarnation)

    @rule(name=NAMES)
    def come_up(self, name: str) -> None:
        if not (where := self.at(name)):
            return
        self.run(
            *[lambda: self.it.fleet.probe_succeeded(where, version="1", incarnation=where.incarnation)] * 2
        )
        assert where.usable

    @rule(name=NAMES, slow=st.booleans())
    def eject(self, name: str, slow: bool) -> None:
        if where := self.at(name):
            ejection = Ejection(reason="x", slow=slow, health=0.1, until=0.0)
            self.run(lambda: self.it.fleet.eject(where, ejection))

    @rule(name=NAMES)
    def readmit(self, name: str) -> None:
        if where := self.at(name):
            self.run(lambda: self.it.fleet.readmit(where))

    @rule(
        name=NAMES,
        models=st.none() | st.sampled_from([MODELS, ("m",), ("n",)]),
        resident=st.sets(st.sampled_from(MODELS)),
        digest=st.sampled_from("12"),
        context=st.sampled_from([4, 8]),
        age=st.integers(0, 2),
    )
    def read_lists(self, name: str, resident: set[str], **told: Any) -> None:
        if where := self.at(name):
            self.run(lambda: self.list_runners(where, resident, **told))

    @rule(
        fates=st.lists(
            st.sampled_from(["keep", "keep", "gone", "anew", "respecify"]), min_size=3, max_size=3
        ),
        slots=st.integers(1, 3),
        cap=st.none() | st.integers(1, 3),
        health=st.sampled_from(["up", "failed", "unproven"]),
        listed=st.booleans(),
    )
    def reload(self, fates: list[str], slots: int, cap: int | None, health: str, listed: bool) -> None:
        members = []
        for name, fate in zip("abc", fates, strict=True):
            kept = self.at(name)
            if fate == "gone" or (kept is None and fate == "keep"):
                continue
            fresh = instance(
                name,
                up=health == "up",
                models=MODELS if listed else None,
                cold=True,
                slots=slots,
                max_concurrent_requests=cap,
                breaker=POLICY,
            )
            if health == "unproven":
                fresh.health = Health(fresh.health.policy)
            if kept is None or fate == "anew":
                self.known.append(fresh)
                members.append(fresh)
                continue
            if fate == "respecify":
                kept.respecify(fresh)
            members.append(kept)
        aborted = [
            partial(self.end_load, where, load, "aborted")
            for where, load in self.it.loads
            if where not in members
        ]
        self.run(lambda: self.it.fleet.replace(members), *aborted)

    @rule(seconds=st.integers(1, 70))
    def let_time_pass(self, seconds: int) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.run()

    @precondition(lambda self: self.it.dispatcher._timer is not None)
    @rule()
    def wait_for_the_next_timer(self) -> None:
        """Until dispatch itself wants to look again, and not a moment longer."""
        timer = self.it.dispatcher._timer
        assert timer is not None
        self.loop.run_until_complete(asyncio.sleep(max(0.0, timer.when() - self.loop.time()) + EPSILON))
        self.run()

    @invariant()
    def every_slot_that_is_out_is_counted(self) -> None:
        for each in self.oracle.instances():
            out = [1 for _, at in self.it.dispatcher._leases.values() if at is each]
            assert each.running == len(out) == sum(each.running_of(canonical_name(name)) for name in MODELS)
            assert each.running + each.cooling == self.oracle.taken(each)

    @invariant()
    def nobody_waits_while_an_instance_could_take_it(self) -> None:
        for asked in self.oracle.lane_heads():
            assert self.oracle.able(asked), f"{asked.id} waits for nobody"
            free = self.oracle.free(asked)
            assert free == [], f"{asked.id} waits though {free[0].id} could take it"

    @invariant()
    def whoever_waits_is_looked_at_again_in_time(self) -> None:
        timer = self.it.dispatcher._timer
        for asked in self.oracle.lane_heads():
            assert timer is not None
            assert timer.when() <= self.oracle.next_wake(asked) + EPSILON

    @invariant()
    def one_load_at_a_time_for_an_instance(self) -> None:
        for each in self.known:
            loads = [load.variant for where, load in self.it.loads if where is each]
            assert loads == ([each.loading] if each.loading is not None else [])

    @invariant()
    def half_open_breakers_count_their_trials(self) -> None:
        self.oracle.check_permits()

    @invariant()
    def of_a_client_and_class_who_came_first_is_served_first(self) -> None:
        for asked, _ in self.waits.values():
            later = [
                lease.ticket.arrival
                for lease, _ in self.held.values()
                if lease.ticket.variant == asked.variant
                and lease.ticket.excluded == asked.excluded
                and (lease.ticket.client, lease.ticket.priority) == (asked.client, asked.priority)
                and lease.ticket.arrival > asked.arrival
                and lease.leased_at > asked.queued_at
            ]
            assert asked.attempt > 1 or later == []

    @invariant()
    def whoever_is_there_is_counted(self) -> None:
        there = Counter(asked.client for asked, _ in self.waits.values())
        there.update(lease.ticket.client for lease, _ in self.held.values())
        assert there == self.it.queue.shares._present
        assert {asked.id for asked, _ in self.waits.values()} == set(
            self.it.dispatcher.charges.expected_waits()
        )

    @invariant()
    def nobody_waits_beyond_the_deadline_or_the_limit(self) -> None:
        now = self.clock.monotonic()
        assert all(asked.deadline > now for asked, _ in self.waits.values())
        assert sum(1 for asked, _ in self.waits.values() if asked.attempt == 1) <= LIMIT


def _counted(where: Instance) -> list[tuple[object, ...]]:
    """What the breakers of an instance have counted, apart from permits."""
    own, pairs = where.breakers._own, where.breakers._pairs
    return [
        ("own", own._faults, own._open_until, *sorted(where.breakers._models_at_fault)),
        *((str(key), each._faults, each._open_until) for key, each in pairs.items()),
    ]


DispatchMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestDispatch = DispatchMachine.TestCase
