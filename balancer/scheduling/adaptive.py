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
from operator import itemgetter
from typing import Protocol

from balancer.core.decision import Wait
from balancer.core.scores import CACHED_TOKENS, Asked, Candidate, Formula, Scores
from balancer.core.ticket import ClientId, InstanceId, Prefix, Ticket
from balancer.core.variant import Variant
from balancer.core.views import InstanceView
from balancer.scheduling.strategies import Scored

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
_TIE = 1.05
"""Costs are estimates, so what is within this factor of the best is as good as that."""
_AGEING = 0.1
"""Seconds of cost that having come a second earlier makes up for, among those of one client that wait for the
same."""


class CachedTokens(Protocol):
    """What is believed to be cached."""

    def cached_tokens_everywhere(self, variant: Variant, prefix: Prefix) -> Mapping[InstanceId, int]:
        """How many tokens of a prompt need no evaluation, at each instance where it is any."""


def _parts(asked: Asked, candidate: Candidate, cached: float) -> tuple[float, ...]:
    """What it costs there, in seconds."""
    if not asked.needs_slot:
        return (float(candidate.running),)
    new = candidate.new_tokens(asked, cached)
    health, rates = candidate.health, candidate.rates
    running, sharing = candidate.running_of_model, candidate.sharing
    risk = 0.0 if health == 1.0 else -_RISK_SECONDS * log(max(health, _LEAST_HEALTH))
    if rates is None:
        batch = (new + _ALWAYS_NEW_TOKENS) * (running + 1) / _NOMINAL_TOKENS_PER_SECOND
        return candidate.load_seconds, batch, risk
    prefill = sharing * new / rates.prefill_tokens_per_second
    decode = rates.decode_tokens_per_second
    slower = sharing * (1 + rates.slowdown * running) / decode - 1 / decode if decode is not None else 0.0
    answer_tokens = candidate.answer_tokens or _UNMEASURED_ANSWER_TOKENS
    return (
        candidate.load_seconds,
        prefill,
        _STALL_WEIGHT * running * prefill,
        _SLOWDOWN_WEIGHT * answer_tokens * slower,
        risk,
    )


def _because(scores: Scores, index: int) -> str:
    asked, picked, cost = scores.asked, scores.candidates[index], scores.values[index]
    if not asked.needs_slot:
        return f"fewest requests running, {picked.running}"
    others = [each for other, each in enumerate(scores.values) if other != index]
    cached = min(int(scores.own[index]), asked.prompt_tokens) if picked.warm else 0
    known = f"; {cached} of {asked.prompt_tokens} prompt tokens cached there" if cached else ""
    cold = sum(not each.warm for each in scores.candidates)
    if picked.warm and cold and not known:
        others_load = "1 other would" if cold == 1 else f"{cold} others would"
        known = f"; model in memory there, {others_load} have to load it"
    if picked.rates is None:
        return "fewest new prompt tokens for how much runs there" + known
    if min(others) <= cost * _TIE:
        return f"by chance, as others cost about as little, {cost:.2f} s" + known
    return f"costs {min(others) - cost:.2f} s less than the next" + known


FORMULA = Formula(
    _parts,
    [["running"], ["load", "new_tokens_by_batch", "risk"], ["load", "prefill", "stall", "slowdown", "risk"]],
    _because,
    own_fact=CACHED_TOKENS,
    tie=_TIE,
)


class Adaptive:
    """The lowest expected cost. It remembers nothing between picks."""

    def __init__(self, cached: CachedTokens) -> None:
        self._cached = cached

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        variant = ticket.variant
        if variant is None or not ticket.needs_slot:
            return Scores(FORMULA, Asked.by(ticket), candidates, [0] * len(candidates))
        cached = self._cached.cached_tokens_everywhere(variant, ticket.prefix)
        return Scores(FORMULA, Asked.by(ticket), candidates, [cached.get(each.id, 0) for each in candidates])

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        pass

    def order(self, scored: Sequence[Scored]) -> Sequence[tuple[float, Scored]]:
        """Whose cost is least first. Of a client's own, having come earlier makes it less, so that none is
        passed over for long; between clients fair shares see to that."""
        first: dict[ClientId, float] = {}
        for ticket, _ in scored:
            first[ticket.client] = min(ticket.queued_at, first.get(ticket.client, ticket.queued_at))
        costs = [
            min(scores.values) + _AGEING * (ticket.queued_at - first[ticket.client])
            for ticket, scores in scored
        ]
        return sorted(zip(costs, scored, strict=True), key=itemgetter(0))

    def waits_until(
        self, ticket: Ticket, chosen: InstanceView, cost: float, busy: Sequence[InstanceView], now: float
    ) -> Wait | None:
        """Until when to wait for a slot where the variant is resident rather than load it once more, or where
        more of the prompt is cached rather than evaluate it."""
        variant = ticket.variant
        resident = [each for each in busy if variant is not None and each.warm(variant)]
        if variant is None or not resident:
            return None
        if not chosen.warm(variant):
            patience = _LOADS_WAITED if chosen.spared_until(now) > now else _LOADS_WAITED_FOR_NOTHING
            until = ticket.queued_at + patience * chosen.load_seconds(variant)
            why = "a slot where the model is in memory, rather than another load of it"
            return Wait(until, why, chosen.id) if until > now + _SHORTEST_WAIT_SECONDS else None
        cached = self._cached.cached_tokens_everywhere(variant, ticket.prefix)
        here = cached.get(chosen.id, 0)
        better = [each for each in resident if cached.get(each.id, 0) > here]
        rates = chosen.learned.rates(variant.model)
        if not better or rates is None:
            return None
        most = max(cached[each.id] for each in better)
        until = ticket.queued_at + min(rates.prefill_seconds(most - here), _LONGEST_WAIT_SECONDS)
        if until <= now + _SHORTEST_WAIT_SECONDS:
            return None
        scores = self.score(ticket, [each.candidate(variant) for each in better])
        costs = zip(scores.candidates, scores.values, strict=True)
        there = min(_slot_seconds(each) + its_cost for each, its_cost in costs)
        why = f"a slot where up to {most} tokens of its prompt are cached"
        return Wait(until, why, chosen.id) if there + _MARGIN_SECONDS < cost else None


def _slot_seconds(busy: Candidate) -> float:
    """When the first slot of a busy runner may be expected back: of answers that end at any time."""
    if busy.rates is None:
        return float("inf")
    running = max(1, busy.running_of_model)
    token = busy.rates.token_seconds(running, sharing=busy.sharing)
    return (busy.answer_tokens or _UNMEASURED_ANSWER_TOKENS) * token / running
