"""What dispatch must and must not do, told anew from the state of a house, for the property tests.

Counts leases, cooling slots and trials of its own, so that a number that dispatch or an instance loses
shows. What an instance is (up, drained, gated, warm) is asked of it.
"""

from dataclasses import dataclass, field

from balancer.admission.queue import Lane
from balancer.core.decision import Decision, Standing
from balancer.core.ticket import InstanceId, Lease, Ticket
from balancer.core.variant import Variant
from balancer.fleet.breaker import Breaker
from balancer.fleet.instance import Instance
from tests.unit.unit_support import House, LoopClock

EPSILON = 1e-6


@dataclass
class Oracle:
    """Looks at `house`, which is set later. `cooling` is written by the test, `trials` at every look."""

    clock: LoopClock
    house: House = field(init=False)
    cooling: list[tuple[float, Instance, str]] = field(default_factory=list)
    trials: dict[int, tuple[Breaker | None, Breaker | None]] = field(default_factory=dict)

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def taken(self, instance: Instance, model: str | None = None) -> int:
        """Slots of one model there, or of all, that are lent or cooling."""
        lent = [lease for lease, at in self.house.dispatcher._leases.values() if at is instance]
        of = [str(lease.ticket.variant and lease.ticket.variant.model) for lease in lent]
        of += [cools for until, at, cools in self.cooling if at is instance and until > self.now]
        return sum(1 for each in of if model in {None, each})

    def has_slot(self, instance: Instance, variant: Variant) -> bool:
        cap = instance.spec.max_concurrent_requests
        within_cap = cap is None or self.taken(instance) < cap
        return within_cap and self.taken(instance, variant.model) < instance.slots(variant)

    def able(self, ticket: Ticket) -> list[Instance]:
        """Those that can take the ticket now, or after something has ended that is sure to end."""
        return [
            each for each in self._fit(ticket) if each.breaker_reopens_at(_model(ticket), self.now) is None
        ]

    def free(self, ticket: Ticket, load_at: InstanceId | None) -> list[Instance]:
        """Those of them to which it must go now."""
        variant = _variant(ticket)
        able = self._preferred(self.able(ticket))
        free = [
            each for each in able if not self.waits_for_event(each, variant) and not self.ends(each, variant)
        ]
        warm = [each for each in free if each.warm(variant)]
        loads = any(each.loading == variant and not each.suspect for each in able)
        loaded = any(each.id == load_at and each.warm(variant) for each in able)
        return warm if warm or loads or loaded else free

    def waits_for_event(self, instance: Instance, variant: Variant) -> bool:
        """Whether a slot, a load or a trial has to end before it can take the variant."""
        cold = not instance.warm(variant)
        return (
            not self.has_slot(instance, variant)
            or not instance.breaker_allows(variant.model, self.now)
            or (cold and instance.loading is not None)
        )

    def ends(self, instance: Instance, variant: Variant) -> list[float]:
        """When what holds it back will have ended by itself."""
        times = (
            instance.breaker_reopens_at(variant.model, self.now),
            instance.paused_until(self.now),
            instance.gated_until(variant, self.now),
        )
        return [at for at in times if at is not None]

    def next_wake(self, ticket: Ticket) -> list[float]:
        """Times by which somebody has to look at the ticket again though nothing happens."""
        variant = _variant(ticket)
        times = [ticket.deadline, *(until for until, _, _ in self.cooling if until > self.now)]
        loads = any(each.loading == variant and not each.suspect for each in self.able(ticket))
        for each in self._fit(ticket):
            if self.waits_for_event(each, variant) or (loads and not each.warm(variant)):
                continue
            held = [each.held_until] if each.held_until > self.now else []
            times += [max(self.ends(each, variant) + held)] if self.ends(each, variant) + held else []
        return times

    def lane_heads(self) -> list[Ticket]:
        """Who is next in each lane."""
        heads: dict[Lane, Ticket] = {}
        for ticket in self.house.queue.pending():
            heads.setdefault((ticket.variant, ticket.needs_slot, ticket.excluded), ticket)
        return list(heads.values())

    def check_decision(self, decision: Decision) -> None:
        """At the moment of the decision, before a slot is taken or a load begun."""
        ticket, able = decision.ticket, self.able(decision.ticket)
        if decision.picked is None:
            assert able == [], f"{ticket.id} was sent away though {able[0].id} can take it"
            self._check_standing(decision)
            return
        where, variant = self.house.fleet.get(decision.picked), _variant(ticket)
        assert where in able
        assert self.has_slot(where, variant)
        assert self.ends(where, variant) == []
        assert not self.waits_for_event(where, variant)
        assert where.held_until <= self.now or all(each.held_until > self.now for each in able)
        if decision.standing is Standing.LOAD:
            assert not where.warm(variant)
            assert where.loading is None
            assert not any(each.loading == variant and not each.suspect for each in self._preferred(able))
        else:
            assert decision.standing is Standing.PICKED
            assert where.warm(variant)

    def check_permits(self) -> None:
        """Each half-open breaker counts the trials that are out, and never more than it may."""
        for lease, at in self.house.dispatcher._leases.values():
            self._note_trial(lease, at)
        live = {lease.id for lease in self.house.dispatcher.leases}
        self.trials = {name: pair for name, pair in self.trials.items() if name in live}
        for instance in self.instances():
            for breaker in (instance.breakers._own, *instance.breakers._models.values()):
                out = sum(1 for pair in self.trials.values() if any(each is breaker for each in pair))
                assert len(breaker._trials) == out <= instance.breakers.policy.permits

    def instances(self) -> list[Instance]:
        """Those of the fleet, and those that left it with leases out."""
        left = [at for _, at in self.house.dispatcher._leases.values()]
        return list(dict.fromkeys([*self.house.fleet.instances(), *left]))

    def _note_trial(self, lease: Lease, at: Instance) -> None:
        if lease.id not in self.trials:
            pair = at.breakers._models.get(_model(lease.ticket))
            own = at.breakers._own
            self.trials[lease.id] = (
                own if lease.trial.instance else None,
                pair if lease.trial.model else None,
            )

    def _check_standing(self, decision: Decision) -> None:
        """That it is held back says when the first of those that only breakers hold is to be tried."""
        reopen = [
            at
            for each in self._fit(decision.ticket)
            if (at := each.breaker_reopens_at(_model(decision.ticket), self.now)) is not None
        ]
        if decision.standing is Standing.HELD_BACK:
            assert decision.next_wake_at == min(reopen)
        else:
            assert reopen == [] or decision.standing is Standing.EXHAUSTED

    def _fit(self, ticket: Ticket) -> list[Instance]:
        """Those that can take the ticket as far as no time has to pass."""
        return [
            each
            for each in self.house.fleet.instances()
            if each.usable
            and not each.drained
            and each.id not in ticket.excluded
            and each.holds(_model(ticket))
        ]

    def _preferred(self, able: list[Instance]) -> list[Instance]:
        steady = [each for each in able if each.held_until <= self.now]
        return steady or able


def _variant(ticket: Ticket) -> Variant:
    assert ticket.variant is not None
    return ticket.variant


def _model(ticket: Ticket) -> str:
    return _variant(ticket).model
