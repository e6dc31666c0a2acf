"""Bodies and streams framed as Go's HTTP server frames them.

Short bodies carry a length, longer ones are chunked; a stream's headers leave
with its first chunk. It knows no dialect. Called by every route module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import zstandard
from aiohttp import HttpVersion11, web

from balancer.simulator.dialects.native import error_body
from balancer.simulator.dialects.wire import JSON_UTF8_TYPE, encode
from balancer.simulator.errors import Refusal
from balancer.simulator.observations import Observations

# Source: Go net/http: what fits its buffer when the handler ends gets a Content-Length.
_LENGTH_LIMIT_BYTES = 2048
_INFLATED_LIMIT_BYTES = 20 << 20


def whole_response(
    request: web.Request,
    body: bytes,
    *,
    status: int = 200,
    content_type: str = JSON_UTF8_TYPE,
    headers: Mapping[str, str] | None = None,
    chunked: bool = False,
) -> web.Response:
    """A complete answer, with its length when it is short and in one chunk when it is not."""
    response = web.Response(
        body=body, status=status, headers={**(headers or {}), "Content-Type": content_type}
    )
    if (chunked or len(body) >= _LENGTH_LIMIT_BYTES) and can_chunk(request):
        response.enable_chunked_encoding()
    return response


def json_response(request: web.Request, value: object, *, status: int = 200) -> web.Response:
    """A native JSON answer."""
    return whole_response(request, encode(value), status=status)


def native_error(request: web.Request, error: Refusal) -> web.Response:
    """A native error answer."""
    return whole_response(request, error_body(error.message), status=error.status)


def can_chunk(request: web.Request) -> bool:
    """Whether the client speaks HTTP/1.1; older ones get a body that the connection's end ends."""
    return request.version >= HttpVersion11


async def inflated_body(request: web.Request) -> bytes:
    """The request body of a /v1 route, which may be zstd. Raises: Refusal 400.

    Source: Ollama v0.33 server/cloud_proxy.go; native routes do not inflate.
    """
    raw = await request.read()
    if request.headers.get("Content-Encoding") != "zstd":
        return raw
    try:
        inflated = zstandard.ZstdDecompressor().stream_reader(raw).read(_INFLATED_LIMIT_BYTES + 1)
    except zstandard.ZstdError as error:
        raise Refusal(400, "failed to decompress request body") from error
    if len(inflated) > _INFLATED_LIMIT_BYTES:
        raise Refusal(400, "http: request body too large")
    return inflated


class ChunkedStream:
    """A stream whose headers leave with its first chunk; each write is one HTTP chunk."""

    def __init__(
        self,
        request: web.Request,
        content_type: str,
        *,
        headers: Mapping[str, str] | None = None,
        seen: Observations,
    ) -> None:
        self._request = request
        self._seen = seen
        self._headers = {**(headers or {}), "Content-Type": content_type}
        self._response: web.StreamResponse | None = None
        self.stalled = False

    @property
    def response(self) -> web.StreamResponse | None:
        """The response, once something has been written."""
        return self._response

    async def write(self, data: bytes) -> None:
        """Send one chunk; waits while the reader has stopped, and `stalled` says so for ever after.

        Raises: ConnectionError when the client is gone.
        """
        response = await self._started()
        # Stays set when the wait below is cancelled: the reader left without taking this.
        self.stalled = True
        await response.write(data)
        if _path_is_full(self._request.transport):
            self._seen.stalled_writes += 1
        await self._request.writer.drain()
        self.stalled = False

    async def end(self) -> web.StreamResponse:
        """Send the terminating chunk."""
        response = await self._started()
        await response.write_eof()
        return response

    async def _started(self) -> web.StreamResponse:
        if self._response is None:
            self._response = web.StreamResponse(headers=self._headers)
            if not self._request.keep_alive:
                self._response.headers.pop("Connection", None)
            if can_chunk(self._request):
                self._response.enable_chunked_encoding()
            await self._response.prepare(self._request)
        return self._response


def _path_is_full(transport: asyncio.Transport | None) -> bool:
    return (
        transport is not None and transport.get_write_buffer_size() > transport.get_write_buffer_limits()[1]
    )
