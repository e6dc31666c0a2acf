"""A decision: which instance a ticket goes to and why, kept as data and told in words on request."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from balancer.core.ticket import InstanceId, Ticket


class Standing(StrEnum):
    """Where a ticket stands after it was looked at.

    `load`: the instance picked has the model on its disk only, and is to load it; `busy`: something
    that will end keeps it waiting; `held_back`: breakers are open wherever it could go; `unserved`: the
    instances that have the model are of runtimes that do not serve what is asked.
    """

    PICKED = "picked"
    LOAD = "load"
    BUSY = "busy"
    NO_INSTANCE = "no_instance"
    HELD_BACK = "held_back"
    UNKNOWN_MODEL = "unknown_model"
    UNSERVED = "unserved"
    EXHAUSTED = "exhausted"


class Considered(msgspec.Struct, frozen=True, kw_only=True):
    """One instance as the decision saw it: `filtered` names the filter that took it out, or is
    None; `score` is the strategy's, lower is better, with the terms that it was made of."""

    instance: InstanceId
    filtered: str | None = None
    score: float | None = None
    terms: Mapping[str, float] = msgspec.field(default_factory=dict)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided for one ticket at one time. `picked` is where it goes, or what is to load.

    `next_wake_at` is when it is worth deciding again though nothing happened (monotonic
    seconds), None when only an event can change it. `instances` are all that there were, `filtered` tells
    what took which of them out, `terms` of what the scores of the others are the sums, where they were
    scored. `waits_for_room`: memory that becomes free anywhere may end the wait. `by_choice`: it could go
    somewhere and is better off waiting.
    """

    ticket: Ticket
    at: float
    strategy: str
    standing: Standing
    picked: InstanceId | None
    instances: tuple[InstanceId, ...]
    filtered: Mapping[InstanceId, str]
    terms: Mapping[InstanceId, Mapping[str, float]]
    next_wake_at: float | None = None
    waits_for_room: bool = False
    by_choice: bool = False

    @property
    def considered(self) -> tuple[Considered, ...]:
        """Every instance as the decision saw it, in the order of the configuration."""
        return tuple(self._considered(each) for each in self.instances)

    def _considered(self, instance: InstanceId) -> Considered:
        terms = self.terms.get(instance)
        return Considered(
            instance=instance,
            filtered=self.filtered.get(instance),
            score=None if terms is None else sum(terms.values()),
            terms=terms or {},
        )

    @property
    def reason(self) -> str:
        """In one short phrase without names, fit for a header."""
        open_to_it = len(self.instances) - len(self.filtered)
        if self.standing is Standing.LOAD:
            return f"{self.strategy}: to be loaded, best of {open_to_it} of {len(self.instances)}"
        if self.standing is not Standing.PICKED:
            return self.standing.value
        retry = f", try {self.ticket.attempt}" if self.ticket.attempt > 1 else ""
        return f"{self.strategy}: best of {open_to_it} free of {len(self.instances)}{retry}"

    def explain(self) -> dict[str, object]:
        """The whole decision as JSON-ready data: who was filtered and by what, every score and its terms."""
        return {
            "request": self.ticket.id,
            "model": str(self.ticket.variant) if self.ticket.variant else None,
            "attempt": self.ticket.attempt,
            "waited_seconds": round(self.at - self.ticket.queued_at, 6),
            "strategy": self.strategy,
            "standing": self.standing.value,
            "picked": self.picked,
            "reason": self.reason,
            "considered": [
                {
                    "instance": each.instance,
                    "filtered": each.filtered,
                    "score": each.score,
                    "terms": dict(each.terms),
                }
                for each in self.considered
            ],
        }
