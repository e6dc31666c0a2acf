"""`adaptive`, the default strategy: the lowest expected cost in seconds.

    cost = load + prefill + stall + slowdown + risk

What a request has to wait for, and what it costs those that run beside it; lower is better. Rates are those
that the counters of earlier answers taught, cached tokens are what the prefix index believes.

    load      seconds to load the variant, 0 where it is resident
    prefill   seconds to evaluate the tokens of the prompt that are not cached, with all that share the device
    stall     what the others of the runner lose while it does
    slowdown  what a longer batch costs all of it over the length of an answer
    risk      -ln of the instance's health, half a second each

Before any answer of a model was measured, uncached tokens times requests in the batch stand in for prefill,
stall and slowdown. Source of that: Zhang et al., LMetric: Simple is Better, arXiv 2603.15202, 2026. The
constants were tuned on the tuning seeds of the scenarios that come with `balancer simulate`.
"""

from collections.abc import Mapping, Sequence
from math import log
from typing import Protocol

from balancer.core.rates import Rates
from balancer.core.ticket import ClientId, InstanceId, Prefix, Ticket
from balancer.core.variant import Variant
from balancer.core.views import InstanceView
from balancer.scheduling.strategies import Terms

_STALL_WEIGHT = 0.5
"""What each other request of the runner counts for that stands still, or goes slowly, while a prompt is
evaluated."""
_SLOWDOWN_WEIGHT = 0.25
"""A second more until the end of an answer is not as bad as a second more until its first byte."""
_UNMEASURED_ANSWER_TOKENS = 200.0
_ALWAYS_NEW_TOKENS = 64
_NOMINAL_TOKENS_PER_SECOND = 2000.0
"""Makes seconds of tokens where no rate is known."""
_RISK_SECONDS = 0.5
_LEAST_HEALTH = 0.05
_LOADS_WAITED = 8.0
"""A variant that is resident is loaded once more only for who has waited so many times what that takes: a
load drives out what others will ask for, and slots come back."""
_LOADS_WAITED_FOR_NOTHING = 0.25
"""The same where nothing is in memory that is in use."""
_LONGEST_WAIT_SECONDS = 2.0
"""For a cached prefix, whatever it is worth."""
_MARGIN_SECONDS = 0.05
_SHORTEST_WAIT_SECONDS = 0.005
_AGEING = 0.1
"""Seconds of cost that having come a second earlier makes up for, among those of one client that wait for the
same."""


class CachedTokens(Protocol):
    """What is believed to be cached."""

    def cached_tokens_everywhere(self, variant: Variant, prefix: Prefix) -> Mapping[InstanceId, int]:
        """How many tokens of a prompt need no evaluation, at each instance where it is any."""


class Adaptive:
    """The lowest expected cost. It remembers nothing between picks."""

    def __init__(self, cached: CachedTokens) -> None:
        self._cached = cached

    def score(self, ticket: Ticket, candidates: Sequence[InstanceView]) -> Sequence[Terms]:
        variant = ticket.variant
        if variant is None or not ticket.needs_slot:
            return [{"running": float(each.running)} for each in candidates]
        cached = self._cached.cached_tokens_everywhere(variant, ticket.prefix)
        return [_cost(ticket, variant, each, cached.get(each.id, 0)) for each in candidates]

    def picked(self, chosen: InstanceView, candidates: Sequence[InstanceView]) -> None:
        pass

    def order(self, tickets: Sequence[Ticket], free: Sequence[InstanceView]) -> Sequence[Ticket]:
        """Whose cost is least first. Of a client's own, having come earlier makes it less, so that none is
        passed over for long; between clients fair shares see to that."""
        first: dict[ClientId, float] = {}
        for each in tickets:
            first[each.client] = min(each.queued_at, first.get(each.client, each.queued_at))

        def cost(ticket: Ticket) -> float:
            least = min(sum(terms.values()) for terms in self.score(ticket, free))
            return least + _AGEING * (ticket.queued_at - first[ticket.client])

        return sorted(tickets, key=cost)

    def waits_until(
        self,
        ticket: Ticket,
        chosen: InstanceView,
        cost: float,
        busy: Sequence[InstanceView],
        now: float,
    ) -> float | None:
        """Until when to wait for a slot where the variant is resident rather than load it once more, or where
        more of the prompt is cached rather than evaluate it."""
        variant = ticket.variant
        resident = [each for each in busy if variant is not None and each.warm(variant)]
        if variant is None or not resident:
            return None
        if not chosen.warm(variant):
            patience = _LOADS_WAITED if chosen.spared_until(now) > now else _LOADS_WAITED_FOR_NOTHING
            until = ticket.queued_at + patience * chosen.load_seconds(variant)
            return until if until > now + _SHORTEST_WAIT_SECONDS else None
        cached = self._cached.cached_tokens_everywhere(variant, ticket.prefix)
        here = cached.get(chosen.id, 0)
        better = [each for each in resident if cached.get(each.id, 0) > here]
        rates = chosen.learned.rates(variant.model)
        if not better or rates is None:
            return None
        worth = rates.prefill_seconds(max(cached[each.id] for each in better) - here)
        until = ticket.queued_at + min(worth, _LONGEST_WAIT_SECONDS)
        if until <= now + _SHORTEST_WAIT_SECONDS:
            return None
        costs = zip(better, self.score(ticket, better), strict=True)
        there = min(_slot_seconds(variant, each) + sum(terms.values()) for each, terms in costs)
        return until if there + _MARGIN_SECONDS < cost else None


def _cost(ticket: Ticket, variant: Variant, instance: InstanceView, cached: int) -> Terms:
    warm, model = instance.warm(variant), variant.model
    load = 0.0 if warm else instance.load_seconds(variant)
    new = max(0, (ticket.prompt_tokens or 0) - (cached if warm else 0))
    running = instance.running_of(model)
    rates = instance.learned.rates(model)
    risk = -_RISK_SECONDS * log(max(instance.health_score, _LEAST_HEALTH))
    if rates is None:
        batch = (new + _ALWAYS_NEW_TOKENS) * (running + 1) / _NOMINAL_TOKENS_PER_SECOND
        return {"load": load, "new_tokens_by_batch": batch, "risk": risk}
    sharing = instance.sharing(model)
    prefill = rates.prefill_seconds(new, sharing=sharing)
    slower = rates.token_seconds(running + 1, sharing=sharing) - rates.token_seconds(1)
    return {
        "load": load,
        "prefill": prefill,
        "stall": _STALL_WEIGHT * running * prefill,
        "slowdown": _SLOWDOWN_WEIGHT * _answer_tokens(variant, instance) * slower,
        "risk": risk,
    }


def _answer_tokens(variant: Variant, instance: InstanceView) -> float:
    return instance.learned.output_tokens(variant.model) or _UNMEASURED_ANSWER_TOKENS


def _slot_seconds(variant: Variant, instance: InstanceView) -> float:
    """When the first slot of a busy runner may be expected back: of answers that end at any time."""
    rates: Rates | None = instance.learned.rates(variant.model)
    if rates is None:
        return float("inf")
    running = max(1, instance.running_of(variant.model))
    token = rates.token_seconds(running, sharing=instance.sharing(variant.model))
    return _answer_tokens(variant, instance) * token / running
