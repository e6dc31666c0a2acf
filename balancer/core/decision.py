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
    seconds), None when only an event can change it.
    """

    ticket: Ticket
    at: float
    strategy: str
    standing: Standing
    picked: InstanceId | None
    considered: tuple[Considered, ...]
    next_wake_at: float | None = None

    @property
    def reason(self) -> str:
        """In one short phrase without names, fit for a header."""
        open_to_it = sum(1 for each in self.considered if each.filtered is None)
        if self.standing is Standing.LOAD:
            return f"{self.strategy}: to be loaded, best of {open_to_it} of {len(self.considered)}"
        if self.standing is not Standing.PICKED:
            return self.standing.value
        retry = f", try {self.ticket.attempt}" if self.ticket.attempt > 1 else ""
        return f"{self.strategy}: best of {open_to_it} free of {len(self.considered)}{retry}"

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
