"""Comments to a client whose stream of events waits: a sign of life, and no byte of an answer.

A line of such a stream that begins with a colon says nothing to its reader, and keeps those on the way
from giving the connection up. The first one fixes the answer's head, so what comes after it and is no
stream of events can only be told as an event. Until then the sink behind gets what it would get anyway.
Source: WHATWG HTML, 9.2.6 Interpreting an event stream.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from balancer.errors import BadResponse, BalancerError, ClientLeft
from balancer.forwarding.downstream import Sink
from balancer.protocol.errors import error_event
from balancer.protocol.headers import Headers, header

_EVENTS: Headers = (("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache"))
_PLAIN_CODINGS = frozenset({"", "identity"})
_ERROR_BYTES = 65536
"""So much of an error answer is kept to be told as an event."""


@asynccontextmanager
async def commented(
    sink: Sink,
    *,
    every_seconds: float,
    own_headers: Callable[[], Headers],
    comment: Callable[[], str | None],
) -> AsyncIterator[Sink]:
    """A sink in front of `sink` that writes a comment every so many seconds until an answer is started.

    `comment` gives what to say then, on one line; None: nothing now, and nothing ever to who did not ask
    for a stream of events in OpenAI's dialect. `own_headers` go out with the first one.
    """
    async with asyncio.TaskGroup() as group:
        front = CommentedSink(sink)
        front.writing = group.create_task(front.write_comments(every_seconds, own_headers, comment))
        try:
            yield front
        finally:
            front.writing.cancel()


class CommentedSink:
    """Satisfies `Sink`. Once a comment was written, an answer is sent without its head where it is a stream
    of events; an error answer becomes an event and breaks the stream off. `writing` writes the comments."""

    writing: asyncio.Task[None]

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._commented = False
        self._passing = False
        self._status = 0
        self._error = b""

    @property
    def started(self) -> bool:
        """Whether a byte of an answer may have reached the client; a comment is none."""
        return self._passing and self._sink.started

    async def start(self, status: int, headers: Headers, *, content_length: int | None) -> None:
        """As the sink's; no comment is written after it.

        Raises:
            BadResponse: it is neither an error nor a stream of events that can stand behind comments.
        """
        self.writing.cancel()
        if not self._commented:
            self._passing = True
            await self._sink.start(status, headers, content_length=content_length)
        elif status >= 400:
            self._status, self._error = status, b""
        else:
            _check_continues(status, headers)
            self._passing = True

    async def write(self, chunk: bytes) -> None:
        if self._passing:
            await self._sink.write(chunk)
        else:
            self._error = (self._error + chunk)[:_ERROR_BYTES]

    def outlet(self, end: Callable[[BalancerError], None]) -> Callable[[bytes], None] | None:
        return self._sink.outlet(end) if self._passing else None

    async def finish(self) -> None:
        """As the sink's; the end of an error answer behind comments is no proper end."""
        if self._passing:
            await self._sink.finish()
        else:
            await self.break_off(b"")

    async def break_off(self, record: bytes) -> None:
        if not self._passing:
            record = error_event(self._status, self._error)
        await self._sink.break_off(record)

    def abort(self) -> None:
        self._sink.abort()

    async def write_comments(
        self, every_seconds: float, own_headers: Callable[[], Headers], comment: Callable[[], str | None]
    ) -> None:
        """Write them until cancelled. A client that does not read holds the next one back."""
        while True:
            await asyncio.sleep(every_seconds)
            text = comment()
            if text is None:
                continue
            try:
                if not self._commented:
                    self._commented = True
                    await self._sink.start(200, _EVENTS + own_headers(), content_length=None)
                await self._sink.write(f": {text}\n\n".encode())
            except ClientLeft:
                self._sink.abort()  # which cancels the request, as the connection is lost by it
                return


def _check_continues(status: int, headers: Headers) -> None:
    media_type = (header(headers, "content-type") or "").partition(";")[0].strip().casefold()
    if status != 200 or media_type != "text/event-stream":
        raise BadResponse("the instance answered with no stream of events")
    if (header(headers, "content-encoding") or "").strip().casefold() not in _PLAIN_CODINGS:
        raise BadResponse("the instance compressed its answer, which cannot go on behind comments")
