"""Overload: how long a request that waits has to wait, and who is turned away where not all can be served.

    wait = (work before it + half of one that runs) / capacity

Work is in seconds of a device's time, and capacity in such seconds a second: how many devices a model has for
itself now. Nothing is turned away for the time that it takes before there was anything to measure.

Three bounds: of the number that waits; of the time that a request may wait, which it is told at once where
it cannot be kept, and in consequence of all work that waits for a model; and of the delay of a class where
the operator wants one. Where that delay stands, as the class has had too much before it for several times as
long, its newest requests are turned away, and all new ones of worse classes. Whoever has most waiting is
turned away first, so that a client that asks for much does not crowd out one that asks for little.

Source of the standing delay: Nichols and Jacobson, Controlling Queue Delay, ACM Queue 2012, with the delay
estimated from the backlog as in RFC 8033.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from balancer.admission.backlog import CLASSES, model_of
from balancer.admission.queue import RequestQueue
from balancer.core.names import ModelName
from balancer.core.ticket import Priority, Ticket
from balancer.errors import QueueFull, QueueTooLong, Shed

INTERVALS = 4.0
"""So many times its delay a class has too much before it until that counts as standing."""
_WORK_LIMIT = 2.0
"""All that waits for a model is at most so many times what can be done in the longest wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitLimits:
    """The longest wait of any request, and the delays of classes that are held to one; in seconds."""

    longest: float
    standing: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast work for a model gets done: in seconds of a device's time a second, and the mean work of a
    request. None where that is not known."""

    capacity: float
    mean_work: float

    def seconds(self, work: float) -> float:
        """How long until so much is done, and a slot is free."""
        return (work + self.mean_work / 2) / self.capacity


class Overload:
    """Of one queue."""

    def __init__(self, queue: RequestQueue, limits: WaitLimits) -> None:
        self._queue = queue
        self._limits = limits
        self._above_since: dict[tuple[ModelName, Priority], float] = {}
        self._stands_until: dict[tuple[ModelName, Priority], float] = {}

    def use(self, limits: WaitLimits) -> None:
        """Other limits from now on; no delay stands yet that is not the same as before."""
        if limits.standing != self._limits.standing:
            self._above_since.clear()
            self._stands_until.clear()
        self._limits = limits

    def turn_away(self, ticket: Ticket, pace: Pace | None, now: float) -> tuple[Ticket, QueueFull] | None:
        """Who is to leave the queue now that a ticket came to it, which may be that one itself, and what to
        tell it; None where all can stay."""
        queue, model = self._queue, model_of(ticket)
        retry_after = self.retry_after(ticket, pace)
        if len(queue) > queue.limit:
            told = f"the queue is full ({queue.limit} requests wait); try again later"
            return queue.backlog.dearest() or ticket, QueueFull(told, retry_after_seconds=retry_after)
        if pace is None:
            return None
        wait = pace.seconds(queue.backlog.before_newest(ticket))
        if wait > ticket.deadline - now:
            told = f"it would wait for about {wait:.0f} s, longer than it may ({ticket.deadline - now:.0f} s)"
            too_long = min(wait - (ticket.deadline - now), self._limits.longest)
            return ticket, QueueTooLong(told, retry_after_seconds=too_long)
        if queue.backlog.work(model, CLASSES[-1]) > _WORK_LIMIT * self._limits.longest * pace.capacity:
            told = "more waits for the model than can be done in time; try again later"
            loser = queue.backlog.dearest(of=model) or ticket
            return loser, QueueTooLong(told, retry_after_seconds=retry_after)
        if self._must_shed(model, ticket.priority, pace, now):
            told = f"the fleet is overloaded, and '{ticket.priority.value}' requests are turned away"
            loser = queue.backlog.dearest(of=model, among=(ticket.priority,)) or ticket
            return loser, Shed(f"{told}; try again later", retry_after_seconds=retry_after)
        return None

    def eased(self, ticket: Ticket, pace: Pace | None) -> None:
        """A ticket left the queue: delays that are kept again do not stand."""
        if self._above_since:
            model = model_of(ticket)
            for priority in CLASSES:
                if (model, priority) in self._above_since and not self._above(model, priority, pace):
                    del self._above_since[model, priority]

    def retry_after(self, ticket: Ticket, pace: Pace | None) -> float:
        """How long until what waits for the same in its class and better ones is likely to have been served,
        or has given up; 1 second where nothing was measured yet."""
        if pace is None:
            return 1.0
        served = pace.seconds(self._queue.backlog.work(model_of(ticket), ticket.priority))
        return max(1.0, min(served, self._limits.longest))

    def _must_shed(self, model: ModelName, priority: Priority, pace: Pace, now: float) -> bool:
        """Whether a class has no place for one more: its delay stands and is too long, or that of a better
        one stands."""
        shed = False
        for each in CLASSES[: CLASSES.index(priority) + 1]:
            above = self._above(model, each, pace)
            stands = self._stands(model, each, now, above=above)
            shed |= stands and (above or each is not priority)
        return shed

    def _above(self, model: ModelName, priority: Priority, pace: Pace | None) -> bool:
        delay = self._limits.standing.get(priority)
        if delay is None or pace is None or self._queue.backlog.count(model, priority) < 2:
            return False
        return self._queue.backlog.work(model, priority) / pace.capacity > delay

    def _stands(self, model: ModelName, priority: Priority, now: float, *, above: bool) -> bool:
        """It stands from when it has been above for several times the delay, until it has not been for as
        long."""
        key = model, priority
        if above:
            interval = INTERVALS * self._limits.standing[priority]
            since = self._above_since.setdefault(key, now)
            if now - since >= interval or key in self._stands_until:
                self._stands_until[key] = now + interval
        else:
            self._above_since.pop(key, None)
        if now >= self._stands_until.get(key, now):
            self._stands_until.pop(key, None)
            return False
        return True
