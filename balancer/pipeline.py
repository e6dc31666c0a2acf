"""The life of one request, from the listener's hands to the last byte of its answer. Read this first.

    route → may it enter → body → operation → ticket → lease → relay → outcome

A request is told exactly one outcome. Until the first byte of an answer it can be tried on another
instance; after that a failure is told in the caller's dialect and the answer ends abnormally. Leaving
cancels it wherever it stands. A lease ends with the exchange at the instance, not with the client's
reading.
"""

import asyncio
import math
from dataclasses import dataclass
from functools import partial
from itertools import chain, count

from balancer.accounting.ledger import Ledger
from balancer.accounting.record import RequestRecord
from balancer.admission.asked import read_asked
from balancer.admission.body_budget import BodyBudget, HeldBody
from balancer.admission.identity import identify, require_model_changes
from balancer.admission.origin import allowed_origin, check_host, require_asked_media_type
from balancer.attempts import Attempts
from balancer.clock import Clock
from balancer.core.operation import Dialect, Kind, Operation, Wire
from balancer.core.ticket import Ticket, TicketId
from balancer.errors import (
    BalancerError,
    ClientLeft,
    FleetError,
    Forbidden,
    HeadersTooLarge,
    MethodNotAllowed,
    UnsupportedEncoding,
)
from balancer.forwarding.answers import Answers
from balancer.forwarding.comments import commented
from balancer.forwarding.downstream import BodySource, ClientRequest, Sink, send_whole
from balancer.forwarding.relay import relay
from balancer.forwarding.stores import StoreRequest, Stores
from balancer.protocol.encoding import inflate_zstd
from balancer.protocol.errors import error_body
from balancer.protocol.headers import Headers, header, upstream_headers
from balancer.protocol.hedgeable import may_be_hedged
from balancer.protocol.parse import Parsed, parse_request, refuse_model_in_query
from balancer.protocol.prefix import BYTES_PER_TOKEN, read_prefix
from balancer.protocol.routes import Match, Treatment, dialect_of, find_route
from balancer.telemetry.logs import Logger
from balancer.upstream.client import UpstreamRequest
from balancer.upstream.exchange import Exchange

_GENERATING = frozenset({Kind.GENERATE, Kind.CHAT, Kind.RESPONSE})
_JSON: Headers = (("Content-Type", "application/json; charset=utf-8"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator allows and bounds."""

    body_bytes: int
    headers_bytes: int
    queue_seconds: float
    queue_comment_seconds: float | None
    allow_model_changes: bool
    cors_origins: frozenset[str]
    loopback_only: bool
    own_name: str
    reads_prefixes: bool
    hedges: bool


class Pipeline:
    """Serves requests, each in a task of its own. `policy` may be replaced at any time."""

    def __init__(
        self,
        *,
        attempts: Attempts,
        answers: Answers,
        stores: Stores,
        ledger: Ledger,
        budget: BodyBudget,
        policy: Policy,
        clock: Clock,
        log: Logger,
    ) -> None:
        self._attempts = attempts
        self._answers = answers
        self._stores = stores
        self._ledger = ledger
        self._budget = budget
        self.policy = policy
        self._clock = clock
        self._log = log
        self._arrivals = count(1)

    async def handle(self, request: ClientRequest, sink: Sink) -> None:
        """Serve one request to its end. Raises only CancelledError, when the client left."""
        record = RequestRecord(
            id=request.id,
            request_id=request.request_id,
            client=identify(request.peer),
            method=request.method,
            route="",
            received_at=request.received_at,
            dialect=dialect_of(request.raw_path).value,
        )
        self._ledger.begin(record)
        every = self.policy.queue_comment_seconds
        try:
            if every is None or record.dialect != Dialect.OPENAI:
                await self._answered(request, record, sink)
                return
            names, comment = partial(_names, record), partial(self._comment, record)
            async with commented(sink, every_seconds=every, own_headers=names, comment=comment) as front:
                await self._answered(request, record, front)
        finally:
            self._ledger.end(record)

    async def _answered(self, request: ClientRequest, record: RequestRecord, sink: Sink) -> None:
        """As `handle`, by a sink that tells errors in the dialect."""
        try:
            await self._serve(request, record, sink)
        except asyncio.CancelledError:
            if not record.outcome:  # a client may leave as soon as it has all that it wants
                record.status, record.outcome = 499, "cancelled"
            raise
        except ClientLeft:
            record.status, record.outcome = 499, "cancelled"
            sink.abort()
        except BalancerError as error:
            await self._tell(error, request, record, sink)
        except Exception as error:  # noqa: BLE001 - the one boundary where a defect of ours becomes a 500
            self._log.error("request_failed", id=record.id, route=record.route, exc_info=error)
            await self._tell(BalancerError("internal error"), request, record, sink)

    async def _serve(self, request: ClientRequest, record: RequestRecord, sink: Sink) -> None:
        self._check_headers(request, record)
        if request.method == "OPTIONS":
            await self._answer_options(request, record, sink)
            return
        match = find_route(request.method, request.raw_path)
        route = match.route
        record.route, record.kind = route.path, route.kind.value
        if route.treatment is Treatment.REFUSED:
            raise Forbidden(f"not served here: {route.why}")
        if route.changes_models:
            names = (name for name, _ in request.headers)
            require_model_changes(request.peer, names, allowed=self.policy.allow_model_changes)
        held = self._budget.hold()
        try:
            match route.treatment:
                case Treatment.ANSWERED | Treatment.MERGED:
                    await self._answer(match, request, record, held, sink)
                case Treatment.EVERY_STORE:
                    await self._change_stores(match, request, record, held, sink)
                case _:
                    await self._place(match, request, record, held, sink)
        finally:
            held.release()

    def _check_headers(self, request: ClientRequest, record: RequestRecord) -> None:
        """Refuse heads that are not sound, and requests that a web page of elsewhere makes a browser send."""
        if request.fault is not None:
            raise request.fault
        size = sum(map(len, chain.from_iterable(request.headers))) + 4 * len(request.headers)
        if size > self.policy.headers_bytes:
            raise HeadersTooLarge(f"the headers are larger than {self.policy.headers_bytes} bytes")
        host = request.fields.get("host")
        if self.policy.loopback_only:
            check_host(host, own_name=self.policy.own_name)
        origin = request.fields.get("origin")
        record.allow_origin = allowed_origin(origin, host, cors_origins=self.policy.cors_origins) or ""
        if origin is not None and request.method == "POST":
            require_asked_media_type(request.raw_path, request.fields.get("content-type"))

    async def _answer_options(self, request: ClientRequest, record: RequestRecord, sink: Sink) -> None:
        """A browser's question before a request of another origin; to all others, that there is nothing."""
        record.status, record.outcome = 204, "ok"
        asked = request.fields.get("access-control-request-headers") or ""
        headers: Headers = ()
        if record.allow_origin:
            headers = (
                ("Access-Control-Allow-Methods", "GET, HEAD, POST, DELETE"),
                ("Access-Control-Allow-Headers", asked),
                ("Access-Control-Max-Age", "600"),
            )
        await send_whole(sink, 204, headers + _own_headers(record), b"")

    async def _answer(
        self, match: Match, request: ClientRequest, record: RequestRecord, held: HeldBody, sink: Sink
    ) -> None:
        body = await self._read(request, record, held) if request.method == "POST" else b""
        if _encoding(request):
            body = inflate_zstd(body)
        answer = await self._answers.answer(match, body)
        record.status, record.outcome = answer.status, "ok"
        headers = answer.headers + _own_headers(record)
        await send_whole(sink, answer.status, headers, answer.body, method=request.method)

    async def _change_stores(
        self, match: Match, request: ClientRequest, record: RequestRecord, held: HeldBody, sink: Sink
    ) -> None:
        self._attempts.refuse_when_stopping()
        body: bytes | BodySource = request.body
        operation = _blob_operation(match)
        if not match.route.path.startswith("/api/blobs/"):
            body = await self._read(request, record, held)
            operation = parse_request(match, body, content_type="", content_encoding="").operation
        self._note(operation, record)
        store_request = StoreRequest(
            operation=operation,
            method=request.method,
            headers=_forwarded(request),
            body=b"" if request.method == "HEAD" else body,
            own_headers=_own_headers(record),
            request_id=record.request_id,
        )
        relayed = await self._stores.serve(store_request, sink)
        record.status, record.outcome = relayed.status, relayed.kind
        record.answer_bytes = relayed.answer_bytes

    async def _place(
        self, match: Match, request: ClientRequest, record: RequestRecord, held: HeldBody, sink: Sink
    ) -> None:
        body = await self._read(request, record, held) if request.method == "POST" else b""
        content_type = request.fields.get("content-type") or ""
        parsed = parse_request(match, body, content_type=content_type, content_encoding=_encoding(request))
        operation = parsed.operation
        if operation.kind is Kind.TRANSCRIBE:
            refuse_model_in_query(request.query)
        self._note(operation, record)
        record.hedgeable = self.policy.hedges and may_be_hedged(operation, parsed.fields)
        ticket = self._ticket(request, parsed, record)
        upstream = UpstreamRequest(
            method=request.method,
            target=operation.upstream_path + (f"?{request.query}" if request.query else ""),
            headers=_forwarded(request),
            body=body if parsed.body is None else parsed.body,
        )
        del body, parsed
        if operation.unload and operation.variant is not None:
            # For every instance where the model is resident; the answer then comes from one of them.
            await self._stores.tell_residents(operation.variant.model, upstream)
        exchange = await self._attempts.answered(ticket, upstream, record)
        del upstream  # its body is not needed again, and an answer may go on for long
        held.release()
        try:
            await self._relay(exchange, ticket, operation, record, sink)
        except asyncio.CancelledError:
            if exchange.overflowed:  # the connection was cut, which is told as if the client had left
                record.outcome = "slow_reader"
            raise
        finally:
            exchange.cancel()

    async def _relay(
        self, exchange: Exchange, ticket: Ticket, operation: Operation, record: RequestRecord, sink: Sink
    ) -> None:
        head = await exchange.response()
        record.status = head.status
        own_headers = _own_headers(record)
        if head.status in {429, 503} and header(head.headers, "retry-after") is None:
            own_headers += _retry_after(self._attempts.retry_after_seconds(ticket))
        relayed = await relay(
            exchange,
            head,
            sink,
            operation=operation,
            own_headers=own_headers,
            request_id=record.request_id,
            now=self._clock.monotonic,
        )
        record.first_byte_at = relayed.first_byte_at
        record.answer_bytes = relayed.answer_bytes
        record.outcome = relayed.kind

    async def _read(self, request: ClientRequest, record: RequestRecord, held: HeldBody) -> bytes:
        encoding = _encoding(request)
        if encoding and (encoding != "zstd" or not request.raw_path.startswith("/v1/")):
            told = f"Content-Encoding '{encoding[:32]}' is not read here; zstd is, on /v1 paths"
            raise UnsupportedEncoding(told)
        body = await request.body.read(limit_bytes=self.policy.body_bytes, held=held)
        record.body_bytes = len(body)
        return body

    def _ticket(self, request: ClientRequest, parsed: Parsed, record: RequestRecord) -> Ticket:
        operation = parsed.operation
        generates = operation.needs_slot and operation.kind in _GENERATING
        prefix = read_prefix(parsed.fields) if generates and self.policy.reads_prefixes else ()
        record.parsed_at = now = self._clock.monotonic()
        asked = read_asked(
            priority=request.fields.get("x-balancer-priority"),
            session=request.fields.get("x-balancer-session"),
            timeout=request.fields.get("x-balancer-timeout"),
            limit_seconds=self.policy.queue_seconds,
        )
        return Ticket(
            id=TicketId(request.id),
            arrival=next(self._arrivals),
            client=record.client,
            priority=asked.priority,
            variant=operation.variant,
            needs_slot=operation.needs_slot,
            path=operation.upstream_path,
            queued_at=now,
            deadline=now + asked.queue_seconds,
            # A compressed body may be smaller than the beginning of its prompt.
            prompt_tokens=1 + max(record.body_bytes // BYTES_PER_TOKEN, prefix[-1][1] if prefix else 0),
            prefix=prefix,
            session=asked.session,
        )

    def _comment(self, record: RequestRecord) -> str | None:
        """What to tell next to a client that waits; None where it wants no events or is not admitted yet."""
        operation = record.operation
        if operation is None or operation.wire is not Wire.SSE or not self._attempts.admitted(record):
            return None
        record.comments += 1
        return "waiting"

    def _note(self, operation: Operation, record: RequestRecord) -> None:
        record.operation = operation
        record.model = operation.variant.model if operation.variant else ""

    async def _tell(
        self, error: BalancerError, request: ClientRequest, record: RequestRecord, sink: Sink
    ) -> None:
        """Tell an error that came before any byte of an answer; after one only the end can tell."""
        record.status, record.outcome, record.error = error.status, error.kind, str(error)
        if sink.started:
            sink.abort()
            return
        headers = _JSON + _own_headers(record)
        if isinstance(error, FleetError) and error.retry_after_seconds is not None:
            headers += _retry_after(error.retry_after_seconds)
        if isinstance(error, MethodNotAllowed):
            headers += (("Allow", ", ".join(error.allow)),)
        if error.closes:
            headers += (("Connection", "close"),)
        body = error_body(dialect_of(request.raw_path), error.status, str(error), record.request_id)
        try:
            await send_whole(sink, error.status, headers, body, method=request.method)
        except ClientLeft:
            record.status, record.outcome = 499, "cancelled"


def _blob_operation(match: Match) -> Operation:
    return Operation(
        kind=Kind.MANAGE,
        dialect=match.route.dialect,
        upstream_path=f"/api/blobs/{match.parameter}",
    )


def _retry_after(seconds: float) -> Headers:
    return (("Retry-After", str(max(1, math.ceil(seconds)))),)


def _encoding(request: ClientRequest) -> str:
    """The coding of the body, empty where there is none."""
    encoding = (request.fields.get("content-encoding") or "").strip().casefold()
    return "" if encoding == "identity" else encoding


def _forwarded(request: ClientRequest) -> Headers:
    return (*upstream_headers(request.headers), ("X-Request-ID", request.request_id))


def _names(record: RequestRecord) -> Headers:
    """What is certain before anyone has answered."""
    names: Headers = (("X-Request-ID", record.request_id), ("X-Balancer-Request", record.id))
    if record.allow_origin:
        names += (("Access-Control-Allow-Origin", record.allow_origin), ("Vary", "Origin"))
    return names


def _own_headers(record: RequestRecord) -> Headers:
    own = _names(record)
    if record.attempts:
        own += (
            ("X-Balancer-Instance", record.instance),
            ("X-Balancer-Attempts", str(record.attempts)),
            ("X-Balancer-Queue-Ms", str(round(record.queued_seconds * 1000))),
            ("X-Balancer-Reason", record.reason),
        )
    return own
