"""Strategies of others, to compare with: each as its source describes it, over the same filters, the same
ledger and the same information as those of the product have.

They read candidates, tickets and, where they learn, observations; nothing of the simulation. All that
they remember is bounded by the fleet and by the constants here.
"""

from collections.abc import Callable, Mapping, Sequence
from math import exp
from random import Random
from typing import Protocol, runtime_checkable

from balancer.core.names import ModelName
from balancer.core.scores import Asked, Candidate, Scores, Terms, told
from balancer.core.ticket import InstanceId, Ticket
from balancer.scheduling.strategies import Strategy
from balancer.simulator.virtual.prefix_tree import PrefixTree
from balancer.simulator.virtual.work import Observation

_NEVER_IF_AVOIDABLE = 1e12
"""Added to the score of what is picked only where all candidates have it added; above all other terms."""


@runtime_checkable
class Learner(Protocol):
    """A strategy that wants to be told how answers went."""

    def observe(self, observation: Observation) -> None:
        """An answer has ended, just now."""


class PeakEwma:
    """Of two drawn by chance, the one with the lower product of latency and requests outstanding; the
    latency is the highest seen, which fades until a higher one comes.

    Latency is the time to the first byte, as linkerd takes it: that of a whole answer tells of its length.
    Finagle decays its average at every look and not only when an answer comes; as looks are far more
    frequent, what is left of an answer below the average is nothing, which is how it is computed here. Time
    is known by what happens last: a request comes, or an answer ends.
    Source: twitter/finagle, PeakEwma.scala, commit 1e8497ea (the cost, the penalty of what has not answered
    yet), and Balancers.scala (10 s); linkerd/linkerd2-proxy, balance.rs, commit 0ef01eaf (the first byte).
    """

    DECAY_SECONDS = 10.0
    PENALTY = ((2**63 - 1) >> 16) / 1e9

    def __init__(self, random: Random) -> None:
        self._random = random
        self._peaks: dict[InstanceId, tuple[float, float]] = {}
        self._now = float("-inf")

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        now = max(self._now, ticket.queued_at)
        ids = sorted(each.id for each in candidates)
        drawn = set(self._random.sample(ids, min(2, len(ids))))
        terms = [
            {
                "latency_by_outstanding": self._cost(each, now),
                "not_drawn": 0.0 if each.id in drawn else _NEVER_IF_AVOIDABLE,
            }
            for each in candidates
        ]
        return told(Asked.by(ticket), candidates, terms)

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        pass

    def observe(self, observation: Observation) -> None:
        self._now = max(self._now, observation.at)
        latency = max(self._latency(observation.instance, self._now), observation.first_byte_seconds)
        self._peaks[observation.instance] = latency, self._now

    def _cost(self, instance: Candidate, now: float) -> float:
        latency = self._latency(instance.id, now)
        if not latency and instance.running:
            return self.PENALTY + instance.running
        return latency * (instance.running + 1)

    def _latency(self, instance: InstanceId, now: float) -> float:
        peak, seen_at = self._peaks.get(instance, (0.0, now))
        return peak * exp((seen_at - now) / self.DECAY_SECONDS)


_EMPTY = PrefixTree(most_tokens=0, most_marks=0)
_COLD = PrefixTree(most_tokens=0, most_marks=0)
"""Stands for the tree of a model that is not resident."""


class _SentPrompts:
    """Which prompts were sent where: a tree for each instance and model, which begins anew with the pick
    that loads it.

    Limits: 2²⁶ characters, at 4 to a token, which is sglang's default size of a tree; and 2¹⁵ marks of it,
    as the endpoint picker of the Gateway API inference extension has 31,250 blocks for a server.
    """

    MOST_TOKENS = 2**24
    MOST_MARKS = 2**15

    def __init__(self) -> None:
        self._trees: dict[tuple[InstanceId, ModelName], PrefixTree] = {}
        self._ticket: Ticket | None = None

    def trees(self, ticket: Ticket, candidates: Sequence[Candidate]) -> list[PrefixTree]:
        """The trees of the ticket's model at each candidate. The pick that follows is of this ticket."""
        self._ticket = ticket
        if ticket.variant is None:
            return [_EMPTY] * len(candidates)
        model = ticket.variant.model
        return [self._trees.get((each.id, model), _EMPTY) if each.warm else _COLD for each in candidates]

    def sent(self, chosen: Candidate) -> None:
        """The last ticket goes there."""
        if self._ticket is None or self._ticket.variant is None:
            return
        model = self._ticket.variant.model
        tree = self._trees.get((chosen.id, model))
        if tree is None or not chosen.warm:
            tree = PrefixTree(most_tokens=self.MOST_TOKENS, most_marks=self.MOST_MARKS)
            self._trees[chosen.id, model] = tree
        tree.insert(self._ticket.prefix)


class PrefixTrie:
    """Where most of the prompt was sent before, if that is more than a share of it; else where the tree is
    smallest; and where the fewest requests run while instances are out of balance.

    It does not care where a model is resident, as the servers that it is made for have one model each.
    Source: sgl-project/sglang, sgl-router/src, policies/cache_aware.rs, commit 026f853b, with the defaults
    of its command line (main.rs, commit 0129b029: cache threshold 0.3, balance thresholds 64 and 1.5).
    """

    CACHE_THRESHOLD = 0.3
    BALANCE_ABSOLUTE = 64
    BALANCE_RELATIVE = 1.5

    def __init__(self, _random: Random) -> None:
        self._sent = _SentPrompts()

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        return told(Asked.by(ticket), candidates, self._terms(ticket, candidates))

    def _terms(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Sequence[Terms]:
        trees = self._sent.trees(ticket, candidates)
        running = [each.running for each in candidates]
        most, fewest = max(running), min(running)
        if most - fewest > self.BALANCE_ABSOLUTE and most > self.BALANCE_RELATIVE * fewest:
            return [{"running": float(each)} for each in running]
        prompt_tokens = ticket.prefix[-1][1] if ticket.prefix else 0
        matched = [each.matched_tokens(ticket.prefix) for each in trees]
        if max(matched) > self.CACHE_THRESHOLD * prompt_tokens:
            return [{"unmatched_tokens": float(prompt_tokens - each)} for each in matched]
        return [{"tree_tokens": float(each.tokens)} for each in trees]

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        self._sent.sent(chosen)


class ModelAware:
    """Where the model is resident, the fewest requests running per unit of weight; where it is nowhere,
    likewise among all.

    Source: nomyo-ai/nomyo-router, router.py, choose_endpoint, commit bfb2a33. There the requests of the
    model are counted where it is loaded; all are counted here, as all of them share the device.
    """

    def __init__(self, _random: Random) -> None:
        pass

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        terms = [
            {
                "running_per_weight": each.running / each.weight,
                "cold": 0.0 if each.warm else _NEVER_IF_AVOIDABLE,
            }
            for each in candidates
        ]
        return told(Asked.by(ticket), candidates, terms)

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        pass


class PrefillBatch:
    """The fewest new tokens to evaluate times requests in the batch, where the model is resident, else
    among all.

    Source: Zhang et al., LMetric: Simple is Better, arXiv 2603.15202, 2026: the product of the two. Its
    factors are 0 where nothing is new, or nothing runs, and hide each other then; so 64 tokens and the
    request itself are added.
    """

    ALWAYS_NEW_TOKENS = 64

    def __init__(self, _random: Random) -> None:
        self._sent = _SentPrompts()

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        prompt_tokens = ticket.prefix[-1][1] if ticket.prefix else ticket.prompt_tokens or 0
        trees = self._sent.trees(ticket, candidates)
        terms = [
            {
                "new_tokens_by_batch": float(
                    (prompt_tokens - tree.matched_tokens(ticket.prefix) + self.ALWAYS_NEW_TOKENS)
                    * (each.running + 1)
                ),
                "cold": _NEVER_IF_AVOIDABLE if tree is _COLD else 0.0,
            }
            for each, tree in zip(candidates, trees, strict=True)
        ]
        return told(Asked.by(ticket), candidates, terms)

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        self._sent.sent(chosen)


RIVALS: Mapping[str, Callable[[Random], Strategy]] = {
    "p2c_ewma": PeakEwma,
    "prefix_trie": PrefixTrie,
    "model_aware_least_connections": ModelAware,
    "prefill_batch": PrefillBatch,
}
