"""Filter, score, pick: one decision for one ticket over the fleet as it stands.

Synchronous and free of I/O, so dispatch can decide and reserve in one step, and a simulation can
run the same code a million times. Ties are broken by chance, or the first instance of the
configuration would get them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from balancer.core.decision import Considered, Decision, Standing
from balancer.core.ticket import InstanceId, Ticket
from balancer.core.variant import Variant
from balancer.core.views import FleetView, InstanceView
from balancer.scheduling.filters import (
    BREAKER_OPEN,
    FAILED_BEFORE,
    MODEL_NOT_THERE,
    NOT_SERVED,
    why_held,
    why_out,
)
from balancer.scheduling.strategies import STRATEGIES, Shelf

PATIENCE_SECONDS = 1.0
"""So long a request waits for the load that its strategy began, before it goes where none is needed."""


@dataclass(frozen=True, slots=True)
class LoadBegun:
    """A load that was begun for a ticket, and until when it waits for that alone (monotonic seconds)."""

    instance: InstanceId
    alone_until: float


class Scheduler:
    """Decides by a strategy of that name. Raises KeyError for a name that is not on the shelf."""

    def __init__(self, fleet: FleetView, *, strategy: str, random: Random, shelf: Shelf = STRATEGIES) -> None:
        self._fleet = fleet
        self._random = random
        self._shelf = shelf
        self._name = strategy
        self._strategy = shelf[strategy](random)

    def use(self, strategy: str) -> None:
        """Decide by another strategy from now on. Raises KeyError as construction does."""
        if strategy != self._name:
            self._strategy = self._shelf[strategy](self._random)
            self._name = strategy

    def decide(self, ticket: Ticket, now: float, *, begun: LoadBegun | None = None) -> Decision:
        """The decision at `now` (monotonic seconds). Where it says PICKED or LOAD the caller must take
        the slot, or begin the load, before anything else can happen; the strategy has counted the pick.

        `begun` is the load that was begun for this ticket. For a moment it waits for that alone, so that
        a strategy's order holds; then it goes wherever the variant is resident, too.
        """
        considered: dict[InstanceView, Considered] = {}
        able: list[InstanceView] = []
        for instance in self._fleet.instances():
            reason = why_out(ticket, instance, now)
            considered[instance] = Considered(instance=instance.id, filtered=reason)
            if reason is None:
                able.append(instance)
        able = self._preferred(ticket, able, considered, now)
        free, wake_at = self._free(ticket, able, considered, now)
        loading = [each for each in able if each.loading is not None] if ticket.needs_slot else []
        if ticket.variant is not None and (loading or begun is not None):
            free = _without_second_load(
                ticket.variant, begun, loading=loading, free=free, considered=considered, now=now
            )
        if free:
            chosen = self._pick(ticket, free, considered, begun)
            standing = self._standing(ticket, chosen)
            wake = now + PATIENCE_SECONDS if standing is Standing.LOAD else None
            return self._decision(ticket, now, standing, considered, chosen, next_wake_at=wake)
        wake_at += [each.load_overdue_at for each in loading if each.load_overdue_at > now]
        if ticket.needs_slot and ticket.variant is not None:
            wake_at += _reopenings(ticket.variant, considered, now)
        if able:
            wake_at += [each.held_until for each in considered if each.held_until > now]
            wake_at += [begun.alone_until] if begun is not None and begun.alone_until > now else []
        standing = Standing.BUSY if able else _dead_end(considered)
        return self._decision(
            ticket, now, standing, considered, None, next_wake_at=min(wake_at, default=None)
        )

    def _standing(self, ticket: Ticket, chosen: InstanceView) -> Standing:
        if not ticket.needs_slot or ticket.variant is None or chosen.warm(ticket.variant):
            return Standing.PICKED
        return Standing.LOAD

    def _preferred(
        self,
        ticket: Ticket,
        able: list[InstanceView],
        considered: dict[InstanceView, Considered],
        now: float,
    ) -> list[InstanceView]:
        """Without those that came and went lately and those reserved for other models, unless nothing else
        can take the ticket."""
        if len(able) < 2:
            return able
        steady = [each for each in able if each.held_until <= now]
        able = _narrow(able, steady, "came and went lately", considered)
        if ticket.variant is None:
            return able
        model = ticket.variant.model
        meant = [each for each in able if each.meant_for(model)]
        return _narrow(able, meant, "meant for other models", considered)

    def _free(
        self,
        ticket: Ticket,
        able: list[InstanceView],
        considered: dict[InstanceView, Considered],
        now: float,
    ) -> tuple[list[InstanceView], list[float]]:
        """Those that nothing holds, without suspects and spare ones where another is free, and when holds
        end."""
        free: list[InstanceView] = []
        ends: list[float] = []
        for instance in able:
            hold = why_held(ticket, instance, now)
            if hold is None:
                free.append(instance)
                continue
            considered[instance] = Considered(instance=instance.id, filtered=hold.reason)
            if hold.until is not None:
                ends.append(hold.until)
        if len(free) < 2:
            return free, ends
        steady = [each for each in free if not each.suspect]
        free = _narrow(free, steady, "newest probe failed", considered)
        return _narrow(free, [each for each in free if not each.spare], "spare", considered), ends

    def _pick(
        self,
        ticket: Ticket,
        free: list[InstanceView],
        considered: dict[InstanceView, Considered],
        begun: LoadBegun | None,
    ) -> InstanceView:
        loaded_for_it = next((each for each in free if begun and each.id == begun.instance), None)
        if loaded_for_it is not None:
            return loaded_for_it  # the strategy has counted it when the load began
        scores: list[float] = []
        for instance, terms in zip(free, self._strategy.score(ticket, free), strict=True):
            scores.append(sum(terms.values()))
            considered[instance] = Considered(instance=instance.id, score=scores[-1], terms=terms)
        best = min(scores)
        ties = [each for each, score in zip(free, scores, strict=True) if score <= best]
        chosen = ties[0] if len(ties) == 1 else self._random.choice(ties)
        self._strategy.picked(chosen, free)
        return chosen

    def _decision(
        self,
        ticket: Ticket,
        now: float,
        standing: Standing,
        considered: dict[InstanceView, Considered],
        chosen: InstanceView | None,
        *,
        next_wake_at: float | None,
    ) -> Decision:
        return Decision(
            ticket=ticket,
            at=now,
            strategy=self._name,
            standing=standing,
            picked=chosen.id if chosen is not None else None,
            considered=tuple(considered.values()),
            next_wake_at=next_wake_at,
        )


def _narrow(
    wide: list[InstanceView],
    narrow: list[InstanceView],
    reason: str,
    considered: dict[InstanceView, Considered],
) -> list[InstanceView]:
    """The narrow list unless it is empty; what it leaves out is filtered for `reason`."""
    if not narrow or len(narrow) == len(wide):
        return wide
    for left_out in wide:
        if left_out not in narrow:
            considered[left_out] = Considered(instance=left_out.id, filtered=reason)
    return narrow


def _without_second_load(
    variant: Variant,
    begun: LoadBegun | None,
    *,
    loading: list[InstanceView],
    free: list[InstanceView],
    considered: dict[InstanceView, Considered],
    now: float,
) -> list[InstanceView]:
    """While the variant is being loaded somewhere, only those where it is resident: one cold model is
    loaded in one place after the other, as slots there run out. A load that is overdue, or where the
    newest probe failed, is not waited for."""
    awaited = [
        each
        for each in loading
        if each.loading == variant and not each.suspect and now < each.load_overdue_at
    ]
    held = [*awaited, *(each for each in free if each.warm(variant))]
    own = begun is not None and any(each.id == begun.instance for each in held)
    if not awaited and not own:
        return free
    left = [each for each in free if each.warm(variant)]
    if begun is not None and own and now < begun.alone_until:
        left = [each for each in left if each.id == begun.instance]
    for left_out in free:
        if left_out not in left:
            considered[left_out] = Considered(instance=left_out.id, filtered="waits for a load")
    return left


def _reopenings(variant: Variant, considered: Mapping[InstanceView, Considered], now: float) -> list[float]:
    """When those that only their breakers take out let requests try again."""
    out = [each for each, found in considered.items() if found.filtered == BREAKER_OPEN]
    return [at for each in out if (at := each.breaker_reopens_at(variant, now)) is not None]


def _dead_end(considered: Mapping[InstanceView, Considered]) -> Standing:
    """Why no instance is able, when waiting for a slot will not help. That a model is nowhere can only
    be said while some instance is there to ask."""
    reasons = {each.filtered for each in considered.values()}
    if reasons == {MODEL_NOT_THERE} and any(instance.usable for instance in considered):
        return Standing.UNKNOWN_MODEL
    if NOT_SERVED in reasons and reasons <= {NOT_SERVED, MODEL_NOT_THERE}:
        return Standing.UNSERVED
    if FAILED_BEFORE in reasons:
        return Standing.EXHAUSTED
    if BREAKER_OPEN in reasons:
        return Standing.HELD_BACK
    return Standing.NO_INSTANCE
