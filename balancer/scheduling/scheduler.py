"""Filter, score, pick: one decision for one ticket over the fleet as it stands.

Synchronous and free of I/O, so dispatch can decide and reserve in one step, and a simulation can
run the same code a million times. Ties are broken by chance, or the first instance of the
configuration would get them all.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from random import Random

import msgspec

from balancer.core.decision import Decision, Standing, Wait
from balancer.core.scores import Scores
from balancer.core.ticket import InstanceId, Ticket, TicketId
from balancer.core.variant import Variant
from balancer.core.views import FleetView, InstanceView
from balancer.scheduling.filters import (
    BREAKER_OPEN,
    FAILED_BEFORE,
    NO_ROOM,
    NO_SLOT,
    NOT_SERVED,
    SLOTS_TAKEN,
    why_held,
    why_out,
)
from balancer.scheduling.outliers import without_outliers
from balancer.scheduling.strategies import STRATEGIES, Reckoning, Scored, Shelf

PATIENCE_SECONDS = 1.0
"""So long a request waits for the load that its strategy began, before it goes where none is needed."""
WINDOW = 8
"""So many of those that wait for the same are looked at for who makes most of a slot."""
PAIRS = 256
"""No more pairs of a ticket and an instance are scored at once, but for the first ticket."""


@dataclass(frozen=True, slots=True)
class LoadBegun:
    """A load that was begun for a ticket, and until when it waits for that alone (monotonic seconds)."""

    instance: InstanceId
    alone_until: float


@dataclass(slots=True)
class _Field:
    """Who there is for a ticket: all that have the model, those that could serve it, those of them that are
    free to, those that only lack a slot, and those where something is being loaded. `filtered` tells why
    others are not free, `ends` when that may be over."""

    instances: Sequence[InstanceView]
    able: list[InstanceView]
    free: list[InstanceView]
    busy: list[InstanceView]
    loading: list[InstanceView]
    filtered: dict[InstanceId, str]
    ends: list[float]
    for_room: bool


@dataclass(slots=True)
class _Choice:
    """Where a ticket goes, None where it waits; `scores` are its own. `ends` are when those that are better
    off waiting look again."""

    ticket: Ticket
    chosen: InstanceView | None = None
    scores: Scores | None = None
    wait: Wait | None = None
    ends: list[float] = dataclass_field(default_factory=list)
    window: Sequence[tuple[TicketId, float]] = ()
    pairs: int = 0


class Scheduler:
    """Decides by a strategy of that name. Raises KeyError for a name that is not on the shelf."""

    def __init__(self, fleet: FleetView, *, strategy: str, random: Random, shelf: Shelf = STRATEGIES) -> None:
        self._fleet = fleet
        self._random = random
        self._shelf = shelf
        self._instances: Sequence[InstanceView] = ()
        self._instance_ids: Sequence[InstanceId] = ()
        self._take(strategy)

    def use(self, strategy: str) -> None:
        """Decide by another strategy from now on. Raises KeyError as construction does."""
        if strategy != self._name:
            self._take(strategy)

    def _take(self, strategy: str) -> None:
        self._strategy = self._shelf[strategy](self._random)
        self._reckoning = self._strategy if isinstance(self._strategy, Reckoning) else None
        self._name = strategy

    @property
    def window(self) -> int:
        """How many of those that wait for the same it is worth offering to `decide` at once."""
        return 1 if self._reckoning is None else WINDOW

    def decide(
        self,
        ticket: Ticket,
        now: float,
        *,
        begun: LoadBegun | None = None,
        behind: Sequence[Ticket] = (),
        most_pairs: int = PAIRS,
    ) -> Decision:
        """The decision at `now` (monotonic seconds). Where it says PICKED or LOAD the caller must take
        the slot, or begin the load, before anything else can happen; the strategy has counted the pick.

        `begun` is the load that was begun for this ticket. For a moment it waits for that alone, so that
        a strategy's order holds; then it goes wherever the variant is resident, too. `behind` are others
        that whatever takes the ticket would take: the decision may be for one of them instead, as far as
        there are no more than `most_pairs` of a ticket and an instance to score.
        """
        field = self._field(ticket, now, begun)
        loaded_for_it = [each for each in field.free if begun is not None and each.id == begun.instance]
        if loaded_for_it:
            choice = _Choice(ticket, loaded_for_it[0])  # the strategy has counted it when the load began
        else:
            choice = self._choice([ticket, *behind], field, most_pairs, now)
        chosen = choice.chosen
        if chosen is not None:
            ticket = choice.ticket
            warm = ticket.variant is None or not ticket.needs_slot or chosen.warm(ticket.variant)
            standing = Standing.PICKED if warm else Standing.LOAD
            wake_at = [] if warm else [now + PATIENCE_SECONDS]
        else:
            standing = Standing.BUSY if field.able else self._dead_end(ticket, field)
            wake_at = [*field.ends, *choice.ends, *_ends_of_waiting(ticket, field, begun, now)]
        return Decision(
            ticket=ticket,
            at=now,
            strategy=self._name,
            standing=standing,
            picked=chosen.id if chosen is not None else None,
            instances=self._ids(),
            looked_at=[each.id for each in field.instances],
            filtered=field.filtered,
            scores=choice.scores,
            next_wake_at=min(wake_at, default=None),
            waits_for_room=field.for_room,
            wait=choice.wait,
            window=choice.window,
            pairs=choice.pairs,
        )

    def _ids(self) -> Sequence[InstanceId]:
        """Those of all instances, made once for all decisions over the same."""
        instances = self._fleet.instances()
        if instances is not self._instances:
            self._instances, self._instance_ids = instances, tuple([each.id for each in instances])
        return self._instance_ids

    def decide_idle(self, ticket: Ticket, variant: Variant, now: float, *, others_wait: bool) -> Decision:
        """The decision for a slot that is to be had at once where the variant is resident, and that nobody
        else may be waiting for; `others_wait`, for other models."""
        aside = dict.fromkeys(ticket.excluded, "asked already")
        for each in self._fleet.instances():
            if not each.warm(variant):
                aside[each.id] = "model not in memory"
            elif others_wait and each.capped:
                aside[each.id] = "others wait, and its cap counts for all models"
        asked = msgspec.structs.replace(ticket, excluded=frozenset(aside))
        decision = self.decide(asked, now)
        filtered = {**decision.filtered, **aside}
        return msgspec.structs.replace(decision, ticket=ticket, filtered=filtered, hedge=True)

    def _field(self, ticket: Ticket, now: float, begun: LoadBegun | None) -> _Field:
        """What is not settled is asked why at length; in the way of others nothing can stand but slots."""
        model = ticket.variant.model if ticket.variant is not None else None
        instances = self._fleet.instances() if model is None else self._fleet.holding(model)
        odd = {each.id for each in instances if not each.settled(now)} | ticket.excluded
        field = _Field(instances, list(instances), [], [], [], {}, [], for_room=False)
        if odd:
            field.able = _able(ticket, instances, odd, field.filtered, now)
        _sort_out(ticket, field, odd, now)
        variant = ticket.variant if ticket.needs_slot else None
        if variant is not None and (odd or begun is not None):
            field.loading = [each for each in field.able if each.loading is not None]
            if field.loading or begun is not None:
                _without_second_load(variant, begun, field, now)
        return field

    def _choice(self, tickets: Sequence[Ticket], field: _Field, most_pairs: int, now: float) -> _Choice:
        """Who goes where: the first in order who is not better off waiting."""
        first, free = tickets[0], field.free
        if not free:
            return _Choice(first)
        variant = first.variant if first.needs_slot else None
        candidates = [each.candidate(variant) for each in free]
        offered = tickets[: max(1, most_pairs // len(free))] if self._reckoning is not None else tickets[:1]
        scored: Sequence[Scored] = [(each, self._strategy.score(each, candidates)) for each in offered]
        choice = _Choice(first, pairs=len(offered) * len(free))
        if len(offered) > 1 and self._reckoning is not None:
            ordered = self._reckoning.order(scored)
            scored = [each for _, each in ordered]
            choice.window = [(each.id, cost) for cost, (each, _) in ordered]
        for ticket, scores in scored:
            chosen, wait = self._pick(ticket, scores, field, now)
            if wait is None:
                choice.ticket, choice.chosen, choice.scores, choice.wait = ticket, chosen, scores, None
                break
            choice.ends.append(wait.until)
            if ticket is first:
                choice.scores, choice.wait = scores, wait
        return choice

    def _pick(
        self, ticket: Ticket, scores: Scores, field: _Field, now: float
    ) -> tuple[InstanceView, Wait | None]:
        """Where the ticket goes, or would go if it were not better off waiting."""
        ties = scores.best()
        index = ties[0] if len(ties) == 1 else self._random.choice(ties)
        chosen = field.free[index]
        if field.busy and self._reckoning is not None:
            wait = self._reckoning.waits_until(ticket, chosen, min(scores.values), field.busy, now)
            if wait is not None:
                return chosen, wait
        self._strategy.picked(scores.candidates[index], scores.candidates)
        return chosen, None

    def _dead_end(self, ticket: Ticket, field: _Field) -> Standing:
        """Why no instance is able, when waiting for a slot will not help. That a model is nowhere can only
        be said while some instance is there to ask."""
        reasons = set(field.filtered.values())
        if not field.instances and ticket.variant is not None:
            there = any(each.usable for each in self._fleet.instances())
            return Standing.UNKNOWN_MODEL if there else Standing.NO_INSTANCE
        if reasons == {NOT_SERVED}:
            return Standing.UNSERVED
        if FAILED_BEFORE in reasons:
            return Standing.EXHAUSTED
        if BREAKER_OPEN in reasons:
            return Standing.HELD_BACK
        return Standing.NO_INSTANCE


def _able(
    ticket: Ticket,
    instances: Sequence[InstanceView],
    odd: AbstractSet[InstanceId],
    filtered: dict[InstanceId, str],
    now: float,
) -> list[InstanceView]:
    """Those that could serve the ticket, as it is preferred."""
    able: list[InstanceView] = []
    for each in instances:
        reason = why_out(ticket, each, now) if each.id in odd else None
        if reason is None:
            able.append(each)
        else:
            filtered[each.id] = reason
    return _preferred(ticket, able, filtered, now)


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


def _sort_out(ticket: Ticket, field: _Field, odd: AbstractSet[InstanceId], now: float) -> None:
    """Part those that are free from those that something holds; suspects and spare ones count as free where
    no other is."""
    variant = ticket.variant if ticket.needs_slot else None
    free: list[InstanceView] = []
    for instance in field.able:
        if odd and instance.id in odd:
            hold = why_held(ticket, instance, now)
        else:
            hold = None if variant is None or instance.has_free_slot(variant) else SLOTS_TAKEN
        if hold is None:
            free.append(instance)
            continue
        field.filtered[instance.id] = hold.reason
        if hold.until is not None:
            field.ends.append(hold.until)
        if hold.reason == NO_SLOT:
            field.busy.append(instance)
        elif hold.reason == NO_ROOM:
            field.for_room = True
    if odd and len(free) > 1:
        free = _narrow(free, _trusted(ticket, free), "newest probe failed", field.filtered)
        free = _narrow(free, [each for each in free if not each.spare], "spare", field.filtered)
    field.free = free


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


def _without_second_load(variant: Variant, begun: LoadBegun | None, field: _Field, now: float) -> None:
    """While the variant is being loaded somewhere, only those where it is resident: one cold model is
    loaded in one place after the other, as slots there run out. A load that is overdue, or where the
    newest probe failed, is not waited for."""
    awaited = [
        each
        for each in field.loading
        if each.loading == variant and not each.suspect and now < each.load_overdue_at
    ]
    held = [*awaited, *(each for each in field.free if each.warm(variant))]
    own = begun is not None and any(each.id == begun.instance for each in held)
    if not awaited and not own:
        return
    left = [each for each in field.free if each.warm(variant)]
    if begun is not None and own and now < begun.alone_until:
        left = [each for each in left if each.id == begun.instance]
    for left_out in field.free:
        if left_out not in left:
            field.filtered[left_out.id] = "waits for a load"
    field.free = left


def _ends_of_waiting(ticket: Ticket, field: _Field, begun: LoadBegun | None, now: float) -> list[float]:
    """When what keeps it waiting may be over, beside the ends of holds."""
    ends = [each.load_overdue_at for each in field.loading if each.load_overdue_at > now]
    variant = ticket.variant if ticket.needs_slot else None
    if variant is not None:
        out = [each for each in field.instances if field.filtered.get(each.id) == BREAKER_OPEN]
        ends += [at for each in out if (at := each.breaker_reopens_at(variant, now)) is not None]
    if field.able:
        ends += [each.held_until for each in field.instances if each.held_until > now]
        ends += [begun.alone_until] if begun is not None and begun.alone_until > now else []
    return ends
