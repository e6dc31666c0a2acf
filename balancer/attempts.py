"""A ticket's tries: lease, send, wait until an answer has begun, and elsewhere if that fails.

A try ends where the first piece of an answer is in; from then on nothing can be taken back. An error
answer that another instance may do better than is kept, and goes to the client where none can. Each
lease goes back exactly once: at once where its try failed, else when its exchange at the instance has
ended.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from balancer.accounting.ledger import Ledger
from balancer.accounting.outcomes import broken, outcome_of
from balancer.accounting.record import RequestRecord
from balancer.accounting.teacher import Teacher, carried_load
from balancer.admission.retry_budget import RetryBudget
from balancer.clock import Clock
from balancer.core.names import is_cloud_name
from balancer.core.plan import Runtime
from balancer.core.ticket import Blame, InstanceId, Lease, Outcome, Silence, Ticket, TicketId, Verdict
from balancer.dispatch import Dispatcher
from balancer.errors import (
    BalancerError,
    ConnectFailed,
    FleetError,
    InstanceDown,
    InstanceError,
    SlotLost,
    Stopping,
    Unfinished,
    UnknownModel,
    Unserved,
)
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.fleet.residency import EVICTION_SECONDS
from balancer.forwarding.adapted import adapted
from balancer.hedging import Hedging, Tried
from balancer.overdue import Overdue
from balancer.protocol.endings import read_counters
from balancer.protocol.failures import (
    BUSY,
    CRASH,
    MODEL_MISSING,
    OUT_OF_MEMORY,
    RUNTIME_LACKS,
    UNSERVED,
    Failure,
    Retry,
    classify,
    error_message,
    tells_of_no_path,
)
from balancer.upstream.client import UpstreamClient, UpstreamRequest
from balancer.upstream.exchange import Exchange

_REFRESH_SECONDS = 1.0
_SILENCE_SECONDS = 2.0
_ERROR_BODY_BYTES = 65536
_ERROR_BODY_SECONDS = 2.0
_CURES = 2
"""So often a request is sent again to where its slot was lost, after an unload and after a restart."""
FULL_SECONDS = 1.0
"""An instance that says that its queue is full is asked again after so long."""


class _Try:
    """One lease and what is sent under it; no two are equal."""

    __slots__ = ("lease", "streams", "upstream")

    def __init__(self, lease: Lease, upstream: UpstreamRequest, *, streams: bool) -> None:
        self.lease = lease
        self.upstream = upstream
        self.streams = streams


class Attempts:
    """`refresh` brings the fleet's lists up to date (older than, wait at most), `look` asks for a probe
    of one instance now, `out_of_memory` is told of one that met the end of its memory. An answer that has
    begun and then gives nothing for `silent_seconds` is cut."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        dispatcher: Dispatcher,
        client: UpstreamClient,
        ledger: Ledger,
        teacher: Teacher,
        hedging: Hedging,
        refresh: Callable[[float, float], Awaitable[None]],
        look: Callable[[InstanceId], None],
        out_of_memory: Callable[[Instance], None],
        clock: Clock,
        silent_seconds: float,
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._client = client
        self._ledger = ledger
        self._refresh = refresh
        self._look = look
        self._out_of_memory = out_of_memory
        self._clock = clock
        self.silent_seconds = silent_seconds
        self._budget = RetryBudget()
        self._silent: Overdue[_Try] = Overdue(_SILENCE_SECONDS, self._stays_silent)
        self._long_silent: dict[_Try, Silence] = {}
        self._teacher = teacher
        self.hedging = hedging

    def retry_after_seconds(self, ticket: Ticket) -> float:
        """When a request that was turned away may try again, as dispatch estimates it."""
        return self._dispatcher.retry_after_seconds(ticket)

    def admitted(self, record: RequestRecord) -> bool:
        """Whether a request waits for a slot, or has had one."""
        return record.attempts > 0 or self._dispatcher.waits(TicketId(record.id))

    def refuse_when_stopping(self) -> None:
        """Raise Stopping where nothing new is to be begun."""
        if self._dispatcher.stopping:
            raise Stopping("the balancer is being stopped; try again soon", retry_after_seconds=1.0)

    def silences(self) -> Sequence[Silence]:
        """Those under whose lease nothing has come for a while, oldest first."""
        return tuple(self._long_silent.values())

    def give_up(self, lease: Lease, error: InstanceError) -> None:
        """Fail a try under whose lease nothing has come; its request is tried again if it may be."""
        for each in tuple(self._long_silent):
            if each.lease is lease:
                self._client.give_up(lease.url, each.upstream, error)

    async def answered(self, ticket: Ticket, upstream: UpstreamRequest, record: RequestRecord) -> Exchange:
        """An exchange whose answer has begun, at whichever instance gave one: the first answer that no
        other instance may do better than, else the last one of all. Its lease goes back when the instance
        has no more part in it; who takes it must `cancel` it on the way out.

        Raises:
            UnknownModel: no instance has the model; names those that there are.
            Unserved: those that have it are of runtimes that cannot be asked for this.
            FleetError: no slot, as dispatch says.
            InstanceError: no instance is left to try; what the last one met.
        """
        self._budget.requested(self._clock.monotonic())
        refused: Exchange | None = None
        failure: InstanceError | None = None
        reason = ""
        while True:
            try:
                lease = await self._lease(ticket, record)
            except (FleetError, UnknownModel, Unserved) as error:
                if refused is not None:
                    return refused
                raise (failure or error) from error
            if reason:
                self._ledger.retried(reason)
            tried = await self.hedging.tried(self, lease, record, upstream)
            if tried.final:
                return self.take(tried, record)
            ticket, refused, failure, reason = tried.next, tried.exchange, tried.failure, tried.reason
            if not self._may_retry(ticket, tried.retry, tried.broken):
                if refused is not None:
                    return refused
                assert failure is not None
                raise failure

    async def try_at(self, lease: Lease, record: RequestRecord, upstream: UpstreamRequest) -> Tried:
        """Send it under a lease, until it is known what came of it. Whatever ends it but a good answer gives
        the lease back; that of a good answer is out until `take`."""
        ticket = lease.ticket
        elsewhere = ticket.excluding(lease.instance)
        try:
            exchange = await self._exchange(lease, record, upstream)
            told = await self._refusal(exchange, lease, record) if exchange.status >= 400 else None
        except InstanceError as error:
            cured = isinstance(error, SlotLost) and error.cured and ticket.attempt <= _CURES
            return Tried(
                lease=lease,
                next=ticket.again() if cured else elsewhere,
                failure=error,
                reason=error.kind,
                retry=_retry(error),
                broken=None if isinstance(error, Unfinished | Unserved) else lease,
            )
        if told is None:
            return Tried(lease=lease, next=elsewhere, exchange=exchange)
        return Tried(
            lease=lease,
            next=elsewhere,
            exchange=exchange,
            reason=told.kind,
            retry=told.retry,
            broken=lease if told is CRASH else None,
        )

    def take(self, tried: Tried, record: RequestRecord) -> Exchange:
        """The exchange of a final try; from here on its lease goes back with its end."""
        exchange, lease = tried.exchange, tried.lease
        assert exchange is not None
        if exchange.status < 400:
            self._teacher.evaluated(lease)
            exchange.when_ended(lambda error: self._answer_ended(exchange, lease, record, error))
            if record.operation is not None and record.operation.needs_slot:
                exchange.end_when_silent(self.silent_seconds)
        return exchange

    async def _exchange(self, lease: Lease, record: RequestRecord, upstream: UpstreamRequest) -> Exchange:
        """As the client's, with a probe of an instance that stays silent: should it turn out to be
        down, the exchange fails and the request can go elsewhere. The lease goes back where it fails."""
        operation = record.operation
        silent = _Try(lease, upstream, streams=operation is not None and operation.stream)
        self._silent.begin(silent)
        try:
            if lease.runtime is not Runtime.OLLAMA:
                upstream = self._adapted(lease, record, upstream)
            exchange = await self._client.exchange(lease.url, upstream)
            record.answered_at = self._clock.monotonic()
            self._teacher.answered(lease)
            return exchange
        except InstanceError as error:
            self._failed(lease, record, error)
            raise
        except BaseException as error:
            left = isinstance(error, asyncio.CancelledError)
            self._return(lease, record, Outcome(verdict=Verdict.NEUTRAL, kind="cancelled", in_prefill=left))
            raise
        finally:
            if not self._silent.end(silent):
                del self._long_silent[silent]

    def _adapted(self, lease: Lease, record: RequestRecord, upstream: UpstreamRequest) -> UpstreamRequest:
        """What goes to an instance that is no Ollama. Raises Unserved."""
        instance = self._fleet.find(lease)
        if instance is None or record.operation is None:
            raise InstanceDown("the instance went down")
        return adapted(upstream, record.operation, instance, self._clock)

    async def _refusal(self, exchange: Exchange, lease: Lease, record: RequestRecord) -> Failure | None:
        """The failure that a whole error answer tells, else None; from here on the lease goes back with
        the end of the exchange."""
        try:
            body = await exchange.whole(limit_bytes=_ERROR_BODY_BYTES, within_seconds=_ERROR_BODY_SECONDS)
        except InstanceError as error:
            self._failed(lease, record, error)
            raise
        except BaseException:
            exchange.cancel()
            self._return(lease, record, Outcome(verdict=Verdict.NEUTRAL, kind="cancelled"))
            raise
        message = error_message(body)
        variant = lease.ticket.variant
        local = variant is not None and not is_cloud_name(variant.model)
        if lease.runtime is not Runtime.OLLAMA and tells_of_no_path(exchange.status, message):
            exchange.cancel()
            self._return(lease, record, UNSERVED.outcome(message))
            raise Unserved(f"{lease.ticket.path} is not served: {RUNTIME_LACKS}", status=501)
        told = classify(exchange.status, message, has_model=local)
        outcome = told.outcome(message) if told else Outcome(verdict=Verdict.NEUTRAL, kind="rejected")
        instance = self._fleet.find(lease)
        if told is BUSY and instance is not None:
            self._ledger.failed(record, BUSY.kind)
            self._fleet.pause(instance, for_seconds=FULL_SECONDS)
        elif told is MODEL_MISSING:
            self._look(lease.instance)
        elif told is OUT_OF_MEMORY and instance is not None:
            self._out_of_memory(instance)
        exchange.when_ended(lambda _error: self._ended(lease, record, outcome))
        return told if body is not None else None

    def _stays_silent(self, silent: _Try) -> None:
        since = self._clock.monotonic() - _SILENCE_SECONDS
        self._long_silent[silent] = Silence(silent.lease, since, silent.streams)
        self._look(silent.lease.instance)

    def _may_retry(self, ticket: Ticket, retry: Retry, broken: Lease | None) -> bool:
        """Whether another try is worth it and allowed; `broken` is the lease under which an instance
        broke down."""
        if retry is Retry.NO or not self._another(ticket):
            return False
        if retry is Retry.FREE:
            return True
        now = self._clock.monotonic()
        if broken is None:
            allowed = self._budget.take(now)
        else:
            allowed = self._budget.take(now, broken=broken.instance, leased_at=broken.leased_at)
        if not allowed:
            self._ledger.retry_refused()
        return allowed

    def _another(self, ticket: Ticket) -> bool:
        """Whether there is an instance that could be tried."""
        return any(
            each.usable
            and each.id not in ticket.excluded
            and (ticket.variant is None or each.holds(ticket.variant.model))
            for each in self._fleet.instances()
        )

    async def _lease(self, ticket: Ticket, record: RequestRecord) -> Lease:
        started = self._clock.monotonic()
        try:
            lease = await self._acquire(ticket, record)
        finally:
            record.queued_seconds += self._clock.monotonic() - started
        self.leased(lease, record)
        return lease

    def leased(self, lease: Lease, record: RequestRecord) -> None:
        """The request goes there; its record tells of this try from now on."""
        record.attempts = lease.ticket.attempt
        record.instance, record.reason, record.leased_at = lease.instance, lease.reason, lease.leased_at
        self._teacher.leased(lease, record)
        self._ledger.leased(record)

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
        if isinstance(error, Unfinished | Unserved):
            self._return(lease, record, Outcome(verdict=Verdict.NEUTRAL, kind=error.kind))
            return
        self._ledger.failed(record, error.kind)
        if isinstance(error, SlotLost):
            verdict = Verdict.NEUTRAL if error.cured else Verdict.FAILURE
            lost = Outcome(verdict=verdict, kind=error.kind, error=str(error), blames=Blame.MODEL)
            self._return(lease, record, lost)
            return
        instance = self._fleet.find(lease)
        if isinstance(error, ConnectFailed) and error.refused and instance is not None:
            self._fleet.failed(instance, str(error), refused=True, incarnation=lease.incarnation)
        self._return(lease, record, broken(error.kind, str(error)))

    def _answer_ended(
        self, exchange: Exchange, lease: Lease, record: RequestRecord, error: BalancerError | None
    ) -> None:
        """As `_ended`, of a good answer: its counters are known from here on."""
        outcome = outcome_of(exchange, record, error)
        if exchange.status < 300 and record.operation is not None:
            record.counters = read_counters(record.operation, exchange.tail)
        if carried_load(record):
            self._look(lease.instance)
        self._ended(lease, record, outcome)

    def _ended(self, lease: Lease, record: RequestRecord, outcome: Outcome) -> None:
        """The instance has no more part in the exchange; a failure after the first byte counts too."""
        if outcome.verdict is Verdict.FAILURE:
            self._ledger.failed(record, outcome.kind)
        self._return(lease, record, outcome)
        instance, operation, variant = self._fleet.find(lease), record.operation, lease.ticket.variant
        told = classify(500, outcome.error, has_model=True) if outcome.kind == "error_record" else None
        if told is OUT_OF_MEMORY and instance is not None:
            self._out_of_memory(instance)
        if instance is None or operation is None or variant is None or operation.keeps_model:
            return
        if not instance.running_of(variant.model):
            self._fleet.unloaded(instance, variant.model)

    def _return(self, lease: Lease, record: RequestRecord, outcome: Outcome) -> None:
        self._ledger.returned(record, lease.instance)
        self._teacher.ended(lease, record, outcome)
        self._dispatcher.release(lease, outcome)
        instance = self._fleet.find(lease)
        if instance is not None and instance.loading is not None:
            # What has ended may have to make room for the load, which only the lists tell.
            asyncio.get_running_loop().call_later(EVICTION_SECONDS, self._look, lease.instance)


def _retry(error: InstanceError) -> Retry:
    """Where no connection was made, or the runtime cannot be asked, nothing was asked of an instance, so it
    is not counted; nor where what kept the request from being served is mended."""
    mended = isinstance(error, SlotLost) and error.cured
    return Retry.FREE if mended or isinstance(error, ConnectFailed | Unserved) else Retry.COUNTED
