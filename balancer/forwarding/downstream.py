"""The seam to the client: what the pipeline knows of a request, and where its answer goes.

The listener fills it (aiohttp is its door); a sink of another make only has to keep the promises.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import msgspec

from balancer.admission.body_budget import HeldBody
from balancer.errors import BalancerError, ClientError
from balancer.protocol.headers import Headers


class BodySource(Protocol):
    """A request's body, which has not been read yet."""

    async def read(self, *, limit_bytes: int, held: HeldBody) -> bytes:
        """The whole body, counted into `held` as it comes in.

        Raises:
            BodyTooLarge: it is longer than the limit; told before it is read where its length says so.
            BodyBudgetSpent: all bodies together take too much.
            RequestTooSlow: no byte came for too long.
        """

    def pieces(self) -> AsyncIterator[bytes]:
        """The body in the pieces in which it comes in; once only."""

    @property
    def length(self) -> int | None:
        """Its length in bytes, None where it is not known before."""


class ClientRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as the listener hands it over. `raw_path` and `query` are undecoded; header names
    and values are those of the wire. `fields` has the first value of each header by its name in lower
    case. `fault` is what is wrong with its head."""

    id: str
    request_id: str
    method: str
    raw_path: str
    query: str
    headers: Headers
    fields: Mapping[str, str]
    peer: str | None
    body: BodySource
    received_at: float
    fault: ClientError | None = None


class Sink(Protocol):
    """Where one answer goes. Writes wait for a slow client, which is why they never run on the
    upstream's reading side."""

    @property
    def started(self) -> bool:
        """Whether a byte may have reached the client, after which nothing can be taken back."""

    async def start(self, status: int, headers: Headers, *, content_length: int | None) -> None:
        """Send the head. Without a length the body is chunked (or ends with the connection, for
        HTTP/1.0 clients)."""

    async def write(self, chunk: bytes) -> None:
        """Send a piece of the body, as one HTTP chunk where the body is chunked."""

    def outlet(self, end: Callable[[BalancerError], None]) -> Callable[[bytes], None] | None:
        """What takes a piece of a stream at once, as `write` does but without waiting; `end` is called
        where the client wants no more: with SlowReader when it leaves too much unread, with ClientLeft
        when it has left. None where every write has to wait."""

    async def finish(self) -> None:
        """End the answer properly."""

    async def break_off(self, record: bytes) -> None:
        """Send a last record and end so that the client can see that the answer is not whole; what
        was written before still arrives."""

    def abort(self) -> None:
        """End it at once, without waiting for the client to take what was written. Idempotent."""


async def send_whole(sink: Sink, status: int, headers: Headers, body: bytes, *, method: str = "GET") -> None:
    """Send an answer whose body is at hand; for HEAD only its head."""
    await sink.start(status, headers, content_length=len(body))
    if body and method != "HEAD":
        await sink.write(body)
    await sink.finish()
