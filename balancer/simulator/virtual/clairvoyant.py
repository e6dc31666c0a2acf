"""A strategy that knows what no balancer can: how long everything will take, and what will be asked next.

It is the best that is known, to tell how much is left to be gained, and no bound: it decides for one request
at a time. What it knows it asks of an oracle, which only the simulation can be.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from balancer.core.names import ModelName
from balancer.core.scores import Asked, Candidate, Scores, Terms, told
from balancer.core.ticket import InstanceId, Ticket

HORIZON_SECONDS = 60.0
"""So far it sees the requests to come."""


class Outlook(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What it comes to if a request is sent to an instance now; true seconds.

    `slot_seconds` pass until a slot is free there, or until its load begins; then `load_seconds`, if the
    model is not resident; then `prefill_seconds` for what of its prompt is not cached there, and
    `decode_seconds` for its answer, beside the company that it will have. `slowdown_seconds` is by how much
    all requests that run there end later for it, added up. `unloads` are the models that its load leaves
    resident nowhere, with the seconds that the load of each takes.
    """

    slot_seconds: float = 0.0
    load_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    slowdown_seconds: float = 0.0
    unloads: tuple[tuple[ModelName, float], ...] = ()


class Oracle(Protocol):
    """What the simulation knows; asking changes nothing."""

    def outlook(self, ticket: Ticket, instance: InstanceId) -> Outlook:
        """What it comes to if the request is sent there now."""

    def arrivals(self, model: ModelName) -> Sequence[float]:
        """In how many seconds requests for the model come, in order, as far as the horizon."""


class Clairvoyant:
    """Where the seconds are fewest that the request takes, that it costs those which run, and that it will
    cost those which ask for a model that has to leave.

    Those wait until the model is loaded again, which begins as the first of them comes. The sooner that is,
    the more it counts: at the horizon as little as a model that nobody asks for. So what leaves is what is
    needed last (Belady's rule).
    """

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        terms = [self._terms(self._oracle.outlook(ticket, each.id)) for each in candidates]
        return told(Asked.by(ticket), candidates, terms)

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        pass

    def _terms(self, outlook: Outlook) -> Terms:
        return {
            "wait": outlook.slot_seconds + outlook.load_seconds,
            "service": outlook.prefill_seconds + outlook.decode_seconds,
            "slowdown_of_others": outlook.slowdown_seconds,
            "loads_to_come": sum(self._regret(*each) for each in outlook.unloads),
        }

    def _regret(self, model: ModelName, load_seconds: float) -> float:
        """Seconds that requests to come will wait for a model that leaves now."""
        arrivals = self._oracle.arrivals(model)
        if not arrivals or arrivals[0] >= HORIZON_SECONDS:
            return 0.0
        back_at = arrivals[0] + load_seconds
        waits = sum(back_at - each for each in arrivals if each < back_at)
        return waits * (1 - arrivals[0] / HORIZON_SECONDS)
