"""The relay: an instance's answer to the client, byte for byte, and the verdict on how it ended.

The body's end is held back until the verdict is known: what looks whole on the wire is whole.
Reading from the instance never waits for the client (see `upstream.exchange`), so the lease can
end with the exchange, before a slow client has everything.
"""

from collections.abc import Callable

import msgspec

from balancer.core.operation import Operation, Wire
from balancer.errors import ClientLeft, InstanceError, SlowReader, Stopping
from balancer.forwarding.downstream import Sink
from balancer.protocol.endings import Ending, judge
from balancer.protocol.errors import error_record
from balancer.protocol.headers import Headers, downstream_headers
from balancer.upstream.exchange import Exchange, ResponseHead

_UNFINISHED = "the instance ended the answer before it was complete"


class Relayed(msgspec.Struct, frozen=True):
    """How a relay ended: `kind` is ok, rejected (a status of 400 or more), error_record, unfinished,
    truncated or slow_reader; `status` is what the client was told.
    `first_byte_at` (monotonic seconds) is when the first of the body was handed to the sink."""

    kind: str
    status: int
    answer_bytes: int
    first_byte_at: float | None = None


async def relay(
    exchange: Exchange,
    head: ResponseHead,
    sink: Sink,
    *,
    operation: Operation,
    own_headers: Headers,
    request_id: str,
    now: Callable[[], float],
) -> Relayed:
    """Relay one answer. After the first byte a failure is told in the caller's dialect, and the
    answer ends abnormally; this never raises for what the instance does."""
    exchange.when_overflowed(sink.abort)
    headers = downstream_headers(head.headers) + own_headers
    # A stream goes out without a length: by one it would look whole where its last record is missing.
    await sink.start(head.status, headers, content_length=None if head.streams else head.content_length)
    outlet = sink.outlet(exchange.cancel) if head.streams else None
    first_byte_at: float | None = None
    try:
        while (chunk := await exchange.next_chunk()) is not None:
            if first_byte_at is None:
                first_byte_at = now()
            await sink.write(chunk)
            if outlet is not None:
                await exchange.flow(outlet)
    except SlowReader:
        sink.abort()
        return Relayed("slow_reader", head.status, exchange.taken_bytes, first_byte_at)
    except ClientLeft:
        if not exchange.overflowed:
            raise
        # Cut in the middle of a write.
        return Relayed("slow_reader", head.status, exchange.taken_bytes, first_byte_at)
    except (InstanceError, Stopping) as error:
        await _break_off(sink, operation, exchange, str(error), request_id)
        return Relayed("truncated", head.status, exchange.taken_bytes, first_byte_at)
    ending = judge(operation, exchange.tail) if head.status < 300 and head.streams else Ending.WHOLE
    if ending is Ending.UNFINISHED:
        await _break_off(sink, operation, exchange, _UNFINISHED, request_id)
        return Relayed("unfinished", head.status, exchange.taken_bytes, first_byte_at)
    await sink.finish()
    kind = "rejected" if head.status >= 400 else "ok" if ending is Ending.WHOLE else "error_record"
    return Relayed(kind, head.status, exchange.taken_bytes, first_byte_at)


async def _break_off(
    sink: Sink, operation: Operation, exchange: Exchange, message: str, request_id: str
) -> None:
    wire = operation.wire if exchange.streams else Wire.JSON
    record = error_record(operation.dialect, wire, message, request_id)
    await sink.break_off(record and _separator(wire, exchange.tail.data) + record)


def _separator(wire: Wire, sent: bytes) -> bytes:
    """What ends the record that the instance left in its middle, so that the error is one of its own."""
    end = b"\n\n" if wire is Wire.SSE else b"\n"
    if not sent or sent.endswith(end):
        return b""
    return b"\n" if sent.endswith(b"\n") else end
