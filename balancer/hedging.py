"""Hedging: where the first instance is unusually slow to begin its answer, a second one is asked, too. Who
begins first answers; the other is cancelled.

For requests that cost little to be made twice, on slots that nobody else wants, and for a small share of all
requests: what makes an instance slow is often load, which asking twice adds to.
Source: J. Dean and L. A. Barroso, The Tail at Scale, Communications of the ACM 56(2), 2013.
"""

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import msgspec

from balancer.accounting.first_bytes import FirstBytes, Sort, sort_of
from balancer.accounting.record import RequestRecord
from balancer.clock import Clock
from balancer.core.ticket import Lease, Ticket
from balancer.dispatch import Dispatcher
from balancer.errors import InstanceError
from balancer.protocol.failures import Retry
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics
from balancer.upstream.client import UpstreamRequest
from balancer.upstream.exchange import Exchange

KEPT = 10.0
"""So many hedges are kept for later of a share that is not used: an instance that hangs holds up several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of one try: an answer that has begun, or a failure; `reason` is a bounded word for what
    another instance may do better. `next` is the ticket of the try after it, `broken` the lease where the
    instance broke down under it."""

    lease: Lease
    next: Ticket
    exchange: Exchange | None = None
    failure: InstanceError | None = None
    reason: str = ""
    retry: Retry = Retry.NO
    broken: Lease | None = None

    @property
    def final(self) -> bool:
        """Whether it is an answer that no other instance may do better than."""
        return self.exchange is not None and self.retry is Retry.NO


class Tries(Protocol):
    """Who makes them."""

    def leased(self, lease: Lease, record: RequestRecord) -> None:
        """A request goes there; its record tells of this try from now on."""

    async def try_at(self, lease: Lease, record: RequestRecord, upstream: UpstreamRequest) -> Tried:
        """Ask there. Whatever ends it but a good answer gives the lease back."""

    def take(self, tried: Tried, record: RequestRecord) -> Exchange:
        """The exchange of a final try, whose lease goes back with its end from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgePolicy:
    """Whether there are any, for which share of all requests at most, and not before how long."""

    enabled: bool = False
    max_share: float = 0.02
    min_delay_seconds: float = 0.05


class _Entrant(NamedTuple):
    """One of those who are asked."""

    lease: Lease
    record: RequestRecord
    task: asyncio.Task[Tried]


class Hedging:
    """Of one balancer. `policy` may be replaced at any time."""

    def __init__(
        self, *, dispatcher: Dispatcher, policy: HedgePolicy, metrics: Metrics, clock: Clock, log: Logger
    ) -> None:
        self._dispatcher = dispatcher
        self.policy = policy
        self._hedges = metrics.hedges
        self._clock = clock
        self._log = log
        self._first_bytes = FirstBytes()
        self._credit = 0.0

    async def tried(
        self, tries: Tries, lease: Lease, record: RequestRecord, upstream: UpstreamRequest
    ) -> Tried:
        """What came of a try, and of that of a second instance where one was asked. Where both failed, it is
        the last failure, and the next try excludes both. Of a retry there is no hedge."""
        ticket, operation = lease.ticket, record.operation
        if not self.policy.enabled:
            return await tries.try_at(lease, record, upstream)
        if ticket.needs_slot and ticket.attempt == 1:
            self._credit = min(KEPT, self._credit + self.policy.max_share)
        if not record.hedgeable or operation is None:
            return await tries.try_at(lease, record, upstream)
        sort = sort_of(operation, ticket)
        slow_after = self._first_bytes.slow_after(sort) if ticket.attempt == 1 else None
        if slow_after is None:
            tried = await tries.try_at(lease, record, upstream)
        else:
            delay = max(slow_after, self.policy.min_delay_seconds)
            tried = await self._hedged(tries, lease, record, upstream, delay)
        self._learn(sort, tried, lease)
        return tried

    async def _hedged(
        self,
        tries: Tries,
        lease: Lease,
        record: RequestRecord,
        upstream: UpstreamRequest,
        delay: float,
    ) -> Tried:
        entrants: list[_Entrant] = []
        taken: _Entrant | None = None
        # A task that is cancelled before it has begun would keep its lease. None is: it begins before whoever
        # waits for it goes on, as the loop takes turns in order.
        try:
            async with asyncio.TaskGroup() as group:
                first = group.create_task(tries.try_at(lease, record, upstream))
                entrants.append(_Entrant(lease, record, first))
                await asyncio.wait({first}, timeout=delay)
                second = None if first.done() else self._second_lease(lease.ticket.excluding(lease.instance))
                if second is not None:
                    own = copy.copy(record)
                    tries.leased(second, own)
                    record.attempts = own.attempts
                    asked = group.create_task(tries.try_at(second, own, upstream))
                    entrants.append(_Entrant(second, own, asked))
                best = await _first_final(entrants)
                for each in entrants:
                    each.task.cancel()
            taken = best
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._end(tries, entrants, taken, delay)
        return _outcome(entrants, taken)

    def _second_lease(self, ticket: Ticket) -> Lease | None:
        """A slot for a hedge, if there may be one more."""
        if self._credit < 1:
            return None
        lease = self._dispatcher.lend_idle(ticket)
        if lease is not None:
            self._credit -= 1
        return lease

    def _end(self, tries: Tries, entrants: Sequence[_Entrant], taken: _Entrant | None, delay: float) -> None:
        """Cancel whoever had begun at the same moment, and tell of the hedge."""
        for each in entrants:
            tried = _result(each.task)
            if each is not taken and tried is not None and tried.final:
                tries.take(tried, each.record).cancel()
        if len(entrants) < 2:
            return
        (first, second), record = entrants, entrants[0].record
        record.hedge = _fate(second, taken)
        if taken is second:
            _take_over(record, second.record)
        self._hedges.labels(record.hedge).inc()
        self._log.debug(
            "hedge_ended",
            id=record.id,
            model=record.model,
            first=first.lease.instance,
            second=second.lease.instance,
            delay_seconds=round(delay, 6),
            outcome=record.hedge,
        )

    def _learn(self, sort: Sort, tried: Tried, first: Lease) -> None:
        """From good answers. Where the second began sooner, the first counts with the time that it had, or
        what is learned would be of the quick alone."""
        if tried.exchange is None or tried.exchange.status >= 400:
            return
        now = self._clock.monotonic()
        self._first_bytes.learn(sort, now - tried.lease.leased_at)
        if tried.lease is not first:
            self._first_bytes.learn(sort, now - first.leased_at)


async def _first_final(entrants: Sequence[_Entrant]) -> _Entrant:
    """Who has a final answer first, of two at once who was asked first; where none has, who failed last."""
    pending = {each.task for each in entrants}
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        news = [each for each in entrants if each.task in done]
        final = [each for each in news if each.task.result().final]
        if final:
            return final[0]
        if not pending:
            return news[-1]


def _result(task: asyncio.Task[Tried]) -> Tried | None:
    """None where it was cancelled, or ended by a defect."""
    return None if task.cancelled() or task.exception() is not None else task.result()


def _fate(second: _Entrant, taken: _Entrant | None) -> str:
    """What became of a hedge, in a bounded word."""
    if taken is None:
        return "cancelled"
    tried = _result(second.task)
    if tried is not None and not tried.final:
        return "failed"
    return "won" if taken is second else "lost"


def _outcome(entrants: Sequence[_Entrant], taken: _Entrant) -> Tried:
    """What came of all; where all failed, the next try goes to none of them."""
    tried = taken.task.result()
    if tried.final or len(entrants) < 2:
        return tried
    first, second = (each.task.result() for each in entrants)
    excluded = first.next.excluded | (second.next.excluded - second.lease.ticket.excluded)
    return replace(tried, next=msgspec.structs.replace(second.next, excluded=excluded))


def _take_over(record: RequestRecord, other: RequestRecord) -> None:
    """The request was answered by the try that the other record tells of."""
    record.instance, record.reason = other.instance, other.reason
    record.leased_at, record.answered_at = other.leased_at, other.answered_at
    record.believed_share = other.believed_share
