"""Lessons: what the counters of an answer, and the company that it had, teach of its instance.

Of whole answers alone, and of the life of the instance that they came from. Streams of OpenAI's and
Anthropic's dialects carry no durations; they teach how long answers are and nothing else.
"""

from balancer.clock import Clock
from balancer.core.operation import Kind, Operation
from balancer.core.ticket import Lease, Outcome, Verdict
from balancer.fleet.courses import Course
from balancer.fleet.instance import Instance
from balancer.fleet.rates import Work
from balancer.protocol.endings import Counters


class Lessons:
    """Follows each lease of a slot for as long as its instance has a part in it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._courses: dict[int, tuple[Instance, Course]] = {}

    def begin(self, lease: Lease, instance: Instance | None, *, streams: bool) -> None:
        """A request is sent to an instance, if that is still there, for an answer that streams or not."""
        variant = lease.ticket.variant
        if instance is not None and variant is not None and lease.ticket.needs_slot:
            now, sharing = self._clock.monotonic(), instance.sharing(variant.model)
            course = instance.learned.begin(variant.model, now, streams=streams, sharing=sharing)
            self._courses[lease.id] = instance, course

    def answered(self, lease: Lease) -> None:
        """The first byte of its answer is in."""
        if lease.id in self._courses:
            self._courses[lease.id][1].answered(self._clock.monotonic())

    def end(self, lease: Lease, outcome: Outcome, work: Work | None) -> None:
        """Its instance has no more part in it; `work` tells of a whole answer. What comes from an earlier
        life of the instance teaches nothing."""
        instance, course = self._courses.pop(lease.id, (None, None))
        variant = lease.ticket.variant
        if instance is None or course is None or variant is None:
            return
        instance.learned.learn(
            variant.model,
            course,
            work if lease.incarnation == instance.incarnation else None,
            self._clock.monotonic(),
            left=outcome.verdict is not Verdict.SUCCESS and outcome.kind != "rejected",
            sharing=instance.sharing(variant.model),
            told=instance.slots_told(variant),
            generation=instance.generation_of(variant.model),
        )


def work_of(
    operation: Operation | None, counters: Counters, asked_tokens: int, believed_share: float = 0.0
) -> Work:
    """What the counters of a whole answer tell; that share of its prompt is believed to have been cached. An
    embedding has no other parts than its prompt."""
    prompt_seconds, left_over = counters.prompt_seconds, None
    if counters.total_seconds is not None:
        rest = counters.total_seconds - (counters.load_seconds or 0.0)
        if prompt_seconds is not None:
            left_over = max(0.0, rest - prompt_seconds - (counters.generation_seconds or 0.0))
        elif operation is not None and operation.kind is Kind.EMBED:
            prompt_seconds = rest
    return Work(
        prompt_tokens=counters.prompt_tokens,
        cached_tokens=round(believed_share * (counters.prompt_tokens or 0)),
        prompt_seconds=prompt_seconds,
        output_tokens=counters.generated_tokens,
        output_seconds=counters.generation_seconds,
        left_over_seconds=left_over,
        asked_tokens=asked_tokens,
    )
