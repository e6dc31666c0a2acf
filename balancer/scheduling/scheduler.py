"""Filter, score, pick: one decision for one ticket over the fleet as it stands.

Synchronous and free of I/O, so dispatch can decide and reserve in one step, and a simulation can
run the same code a million times. Ties are broken by chance, or the first instance of the
configuration would get them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from balancer.core.decision import Decision, Standing
from balancer.core.ticket import InstanceId, Ticket
from balancer.core.variant import Variant
from balancer.core.views import FleetView, InstanceView
from balancer.scheduling.filters import (
    BREAKER_OPEN,
    FAILED_BEFORE,
    MODEL_NOT_THERE,
    NO_ROOM,
    NOT_SERVED,
    why_held,
    why_out,
)
from balancer.scheduling.outliers import without_outliers
from balancer.scheduling.strategies import STRATEGIES, Shelf, Terms

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
        instances = self._fleet.instances()
        filtered: dict[InstanceId, str] = {}
        able: list[InstanceView] = []
        for each in instances:
            reason = why_out(ticket, each, now)
            if reason is None:
                able.append(each)
            else:
                filtered[each.id] = reason
        able = _preferred(ticket, able, filtered, now)
        free, wake_at, for_room = _free(ticket, able, filtered, now)
        variant = ticket.variant if ticket.needs_slot else None
        loading = [each for each in able if each.loading is not None] if variant is not None else []
        if variant is not None and (loading or begun is not None):
            free = _without_second_load(
                variant, begun, loading=loading, free=free, filtered=filtered, now=now
            )
        terms: dict[InstanceId, Terms] = {}
        chosen = self._pick(ticket, free, terms, begun) if free else None
        if chosen is not None:
            warm = variant is None or chosen.warm(variant)
            standing = Standing.PICKED if warm else Standing.LOAD
            wake_at = [] if warm else [now + PATIENCE_SECONDS]
        else:
            standing = Standing.BUSY if able else _dead_end(instances, filtered)
            wake_at += [each.load_overdue_at for each in loading if each.load_overdue_at > now]
            if variant is not None:
                wake_at += _reopenings(variant, instances, filtered, now)
            if able:
                wake_at += [each.held_until for each in instances if each.held_until > now]
                wake_at += [begun.alone_until] if begun is not None and begun.alone_until > now else []
        return Decision(
            ticket=ticket,
            at=now,
            strategy=self._name,
            standing=standing,
            picked=chosen.id if chosen is not None else None,
            instances=tuple([each.id for each in instances]),
            filtered=filtered,
            terms=terms,
            next_wake_at=min(wake_at, default=None),
            waits_for_room=for_room,
        )

    def _pick(
        self,
        ticket: Ticket,
        free: list[InstanceView],
        terms: dict[InstanceId, Terms],
        begun: LoadBegun | None,
    ) -> InstanceView:
        loaded_for_it = next((each for each in free if each.id == begun.instance), None) if begun else None
        if loaded_for_it is not None:
            return loaded_for_it  # the strategy has counted it when the load began
        scores: list[float] = []
        for instance, of_it in zip(free, self._strategy.score(ticket, free), strict=True):
            scores.append(sum(of_it.values()))
            terms[instance.id] = of_it
        best = min(scores)
        ties = [each for each, score in zip(free, scores, strict=True) if score <= best]
        chosen = ties[0] if len(ties) == 1 else self._random.choice(ties)
        self._strategy.picked(chosen, free)
        return chosen


def _preferred(
    ticket: Ticket, able: list[InstanceView], filtered: dict[InstanceId, str], now: float
) -> list[InstanceView]:
    """Without those that came and went lately, outliers, and those reserved for other models, unless
    nothing else can take the ticket."""
    if len(able) < 2:
        return able
    steady = [each for each in able if each.held_until <= now]
    able = _narrow(able, steady, "came and went lately", filtered)
    if ticket.variant is None:
        return able
    able = without_outliers(able, filtered)
    model = ticket.variant.model
    meant = [each for each in able if each.meant_for(model)]
    return _narrow(able, meant, "meant for other models", filtered)


def _free(
    ticket: Ticket, able: list[InstanceView], filtered: dict[InstanceId, str], now: float
) -> tuple[list[InstanceView], list[float], bool]:
    """Those that nothing holds, without suspects and spare ones where another is free; when holds end; and
    whether one is for want of room."""
    free: list[InstanceView] = []
    ends: list[float] = []
    for_room = False
    for instance in able:
        hold = why_held(ticket, instance, now)
        if hold is None:
            free.append(instance)
            continue
        filtered[instance.id] = hold.reason
        for_room = for_room or hold.reason == NO_ROOM
        if hold.until is not None:
            ends.append(hold.until)
    if len(free) < 2:
        return free, ends, for_room
    free = _narrow(free, _trusted(ticket, free), "newest probe failed", filtered)
    return _narrow(free, [each for each in free if not each.spare], "spare", filtered), ends, for_room


def _trusted(ticket: Ticket, free: list[InstanceView]) -> list[InstanceView]:
    """Those whose newest probe went well; where there is none, those that at least need no load, as nobody
    waits for a load at a suspect."""
    steady = [each for each in free if not each.suspect]
    if steady or ticket.variant is None or not ticket.needs_slot:
        return steady
    return [each for each in free if each.warm(ticket.variant)]


def _narrow(
    wide: list[InstanceView], narrow: list[InstanceView], reason: str, filtered: dict[InstanceId, str]
) -> list[InstanceView]:
    """The narrow list unless it is empty; what it leaves out is filtered for `reason`."""
    if not narrow or len(narrow) == len(wide):
        return wide
    for left_out in wide:
        if left_out not in narrow:
            filtered[left_out.id] = reason
    return narrow


def _without_second_load(
    variant: Variant,
    begun: LoadBegun | None,
    *,
    loading: list[InstanceView],
    free: list[InstanceView],
    filtered: dict[InstanceId, str],
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
            filtered[left_out.id] = "waits for a load"
    return left


def _reopenings(
    variant: Variant, instances: Sequence[InstanceView], filtered: Mapping[InstanceId, str], now: float
) -> list[float]:
    """When those that only their breakers take out let requests try again."""
    out = [each for each in instances if filtered.get(each.id) == BREAKER_OPEN]
    return [at for each in out if (at := each.breaker_reopens_at(variant, now)) is not None]


def _dead_end(instances: Sequence[InstanceView], filtered: Mapping[InstanceId, str]) -> Standing:
    """Why no instance is able, when waiting for a slot will not help. That a model is nowhere can only
    be said while some instance is there to ask."""
    reasons = set(filtered.values())
    if reasons == {MODEL_NOT_THERE} and any(each.usable for each in instances):
        return Standing.UNKNOWN_MODEL
    if NOT_SERVED in reasons and reasons <= {NOT_SERVED, MODEL_NOT_THERE}:
        return Standing.UNSERVED
    if FAILED_BEFORE in reasons:
        return Standing.EXHAUSTED
    if BREAKER_OPEN in reasons:
        return Standing.HELD_BACK
    return Standing.NO_INSTANCE
