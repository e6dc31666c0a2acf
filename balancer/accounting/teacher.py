"""What a request teaches of the instance that it went to: how fast that is, what it has cached, how many
slots it has, and how healthy it is. The tries of a request tell of each step of a lease here.
"""

from balancer.accounting.lessons import Lessons, work_of
from balancer.accounting.observation import observation
from balancer.accounting.prefix_learner import PrefixLearner
from balancer.accounting.record import RequestRecord
from balancer.clock import Clock
from balancer.core.ticket import Lease, Outcome, Verdict
from balancer.fleet.fleet import Fleet

LOADED_SECONDS = 1.0
"""An answer that tells of a longer load carried one: other models may have made room for it."""


class Teacher:
    """Of one fleet."""

    def __init__(self, *, fleet: Fleet, prefixes: PrefixLearner, clock: Clock) -> None:
        self._fleet = fleet
        self._prefixes = prefixes
        self._clock = clock
        self._lessons = Lessons(clock)

    def leased(self, lease: Lease, record: RequestRecord) -> None:
        """A request goes there."""
        record.believed_share = self._prefixes.leased(lease.ticket, lease.instance)
        streams = record.operation is not None and record.operation.stream
        self._lessons.begin(lease, self._fleet.find(lease), streams=streams)

    def answered(self, lease: Lease) -> None:
        """The first byte of its answer is in."""
        self._lessons.answered(lease)

    def evaluated(self, lease: Lease) -> None:
        """The answer is a good one, so the prompt was evaluated."""
        self._prefixes.began(lease.ticket, lease.instance)

    def ended(self, lease: Lease, record: RequestRecord, outcome: Outcome) -> None:
        """The instance has no more part in it. To be told before its slot is lent again, as it may turn out
        that there are fewer."""
        work = None
        if outcome.verdict is Verdict.SUCCESS and record.operation is not None:
            self._learn_whole(lease, record)
            tokens, believed = lease.ticket.prompt_tokens or 0, record.believed_share or 0.0
            work = work_of(record.operation, record.counters, tokens, believed)
        self._lessons.end(lease, outcome, work)

    def _learn_whole(self, lease: Lease, record: RequestRecord) -> None:
        assert record.operation is not None
        loaded = carried_load(record)
        record.inferred_share = self._prefixes.ended(
            lease.ticket,
            lease.instance,
            record.counters,
            believed_share=record.believed_share or 0.0,
            loaded=loaded,
            kept=record.operation.keeps_model,
        )
        instance, variant = self._fleet.find(lease), lease.ticket.variant
        if instance is None or variant is None or loaded or not lease.ticket.needs_slot:
            return
        seen = observation(record)
        if seen is not None:
            instance.observed(variant.model, seen, self._clock.monotonic())


def carried_load(record: RequestRecord) -> bool:
    """Whether the answer tells that a model was loaded for it."""
    return (record.counters.load_seconds or 0.0) > LOADED_SECONDS
