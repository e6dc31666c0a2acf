"""What dispatch must and must not do, told anew from the state of a house, for the property tests.

Counts leases, cooling slots and trials of its own, so that a number that dispatch or an instance loses
shows. What an instance is (up, drained, gated, warm) is asked of it, also as it will be at a later time
if nothing happens until then.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from balancer.core.decision import Decision, Standing
from balancer.core.ticket import Lease, Ticket
from balancer.core.variant import Variant
from balancer.fleet.breaker import Breaker, BreakerState
from balancer.fleet.instance import Instance
from balancer.scheduling.scheduler import LoadBegun
from tests.unit.unit_support import House, LoopClock

EPSILON = 1e-6


@dataclass
class Oracle:
    """Looks at `house`, which is set later. `cooling` is written by the test, `due` and `trials` at every
    decision and look: the breakers that a lease tries, with the numbers of its trials."""

    clock: LoopClock
    house: House = field(init=False)
    cooling: list[tuple[float, Instance, str]] = field(default_factory=list)
    due: dict[tuple[str, int], list[Breaker]] = field(default_factory=dict)
    trials: dict[int, list[tuple[Breaker, int]]] = field(default_factory=dict)

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def taken(self, instance: Instance, model: str | None = None, *, at: float | None = None) -> int:
        """Slots of one model there, or of all, that are lent or cooling."""
        at = self.now if at is None else at
        lent = [lease for lease, where in self.house.dispatcher._leases.values() if where is instance]
        of = [str(lease.ticket.variant and lease.ticket.variant.model) for lease in lent]
        of += [cools for until, where, cools in self.cooling if where is instance and until > at]
        return sum(1 for each in of if model in {None, each})

    def has_slot(self, instance: Instance, variant: Variant, *, at: float) -> bool:
        cap = instance.spec.max_concurrent_requests
        within_cap = cap is None or self.taken(instance, at=at) < cap
        return within_cap and self.taken(instance, variant.model, at=at) < instance.slots(variant)

    def preferred(self, able: list[Instance], *, at: float) -> list[Instance]:
        """Those of them that are neither spared nor ejected, as far as there are any."""
        steady = _first(able, lambda each: each.held_until <= at)
        return _first(steady, lambda each: not self.left_alone(each, steady))

    def left_alone(self, instance: Instance, able: list[Instance]) -> bool:
        """Whether it is ejected, and not only slow where most of those that are able are ejected."""
        ejected = sum(each.ejection is not None for each in able)
        panic = 2 * ejected > len(able)
        return instance.ejection is not None and not (panic and instance.ejection.slow)

    def starts_slowly(self, instance: Instance, variant: Variant, *, at: float) -> bool:
        """Whether one that is back since a moment has lent as many slots as it lends by then."""
        taken, slots = self.taken(instance, variant.model, at=at), instance.slots(variant)
        return any(at < opens_at for opens_at in _openings(instance, slots)[:taken])

    def able(self, ticket: Ticket, *, at: float | None = None) -> list[Instance]:
        """Those that can take the ticket now, or after something has ended that is sure to end."""
        at = self.now if at is None else at
        return [each for each in self._fit(ticket) if each.breaker_reopens_at(_variant(ticket), at) is None]

    def free(self, ticket: Ticket, *, at: float | None = None) -> list[Instance]:
        """Those of them to one of which it must go at that time."""
        at, variant = self.now if at is None else at, _variant(ticket)
        able = self.preferred(self.able(ticket, at=at), at=at)
        free = [each for each in able if not self.held(each, variant, at=at)]
        free = _first(free, lambda each: not each.suspect)
        loading = [each for each in able if self.waited_for(each, variant, at=at)]
        begun = self.begun(ticket)
        own = [
            each
            for each in able
            if begun is not None and each.id == begun.instance
            if each in loading or (each in free and each.warm(variant))
        ]
        if begun is not None and own and at < begun.alone_until:
            return [each for each in free if each in own and each.warm(variant)]
        return [each for each in free if each.warm(variant)] if loading or own else free

    def begun(self, ticket: Ticket) -> LoadBegun | None:
        """The load that was begun for the ticket."""
        return self.house.dispatcher._loads_at.get(ticket.id)

    def waited_for(self, instance: Instance, variant: Variant, *, at: float) -> bool:
        """Whether the variant is being loaded there and may well be there soon."""
        return instance.loading == variant and not instance.suspect and at < instance.load_overdue_at

    def held(self, instance: Instance, variant: Variant, *, at: float) -> bool:
        """Whether a probe, a slot, a load, a trial, a pause or a gate has to end before it takes the
        variant."""
        return (
            instance.unproven
            or not self.has_slot(instance, variant, at=at)
            or self.starts_slowly(instance, variant, at=at)
            or not instance.breaker_allows(variant, at)
            or (not instance.warm(variant) and instance.loading is not None)
            or (not instance.warm(variant) and instance.no_room_until(variant, at) is not None)
            or instance.paused_until(at) is not None
            or instance.gated_until(variant, at) is not None
        )

    def next_wake(self, ticket: Ticket) -> float:
        """By when somebody has to look at the ticket again though nothing happens: the first time from
        which it could go somewhere."""
        variant, begun = _variant(ticket), self.begun(ticket)
        times = [until for until, _, _ in self.cooling]
        times += [begun.alone_until] if begun is not None else []
        for each in self._fit(ticket):
            ends = (
                each.breaker_reopens_at(variant, self.now),
                each.paused_until(self.now),
                each.no_room_until(variant, self.now),
                each.gated_until(variant, self.now),
            )
            times += [each.held_until, each.load_overdue_at, *(at for at in ends if at is not None)]
            times += _openings(each, each.slots(variant))
        later = sorted(at for at in set(times) if self.now < at < ticket.deadline)
        return next((at for at in later if self.free(ticket, at=at)), ticket.deadline)

    def lane_heads(self) -> list[Ticket]:
        """Who is next in each lane."""
        queue = self.house.queue
        heads = [queue.head(lane, self.now) for _, _, lane in queue.heads(self.now)]
        return [each for each in heads if each is not None]

    def check_decision(self, decision: Decision) -> None:
        """At the moment of the decision, before a slot is taken or a load begun. Whether those that wait have
        to is asked after each step."""
        if decision.standing is Standing.BUSY:
            return
        ticket, able = decision.ticket, self.able(decision.ticket)
        if decision.picked is None:
            assert able == [], f"{ticket.id} was sent away though {able[0].id} can take it"
            self._check_standing(decision)
            return
        where, variant = self.house.fleet.get(decision.picked), _variant(ticket)
        assert where.usable
        assert not where.drained
        assert where.id not in ticket.excluded
        assert where.holds(variant.model)
        assert where.breaker_reopens_at(variant, self.now) is None
        assert not self.held(where, variant, at=self.now)
        assert where in self.free(ticket)
        if decision.standing is Standing.LOAD:
            assert not where.warm(variant)
            assert where.loading is None
            steady = self.preferred(able, at=self.now)
            assert not any(self.waited_for(each, variant, at=self.now) for each in steady)
        else:
            assert decision.standing is Standing.PICKED
            assert where.warm(variant)
            self.due[ticket.id, ticket.attempt] = [
                each
                for each in _breakers(where, variant)
                if each is not None and each.state(self.now) is BreakerState.HALF_OPEN
            ]

    def check_permits(self) -> None:
        """Each half-open breaker counts the trials that are out, and never more than it may."""
        for lease, at in self.house.dispatcher._leases.values():
            self._note_trials(lease, at)
        live = {lease.id for lease in self.house.dispatcher.leases}
        self.trials = {name: tried for name, tried in self.trials.items() if name in live}
        tried = [each for of_lease in self.trials.values() for each in of_lease]
        told_apart = {(id(breaker._numbers), number) for breaker, number in tried}
        assert len(told_apart) == len(tried), "two trials at one instance have one number"
        for instance in self.instances():
            for breaker in (instance.breakers._own, *instance.breakers._pairs.values()):
                out = {number for tries, number in tried if tries is breaker}
                assert breaker._trials == out
                assert len(out) <= instance.breakers.policy.permits

    def instances(self) -> list[Instance]:
        """Those of the fleet, and those that left it with leases out."""
        left = [at for _, at in self.house.dispatcher._leases.values()]
        return list(dict.fromkeys([*self.house.fleet.instances(), *left]))

    def _note_trials(self, lease: Lease, at: Instance) -> None:
        """What was half-open when it was lent is tried by it, and nothing else."""
        if lease.id in self.trials:
            return
        due = self.due.pop((lease.ticket.id, lease.ticket.attempt))
        numbers = [each for each in (lease.trial.instance, lease.trial.model, lease.trial.variant) if each]
        assert len(numbers) == len(due), f"{lease.ticket.id} tries {numbers} of {at.id}"
        self.trials[lease.id] = list(zip(due, numbers, strict=True))

    def _check_standing(self, decision: Decision) -> None:
        """That it is held back says when the first of those that only breakers hold is to be tried."""
        reopen = [
            at
            for each in self._fit(decision.ticket)
            if (at := each.breaker_reopens_at(_variant(decision.ticket), self.now)) is not None
        ]
        if decision.standing is Standing.HELD_BACK:
            assert decision.next_wake_at == min(reopen)
        else:
            assert reopen == [] or decision.standing is Standing.EXHAUSTED

    def _fit(self, ticket: Ticket) -> list[Instance]:
        """Those that can take the ticket, or may turn out to, as far as no time has to pass."""
        return [
            each
            for each in self.house.fleet.instances()
            if (each.usable or each.unproven)
            and not each.drained
            and each.id not in ticket.excluded
            and each.holds(_variant(ticket).model)
        ]


def _breakers(where: Instance, variant: Variant) -> tuple[Breaker | None, ...]:
    """The instance's own, the model's and the variant's, as far as they are there."""
    pairs = where.breakers._pairs
    exact = None if variant.auto else pairs.get(variant)
    return (where.breakers._own, pairs.get(Variant(variant.model)), exact)


def _openings(where: Instance, slots: int) -> list[float]:
    """When it lends its second slot, its third, and so on, if it is back since a moment."""
    back_at = where.health._back_at
    if back_at == float("-inf"):
        return []
    seconds = where.health.slow_until - back_at
    return [back_at + seconds * number / slots for number in range(1, slots + 1)]


def _first(wide: list[Instance], wanted: Callable[[Instance], bool]) -> list[Instance]:
    """Those wanted, or all where none is."""
    return [each for each in wide if wanted(each)] or wide


def _variant(ticket: Ticket) -> Variant:
    assert ticket.variant is not None
    return ticket.variant
