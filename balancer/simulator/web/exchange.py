"""One generate or chat exchange over HTTP: a dialect's answer as a response, whole or streamed.

The only place where a failure becomes the bytes that its dialect has for it.
Called by web/inference.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping

from aiohttp import web

from balancer.simulator.answers import Part, collected
from balancer.simulator.dialects.wire import JSON_TYPE, SSE_TYPE, Dialect
from balancer.simulator.errors import Refusal, RunnerDied
from balancer.simulator.inference import ServerCut
from balancer.simulator.observations import Observations
from balancer.simulator.requests import InferenceRequest
from balancer.simulator.web.framing import ChunkedStream, whole_response
from balancer.simulator.web.parts import ServerParts

_NO_HEADERS: Mapping[str, str] = {}


class HttpSink:
    """Sends the parts of one answer, or gathers them where no stream was asked for."""

    def __init__(
        self,
        request: web.Request,
        dialect: Dialect,
        *,
        stream: bool,
        headers: Mapping[str, str],
        seen: Observations,
    ) -> None:
        self._request = request
        self._dialect = dialect
        self._streams = stream
        self._headers = headers
        self._stream = ChunkedStream(request, dialect.stream_type, headers=headers, seen=seen)
        self._parts: list[Part] = []
        self._begun = False
        self._response: web.StreamResponse | None = None

    @property
    def stalled(self) -> bool:
        return self._stream.stalled

    @property
    def response(self) -> web.StreamResponse | None:
        """What has been made or begun; None while nothing was written."""
        return self._response or self._stream.response

    def begin(self) -> None:
        self._begun = True

    async def single(self, part: Part) -> None:
        if self._streams and self._dialect.stream_type == SSE_TYPE:
            await self.step(part)
            await self.end()
        else:
            self._response = self._whole(part)

    async def step(self, part: Part) -> None:
        if not self._streams:
            self._parts.append(part)
            return
        for chunk in self._dialect.chunks(part):
            await self._stream.write(chunk)

    async def end(self) -> None:
        if self._streams:
            self._response = await self._stream.end()
        else:
            self._response = self._whole(collected(self._parts))

    async def fail(self, status: int, message: str) -> None:
        """Tell the failure in the dialect: as a status, or in what is left of the stream."""
        if self._stream.response is not None:
            for chunk in self._dialect.broken(message):
                await self._stream.write(chunk)
            await self.end()
            return
        in_place_of_stream = self._begun and self._streams
        content_type = JSON_TYPE if in_place_of_stream else self._dialect.unary_type
        self._response = whole_response(
            self._request,
            self._dialect.error(status, message),
            status=status,
            content_type=content_type,
            headers=self._headers,
            chunked=in_place_of_stream,
        )

    def _whole(self, part: Part) -> web.Response:
        body = self._dialect.whole(part)
        return whole_response(
            self._request, body, content_type=self._dialect.unary_type, headers=self._headers
        )


async def respond(
    parts: ServerParts,
    request: web.Request,
    dialect: Dialect,
    wanted: InferenceRequest,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> web.StreamResponse:
    """Run the request and give its response, begun or complete. Cancelling it is the client's leaving."""
    sink = HttpSink(request, dialect, stream=wanted.stream, headers=headers, seen=parts.seen)
    try:
        await parts.core.run(wanted, sink)
    except Refusal as error:
        parts.seen.refused += 1
        await sink.fail(error.status, error.message)
    except RunnerDied as error:
        await sink.fail(500, error.message)
    except ServerCut as cut:
        cut_connection(request, kill_process=str(cut) == "process")
    except (asyncio.CancelledError, ConnectionError):
        parts.seen.cancelled += 1
        raise
    return sink.response or web.Response()


def cut_connection(request: web.Request, *, kill_process: bool = False) -> None:
    """End the connection after what is already written; the answer gets no proper end."""
    if kill_process:
        os.kill(os.getpid(), signal.SIGKILL)
    if request.transport is not None:
        request.transport.close()
