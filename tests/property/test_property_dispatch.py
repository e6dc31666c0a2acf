"""Dispatch under any order of events: what must hold after each of them, whatever came before."""

import asyncio
from collections.abc import Callable
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from balancer.core.decision import Decision
from balancer.core.ticket import InstanceId, Lease, Outcome, Ticket, Verdict
from balancer.errors import DeadlinePassed, NoInstance, QueueFull, UnknownModel
from balancer.settings import Strategy
from tests.unit.unit_support import House, LoopClock, VirtualLoop, house, instance, ticket

MODELS = ("m", "n")
LIMIT = 6


class DispatchMachine(RuleBasedStateMachine):
    """Three instances, two models; requests come, end, fail, leave and run late while instances
    drain, die and come back."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.clock = LoopClock(self.loop)
        self.waits: dict[str, tuple[Ticket, asyncio.Task[Lease]]] = {}
        self.held: dict[int, Lease] = {}
        self.left: set[str] = set()
        self.answered: list[str] = []
        self.taken = self.released = self.arrivals = 0
        self.it: House

    @initialize(
        strategy=st.sampled_from([each.value for each in Strategy]),
        slots=st.lists(st.integers(1, 2), min_size=3, max_size=3),
        caps=st.lists(st.none() | st.integers(1, 2), min_size=3, max_size=3),
        holding=st.lists(st.sampled_from([MODELS, ("m",), ("n",)]), min_size=3, max_size=3),
    )
    def build(
        self, strategy: str, slots: list[int], caps: list[int | None], holding: list[tuple[str, ...]]
    ) -> None:
        instances = [
            instance(name, models=holding[index], slots=slots[index], max_concurrent_requests=caps[index])
            for index, name in enumerate("abc")
        ]
        self.it = house(self.clock, *instances, limit=LIMIT, strategy=strategy, watch=self.check_pick)

    def teardown(self) -> None:
        try:
            self.end()
        finally:
            self.loop.close()

    def end(self) -> None:
        self.run(*(partial(self.leave_by_name, name) for name in self.waits))
        self.run(*(partial(self.give_back, lease, Verdict.SUCCESS) for lease in self.held.values()))
        assert self.taken == self.released
        assert self.it.dispatcher.leases == ()
        assert [each.running for each in self.it.fleet.instances()] == [0, 0, 0]
        assert (len(self.it.queue), self.it.dispatcher._waiters) == (0, {})

    def run(self, *events: Callable[[], object]) -> None:
        """Let things happen and every task go on, without letting time pass; take over what was answered."""

        async def turns() -> None:
            for event in events:
                event()
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        for name, (asked, task) in list(self.waits.items()):
            if task.done():
                del self.waits[name]
                self.take_over(asked, task)

    def take_over(self, asked: Ticket, task: asyncio.Task[Lease]) -> None:
        key = f"{asked.id}/{asked.attempt}"
        assert key not in self.answered, "a ticket was answered twice"
        self.answered.append(key)
        if task.cancelled():
            assert asked.id in self.left
            return
        error = task.exception()
        if error is not None:
            assert isinstance(error, QueueFull | NoInstance | UnknownModel | DeadlinePassed)
            if isinstance(error, DeadlinePassed):
                assert asked.deadline <= self.clock.monotonic()
            return
        lease = task.result()
        assert asked == lease.ticket
        self.taken += 1
        self.held[lease.id] = lease

    def check_pick(self, decision: Decision) -> None:
        """At the moment of the pick, before its slot is taken."""
        if decision.picked is None:
            return
        asked, where = decision.ticket, self.it.fleet.get(decision.picked)
        assert asked.variant is not None
        assert where.id not in asked.excluded
        assert where.usable
        assert not where.drained
        assert where.holds(asked.variant.model)
        assert where.has_free_slot(asked.variant)

    def send(self, asked: Ticket) -> None:
        self.waits[asked.id] = (asked, self.loop.create_task(self.it.dispatcher.acquire(asked)))

    def give_back(self, lease: Lease, verdict: Verdict) -> None:
        self.it.dispatcher.release(lease, Outcome(verdict=verdict, kind="x"))
        del self.held[lease.id]
        self.released += 1

    def leave_by_name(self, name: str) -> None:
        asked, task = self.waits[name]
        self.left.add(asked.id)
        task.cancel()

    @rule(
        model=st.sampled_from(MODELS),
        patience=st.integers(1, 60),
        excluded=st.sets(st.sampled_from("abc"), max_size=1),
    )
    def arrive(self, model: str, patience: int, excluded: set[str]) -> None:
        self.arrivals += 1
        now = self.clock.monotonic()
        asked = ticket(
            f"t{self.arrivals}",
            model=model,
            arrival=self.arrivals,
            queued_at=now,
            deadline=now + patience,
            excluded=frozenset(map(InstanceId, excluded)),
        )
        self.run(lambda: self.send(asked))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), verdict=st.sampled_from(list(Verdict)))
    def finish(self, data: st.DataObject, verdict: Verdict) -> None:
        lease = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        self.run(lambda: self.give_back(lease, verdict))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), refused=st.booleans())
    def fail(self, data: st.DataObject, refused: bool) -> None:
        lease = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        where = self.it.fleet.get(lease.instance)
        self.run(
            lambda: self.give_back(lease, Verdict.FAILURE),
            lambda: refused and self.it.fleet.failed(where, "x", refused=True, incarnation=lease.incarnation),
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
        lease = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        events = [lambda: self.leave_by_name(name), lambda: self.give_back(lease, Verdict.SUCCESS)]
        self.run(*(events if leaves_first else reversed(events)))

    @rule(name=st.sampled_from("abc"), drained=st.booleans())
    def drain(self, name: str, drained: bool) -> None:
        self.run(lambda: self.it.fleet.drain(self.it.fleet.get(InstanceId(name)), drained=drained))

    @rule(name=st.sampled_from("abc"), refused=st.booleans(), late=st.booleans())
    def go_down(self, name: str, refused: bool, late: bool) -> None:
        where = self.it.fleet.get(InstanceId(name))
        before = (where.usable, where.suspect, where.incarnation)
        incarnation = where.incarnation - late
        self.run(lambda: self.it.fleet.failed(where, "x", refused=refused, incarnation=incarnation))
        assert not late or before == (where.usable, where.suspect, where.incarnation)

    @rule(name=st.sampled_from("abc"))
    def come_up(self, name: str) -> None:
        where = self.it.fleet.get(InstanceId(name))
        self.run(
            *[lambda: self.it.fleet.probe_succeeded(where, version="1", incarnation=where.incarnation)] * 2
        )
        assert where.usable

    @rule(seconds=st.integers(1, 70))
    def let_time_pass(self, seconds: int) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.run()

    @invariant()
    def slots_and_caps_are_kept(self) -> None:
        for each in self.it.fleet.instances():
            cap = each.spec.max_concurrent_requests
            assert 0 <= each.running <= (cap or 1000)
            mine = [lease for lease in self.it.dispatcher.leases if lease.instance == each.id]
            assert each.running == len(mine)
            for model in MODELS:
                running = each.running_of(ticket(model=model).variant.model)  # type: ignore[union-attr]
                assert running <= (each.spec.slots or 1)

    @invariant()
    def nobody_waits_while_a_slot_that_fits_is_free(self) -> None:
        for asked, _ in self.waits.values():
            assert asked.variant is not None
            able = [
                each
                for each in self.it.fleet.instances()
                if each.usable
                and not each.drained
                and each.id not in asked.excluded
                and each.holds(asked.variant.model)
            ]
            assert able, f"{asked.id} waits for nobody"
            assert not any(each.has_free_slot(asked.variant) for each in able)

    @invariant()
    def who_came_first_is_served_first(self) -> None:
        for asked, _ in self.waits.values():
            later = [
                lease.ticket.arrival
                for lease in self.held.values()
                if lease.ticket.variant == asked.variant
                and lease.ticket.excluded == asked.excluded
                and lease.ticket.arrival > asked.arrival
                and lease.leased_at > asked.queued_at
            ]
            assert asked.attempt > 1 or later == []

    @invariant()
    def nobody_waits_beyond_the_deadline_or_the_limit(self) -> None:
        now = self.clock.monotonic()
        assert all(asked.deadline > now for asked, _ in self.waits.values())
        assert sum(1 for asked, _ in self.waits.values() if asked.attempt == 1) <= LIMIT


DispatchMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestDispatch = DispatchMachine.TestCase
