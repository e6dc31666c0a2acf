"""One request and its answer on one connection, as the relay sees it.

The connection's parser feeds an exchange as fast as bytes come in. A stream of tokens is read whether
or not anyone takes it: an instance whose stream is not read leaks the slot for good. What is not taken
yet is held here, and a reader that takes nothing while too much is held is cut off. An answer in one
piece is another matter: its work is done before its first byte, so reading it waits for its reader.
Source of the leak: observed on Ollama v0.33 with readers that stop.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec

from balancer.errors import BalancerError, ConnectionLost, InstanceStalled, SlowReader, Unfinished
from balancer.protocol.endings import Tail
from balancer.protocol.headers import Headers
from balancer.upstream.stream_memory import COUNTED_FROM_BYTES, StreamMemory

_STREAMS = frozenset({"application/x-ndjson", "text/event-stream"})
_FIRST_PIECE_SECONDS = 0.05
IDLE_SECONDS = 1.0
"""A stream's reader that took nothing for so long does not read."""
BURST = 4
"""So many times the bound are held of a stream at the very most."""
_HTTP_CHUNK_HELD_BYTES = 65536
"""An HTTP chunk that came in part is held for its rest up to this size, so that boundaries stay."""


class ResponseHead(msgspec.Struct, frozen=True, kw_only=True):
    """An answer's head. `content_length` is None for a body that is chunked, or ends with the connection;
    `media_type` is in lower case and without parameters, empty where none was given."""

    status: int
    reason: str
    headers: Headers
    media_type: str
    content_length: int | None
    chunked: bool

    @property
    def streams(self) -> bool:
        """Whether the body is a stream of records, which alone tell its end: a request for one may
        be answered by a single object all the same (a load, an error)."""
        return self.media_type in _STREAMS


class Exchange:
    """Fed by a connection, read by one task. `cancel` closes the connection, `read` makes it go on
    reading or wait."""

    def __init__(
        self,
        *,
        buffer_bytes: int,
        cancel: Callable[[], None],
        read: Callable[[bool], None],
        memory: StreamMemory,
    ) -> None:
        self._buffer_bytes = buffer_bytes
        self._cancel = cancel
        self._read = read
        self._memory = memory
        self._counted = False
        self.reading = True
        self._time = asyncio.get_running_loop().time
        self._taken_at = 0.0
        self._received_at = 0.0
        self._silence: asyncio.TimerHandle | None = None
        self._head: ResponseHead | None = None
        self._chunks: deque[bytes] = deque()
        self._partial: list[bytes] = []
        self._partial_bytes = 0
        self._held_bytes = 0
        self._ended = False
        self._error: BalancerError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_answer: Callable[[], None] | None = None
        self._on_end: Callable[[BalancerError | None], None] | None = None
        self._on_overflow: Callable[[], None] | None = None
        self._outlet: Callable[[bytes], None] | None = None
        self.taken_bytes = 0
        self.tail = Tail()
        self.left = False
        self.overflowed = False

    @property
    def answered(self) -> bool:
        """Whether the answer's head is in."""
        return self._head is not None

    @property
    def has_begun(self) -> bool:
        """Whether a piece of the answer's body is in and not taken yet, or all of it."""
        return bool(self._chunks) or self._ended

    @property
    def held_bytes(self) -> int:
        """Bytes received and not yet taken."""
        return self._held_bytes

    async def response(self) -> ResponseHead:
        """The answer's head, once it is in. Ollama sends none before the first token, so this may
        take as long as a load, a queue and a prefill. Raises InstanceError."""
        while self._head is None:
            if self._error is not None:
                raise self._error
            await self._more()
        return self._head

    async def begun(self) -> ResponseHead:
        """The answer's head, and a moment later at most, in which the first piece of its body comes in as
        a rule: as long as the client has no byte, the request can be tried elsewhere.

        Raises:
            InstanceError: it failed before that.
            Unfinished: a stream of records has none.
        """
        head = await self.response()
        if not self._chunks and not self._ended and self._error is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_PIECE_SECONDS):
                    await self._more()
        if not self._chunks and self._error is not None:
            raise self._error
        if self._ended and not self._chunks and head.streams and head.status < 300:
            raise Unfinished("the instance ended the answer before it had begun")
        return head

    async def whole(self, *, limit_bytes: int, within_seconds: float) -> bytes | None:
        """The whole body, which is not taken by this; None where it is longer than the limit, or is not
        there in that time. Raises InstanceError where it breaks off before."""
        try:
            async with asyncio.timeout(within_seconds):
                while not self._ended and self._error is None and self._held_bytes <= limit_bytes:
                    await self._more()
        except TimeoutError:
            return None
        if self._error is not None:
            raise self._error
        return b"".join(self._chunks) if self._ended and self._held_bytes <= limit_bytes else None

    def end_when_silent(self, seconds: float) -> None:
        """Fail it once no byte has come for so long after its first, while it is being read."""
        loop = asyncio.get_running_loop()
        if self._silence is None and not self._ended and self._error is None:
            self._silence = loop.call_later(seconds, self._check_silence, seconds)

    async def next_chunk(self) -> bytes | None:
        """The next piece of the body, None at its proper end. Of a chunked body each piece is one
        HTTP chunk as the instance sent it. What was received before a failure is given first.

        Raises:
            InstanceError: the body did not end properly.
            SlowReader: too much of it was left untaken.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            await self._more()
        chunk = self._chunks.popleft()
        self._held_bytes -= len(chunk)
        self.taken_bytes += len(chunk)
        self._taken_at = self._time()
        if not self.reading and self._held_bytes <= self._buffer_bytes // 2:
            self._go_on_reading()
        if self._counted:
            self._count()
        return chunk

    async def flow(self, outlet: Callable[[bytes], None]) -> None:
        """Hand every piece to `outlet` in the very moment in which it is in, those held already first,
        until the body's proper end. Nothing is held here then, and reading never waits.

        Raises:
            InstanceError: the body did not end properly.
        """
        chunks = list(self._chunks)
        self._let_go()
        for chunk in chunks:
            self.taken_bytes += len(chunk)
            outlet(chunk)
        self._outlet = outlet
        try:
            while not self._ended:
                if self._error is not None:
                    raise self._error
                await self._more()
        finally:
            self._outlet = None

    @property
    def status(self) -> int:
        """The status of the answer, 0 while there is none."""
        return self._head.status if self._head is not None else 0

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream of records."""
        return self._head is not None and self._head.streams

    @property
    def is_page(self) -> bool:
        """Whether the answer is a web page, which no instance gives: something else sits there."""
        return self._head is not None and self._head.media_type == "text/html"

    def when_answered(self, call: Callable[[], None] | None) -> None:
        """Call once when the head is in, or when there will be none; at once where that is so
        already. None takes a call back that was not made yet."""
        self._on_answer = call
        if self._head is not None or self._error is not None:
            self._tell_answered()

    def when_overflowed(self, call: Callable[[], None]) -> None:
        """Call when more was left untaken than may be: whoever writes to the client may be stuck in
        that write, and must be freed."""
        self._on_overflow = call

    def when_ended(self, call: Callable[[BalancerError | None], None]) -> None:
        """Call once when the instance has no more part in it, at once where that is so already: with
        None after a proper end, else with the failure. The client may still have much to read."""
        if self._ended or self._error is not None:
            call(self._error)
        else:
            self._on_end = call

    def cancel(self, error: BalancerError | None = None) -> None:
        """End it now, and the connection with it unless the answer is whole. Idempotent. Without an
        error it is our side that has left: what is held goes too, and `left` says so where the answer was
        not whole. `overflowed` says that its reader left too much untaken, were it whole or not."""
        self.overflowed |= isinstance(error, SlowReader)
        if not self._ended and self._error is None:
            self.left = error is None
            self.fail(error or ConnectionLost("cancelled"))
            self._cancel()
        if error is None:
            self._let_go()

    def cut(self) -> None:
        """End it, as its reader left too much untaken, and let go of what is held."""
        self.cancel(SlowReader("the client does not read its answer"))
        self._let_go()
        if self._on_overflow is not None:
            self._on_overflow()

    def receive_head(self, head: ResponseHead) -> None:
        """From the connection: the head is in."""
        self._head = head
        self._taken_at = self._received_at = self._time()
        self._tell_answered()
        self._wake()

    def receive(self, data: bytes) -> None:
        """From the connection: a part of the body, or of the HTTP chunk begun."""
        self._received_at = self._time()
        self._partial.append(data)
        self._partial_bytes += len(data)
        if self._head is None or not self._head.chunked or self._partial_bytes >= _HTTP_CHUNK_HELD_BYTES:
            self.end_chunk()

    def end_chunk(self) -> None:
        """From the connection: the HTTP chunk is complete."""
        if not self._partial:
            return
        chunk = self._partial[0] if len(self._partial) == 1 else b"".join(self._partial)
        self._partial.clear()
        self._partial_bytes = 0
        self.receive_chunk(chunk)

    def receive_chunk(self, chunk: bytes) -> None:
        """From the connection: a whole HTTP chunk, where none has begun."""
        self._received_at = self._time()
        if self._error is not None:
            return
        self.tail.feed(chunk)
        if self._outlet is not None:
            self.taken_bytes += len(chunk)
            self._outlet(chunk)
            return
        self._chunks.append(chunk)
        self._held_bytes += len(chunk)
        if self._held_bytes > self._buffer_bytes:
            self._hold_back()
        if self._held_bytes > COUNTED_FROM_BYTES and self.streams:
            self._count()
        self._wake()

    def finish(self) -> None:
        """From the connection: the body ended properly."""
        self.end_chunk()
        if self._error is None:
            self._ended = True
            self._go_on_reading()
            self._end()

    def fail(self, error: BalancerError) -> None:
        """From the connection: no more will come, and the answer is not whole."""
        if self._ended or self._error is not None:
            return
        self.end_chunk()
        if self._error is None:
            self._error = error
            self._end()

    def _hold_back(self) -> None:
        """More is held than should be. One turn of the loop can bring more than that, so a stream's
        reader is only cut off where it has taken nothing for a while, or the bound is far behind."""
        if not self.streams:
            if self.reading:
                self.reading = False
                self._read(False)
            return
        idle_seconds = self._time() - self._taken_at
        if idle_seconds < IDLE_SECONDS and self._held_bytes <= BURST * self._buffer_bytes:
            return
        self.cut()

    def _count(self) -> None:
        self._counted = self._held_bytes > COUNTED_FROM_BYTES
        if self._counted:
            self._memory.note(self)
        else:
            self._memory.forget(self)

    def _let_go(self) -> None:
        self._chunks.clear()
        self._held_bytes = 0
        if self._counted:
            self._count()

    def _go_on_reading(self) -> None:
        if not self.reading:
            self.reading = True
            self._read(True)

    def _tell_answered(self) -> None:
        call, self._on_answer = self._on_answer, None
        if call is not None:
            call()

    def _check_silence(self, seconds: float) -> None:
        """Look again when the time could be up; a reading that waits for its reader is no silence."""
        loop = asyncio.get_running_loop()
        since = self._received_at if self.reading else loop.time()
        left = since + seconds - loop.time()
        if left > 0:
            self._silence = loop.call_later(left, self._check_silence, seconds)
        else:
            self.cancel(InstanceStalled(f"the instance sent nothing more for {seconds:g} s"))

    def _end(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self._tell_answered()
        call, self._on_end = self._on_end, None
        if call is not None:
            call(self._error)
        self._wake()

    async def _more(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
