"""A decision: which instance a ticket goes to and why, kept as data and told in words on request."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from balancer.core.scores import Scores
from balancer.core.ticket import InstanceId, Ticket, TicketId

MODEL_NOT_THERE = "model not there"
"""The filter that takes out most."""
_REASON_CHARACTERS = 120


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
    None; `score` is the strategy's, lower is better, with the terms that it was made of and the facts that
    those were computed from."""

    instance: InstanceId
    filtered: str | None = None
    score: float | None = None
    terms: Mapping[str, float] = msgspec.field(default_factory=dict)
    facts: Mapping[str, object] = msgspec.field(default_factory=dict)


class Wait(msgspec.Struct, frozen=True):
    """That a ticket is better off waiting than going to an instance that could take it: until when at the
    latest (monotonic seconds), and what for."""

    until: float
    why: str
    instead_of: InstanceId


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided for one ticket at one time. `picked` is where it goes, or what is to load.

    `next_wake_at` is when it is worth deciding again though nothing happened (monotonic
    seconds), None when only an event can change it. `instances` are all that there were; those that are not
    in `looked_at` have not the model. `filtered` tells what took which of them out, `scores` of what the
    scores of the others were made, None where none was scored. `waits_for_room`: memory that becomes free
    anywhere may end the wait. `wait`: it could go somewhere and is better off waiting. `window` are those
    that could have gone, with what each would have cost at best less what it has waited for, the first
    first, where there was a choice. `pairs` of a ticket and an instance were scored. `hedge`: it is for a
    request that is under way elsewhere.
    """

    ticket: Ticket
    at: float
    strategy: str
    standing: Standing
    picked: InstanceId | None
    instances: Sequence[InstanceId]
    looked_at: Sequence[InstanceId]
    filtered: Mapping[InstanceId, str]
    scores: Scores | None = None
    next_wake_at: float | None = None
    waits_for_room: bool = False
    wait: Wait | None = None
    window: Sequence[tuple[TicketId, float]] = ()
    pairs: int = 0
    hedge: bool = False

    @property
    def by_choice(self) -> bool:
        """Whether it waits though it could go somewhere."""
        return self.wait is not None

    @property
    def considered(self) -> tuple[Considered, ...]:
        """Every instance as the decision saw it, in the order of the configuration."""
        scored = {} if self.scores is None else {each.id: i for i, each in enumerate(self.scores.candidates)}
        looked_at = frozenset(self.looked_at)
        return tuple(self._considered(each, scored.get(each), each in looked_at) for each in self.instances)

    def _considered(self, instance: InstanceId, index: int | None, looked_at: bool) -> Considered:
        if not looked_at:
            return Considered(instance=instance, filtered=MODEL_NOT_THERE)
        if self.scores is None or index is None:
            return Considered(instance=instance, filtered=self.filtered.get(instance))
        return Considered(
            instance=instance,
            score=self.scores.values[index],
            terms=self.scores[index],
            facts=self.scores.facts(index),
        )

    @property
    def reason(self) -> str:
        """Why there, by the strategy's name and one short phrase of ASCII without names of instances, fit for
        a header; the standing where it goes nowhere."""
        if self.picked is None:
            return self.standing.value
        again = "; retry after a failure" if self.ticket.excluded else ""
        again += f"; try {self.ticket.attempt}" if self.ticket.attempt > 1 else ""
        again = "; hedge" if self.hedge else again
        why = f"{self.strategy}: {self._because(self.picked)}"
        return why[: _REASON_CHARACTERS - len(again)] + again

    def _because(self, picked: InstanceId) -> str:
        if self.scores is None:
            return "the model was loaded there for it"
        load = "to be loaded there, " if self.standing is Standing.LOAD else ""
        candidates, count = self.scores.candidates, len(self.instances)
        if len(candidates) == 1:
            alone = "the only instance" if count == 1 else f"the only one of {count} that can take it now"
            return load + alone
        index = next(index for index, each in enumerate(candidates) if each.id == picked)
        return load + self.scores.formula.because(self.scores, index)

    def explain(self) -> dict[str, object]:
        """The whole decision as JSON-ready data: who was filtered and by what, every score with its terms and
        facts, who else could have gone, what it waits for. Times are seconds from the decision on."""
        return {
            "request": self.ticket.id,
            "model": str(self.ticket.variant) if self.ticket.variant else None,
            "prompt_tokens": self.ticket.prompt_tokens,
            "needs_slot": self.ticket.needs_slot,
            "attempt": self.ticket.attempt,
            "waited_seconds": round(self.at - self.ticket.queued_at, 6),
            "strategy": self.strategy,
            "standing": self.standing.value,
            "picked": self.picked,
            "reason": self.reason,
            "waiting": self._waiting(),
            "window": [{"request": ticket, "cost_seconds": cost} for ticket, cost in self.window],
            "considered": [
                {
                    "instance": each.instance,
                    "filtered": each.filtered,
                    "score": each.score,
                    "terms": dict(each.terms),
                    "facts": dict(each.facts),
                }
                for each in self.considered
            ],
        }

    def _waiting(self) -> dict[str, object] | None:
        """Until when at the latest it waits before it is looked at again, and why; None where it does not."""
        if self.standing is not Standing.BUSY:
            return None
        seconds = None if self.next_wake_at is None else round(self.next_wake_at - self.at, 6)
        if self.wait is not None:
            return {"why": self.wait.why, "instead_of": self.wait.instead_of, "at_most_seconds": seconds}
        holds = dict.fromkeys(self.filtered.values())
        return {"why": ", ".join(holds), "instead_of": None, "at_most_seconds": seconds}
