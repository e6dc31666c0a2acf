"""Filter, score, pick: one decision for one ticket over the fleet as it stands.

Synchronous and free of I/O, so dispatch can decide and reserve in one step, and a simulation can
run the same code a million times. Ties are broken by chance, or the first instance of the
configuration would get them all.
"""

from collections.abc import Mapping
from random import Random

from balancer.core.decision import Considered, Decision, Standing
from balancer.core.ticket import Ticket
from balancer.core.views import FleetView, InstanceView
from balancer.scheduling.filters import FILTERS, slot_free
from balancer.scheduling.strategies import STRATEGIES


class Scheduler:
    """Decides by a strategy of that name. Raises KeyError for a name that is not on the shelf."""

    def __init__(self, fleet: FleetView, *, strategy: str, random: Random) -> None:
        self._fleet = fleet
        self._random = random
        self._name = strategy
        self._strategy = STRATEGIES[strategy](random)

    def decide(self, ticket: Ticket, now: float) -> Decision:
        """The decision at `now` (monotonic seconds). Where it says PICKED the caller must take the
        slot before anything else can happen; the strategy has counted the pick."""
        considered: dict[InstanceView, Considered] = {}
        able: list[InstanceView] = []
        for instance in self._fleet.instances():
            reason = next((out for each in FILTERS if (out := each(ticket, instance))), None)
            considered[instance] = Considered(instance=instance.id, filtered=reason)
            if reason is None:
                able.append(instance)
        free = self._free(ticket, self._meant(ticket, able, considered), considered)
        if free:
            chosen = self._pick(ticket, free, considered)
            return self._decision(ticket, now, Standing.PICKED, considered, chosen)
        standing = Standing.BUSY if able else _dead_end(considered)
        return self._decision(ticket, now, standing, considered, None)

    def _meant(
        self, ticket: Ticket, able: list[InstanceView], considered: dict[InstanceView, Considered]
    ) -> list[InstanceView]:
        """Without those reserved for other models, unless nothing else can take the ticket."""
        if ticket.variant is None:
            return able
        model = ticket.variant.model
        meant = [each for each in able if each.meant_for(model)]
        return _narrow(able, meant, "meant for other models", considered)

    def _free(
        self, ticket: Ticket, able: list[InstanceView], considered: dict[InstanceView, Considered]
    ) -> list[InstanceView]:
        """Those with a free slot, without suspects where another is free."""
        free = []
        for instance in able:
            reason = slot_free(ticket, instance)
            considered[instance] = Considered(instance=instance.id, filtered=reason)
            if reason is None:
                free.append(instance)
        return _narrow(free, [each for each in free if not each.suspect], "newest probe failed", considered)

    def _pick(
        self, ticket: Ticket, free: list[InstanceView], considered: dict[InstanceView, Considered]
    ) -> InstanceView:
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
    ) -> Decision:
        return Decision(
            ticket=ticket,
            at=now,
            strategy=self._name,
            standing=standing,
            picked=chosen.id if chosen is not None else None,
            considered=tuple(considered.values()),
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


def _dead_end(considered: Mapping[InstanceView, Considered]) -> Standing:
    """Why no instance is able, when waiting for a slot will not help. That a model is nowhere can only
    be said while some instance is there to ask."""
    reasons = {each.filtered for each in considered.values()}
    if reasons == {"model not there"} and any(instance.usable for instance in considered):
        return Standing.UNKNOWN_MODEL
    if "failed this request before" in reasons:
        return Standing.EXHAUSTED
    return Standing.NO_INSTANCE
