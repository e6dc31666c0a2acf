"""A ticket's tries: lease, send, wait for the head of an answer, and elsewhere if that fails.

A try ends where a head is in; from then on nothing can be taken back. Each lease goes back exactly
once: at once where its try failed, else when its exchange at the instance has ended.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from balancer.accounting.ledger import Ledger
from balancer.accounting.record import RequestRecord
from balancer.clock import Clock
from balancer.core.ticket import InstanceId, Lease, Outcome, Ticket, Verdict
from balancer.dispatch import Dispatcher
from balancer.errors import BalancerError, ConnectFailed, InstanceError, NoInstance, UnknownModel
from balancer.fleet.fleet import Fleet
from balancer.protocol.endings import Ending, judge
from balancer.upstream.client import UpstreamClient, UpstreamRequest
from balancer.upstream.exchange import Exchange

_REFRESH_SECONDS = 1.0
_SILENCE_SECONDS = 2.0


class Attempts:
    """`refresh` brings the fleet's lists up to date (older than, wait at most), `look` asks for a probe
    of one instance now."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        dispatcher: Dispatcher,
        client: UpstreamClient,
        ledger: Ledger,
        refresh: Callable[[float, float], Awaitable[None]],
        look: Callable[[InstanceId], None],
        clock: Clock,
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._client = client
        self._ledger = ledger
        self._refresh = refresh
        self._look = look
        self._clock = clock

    def retry_after_seconds(self) -> float:
        """When a request that was turned away may try again, as dispatch estimates it."""
        return self._dispatcher.retry_after_seconds()

    @asynccontextmanager
    async def answered(
        self, ticket: Ticket, upstream: UpstreamRequest, record: RequestRecord
    ) -> AsyncIterator[Exchange]:
        """An exchange whose head is in, at whichever instance gave one; its lease goes back when the
        instance has no more part in it, at the latest on the way out.

        Raises:
            UnknownModel: no instance has the model; names those that there are.
            FleetError: no slot, as dispatch says.
            InstanceError: no instance is left to try; what the last one met.
        """
        failure: InstanceError | None = None
        while True:
            lease = await self._lease(ticket, record, failure)
            try:
                exchange = await self._exchange(lease, upstream)
                break
            except InstanceError as error:
                self._failed(lease, record, error)
                if not error.retryable:
                    raise
                failure, ticket = error, ticket.excluding(lease.instance)
            except BaseException:
                self._return(lease, record, Outcome(verdict=Verdict.NEUTRAL, kind="cancelled"))
                raise
        del upstream  # its body is not needed again, and an answer may go on for long
        record.answered_at = self._clock.monotonic()
        exchange.when_ended(lambda error: self._ended(lease, record, _outcome(exchange, record, error)))
        try:
            yield exchange
        finally:
            exchange.cancel()

    async def _exchange(self, lease: Lease, upstream: UpstreamRequest) -> Exchange:
        """As the client's, with a probe of an instance that stays silent: should it turn out to be
        down, the exchange fails and the request can go elsewhere."""
        instance = self._fleet.get(lease.instance)
        loop = asyncio.get_running_loop()
        silence = loop.call_later(_SILENCE_SECONDS, self._look, instance.id)
        try:
            exchange = await self._client.exchange(instance.id, instance.spec.url, upstream)
        finally:
            silence.cancel()
        variant = lease.ticket.variant
        if variant is not None and lease.ticket.needs_slot and not instance.resident(variant.model):
            self._look(instance.id)
        return exchange

    async def _lease(self, ticket: Ticket, record: RequestRecord, failure: InstanceError | None) -> Lease:
        """A lease for the next try; where no instance is left to try, what the last one met."""
        if failure is not None:
            self._ledger.retried(failure.kind)
        started = self._clock.monotonic()
        try:
            lease = await self._acquire(ticket, record)
        except NoInstance as error:
            raise (failure or error) from error
        finally:
            record.queued_seconds += self._clock.monotonic() - started
        record.attempts = ticket.attempt
        record.instance, record.reason = lease.instance, lease.reason
        self._ledger.leased(record)
        return lease

    async def _acquire(self, ticket: Ticket, record: RequestRecord) -> Lease:
        """As dispatch, but a model that none seems to have is looked for once more: it may have been
        pulled at an instance since the lists were read."""
        try:
            return await self._dispatcher.acquire(ticket)
        except UnknownModel:
            await self._refresh(_REFRESH_SECONDS, _REFRESH_SECONDS)
        try:
            return await self._dispatcher.acquire(ticket)
        except UnknownModel as error:
            asked = record.operation.model if record.operation else None
            raise UnknownModel(asked or record.model, there_are=self._fleet.models()) from error

    def _failed(self, lease: Lease, record: RequestRecord, error: InstanceError) -> None:
        """One try met a failing instance. A refused connection marks it down, and does so before the
        lease goes back: its slot is not to be lent to the next."""
        self._ledger.failed(record, error.kind)
        if isinstance(error, ConnectFailed) and error.refused:
            instance = self._fleet.get(lease.instance)
            self._fleet.failed(instance, str(error), refused=True, incarnation=lease.incarnation)
        self._return(lease, record, Outcome(verdict=Verdict.FAILURE, kind=error.kind))

    def _ended(self, lease: Lease, record: RequestRecord, outcome: Outcome) -> None:
        """The instance has no more part in the exchange; a failure after the first byte counts too."""
        if outcome.verdict is Verdict.FAILURE:
            self._ledger.failed(record, outcome.kind)
        self._return(lease, record, outcome)

    def _return(self, lease: Lease, record: RequestRecord, outcome: Outcome) -> None:
        self._ledger.returned(record)
        self._dispatcher.release(lease, outcome)


def _outcome(exchange: Exchange, record: RequestRecord, error: BalancerError | None) -> Outcome:
    """What the end of an exchange says of its instance; a client's leaving says nothing."""
    status, operation = exchange.status, record.operation
    if isinstance(error, InstanceError) and not exchange.left:
        return Outcome(verdict=Verdict.FAILURE, kind="truncated")
    if error is not None:
        return Outcome(verdict=Verdict.NEUTRAL, kind="cancelled")
    if status >= 500:
        return Outcome(verdict=Verdict.FAILURE, kind="status")
    if status >= 400 or operation is None:
        return Outcome(verdict=Verdict.NEUTRAL, kind="rejected")
    if not exchange.streams:
        return Outcome(verdict=Verdict.SUCCESS, kind="ok")
    match judge(operation, exchange.tail):
        case Ending.WHOLE:
            return Outcome(verdict=Verdict.SUCCESS, kind="ok")
        case Ending.ERROR:
            return Outcome(verdict=Verdict.FAILURE, kind="error_record")
        case Ending.UNFINISHED:
            return Outcome(verdict=Verdict.NEUTRAL, kind="unfinished")
