"""A request's body as it comes in over aiohttp; satisfies `forwarding.downstream.BodySource`."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import HttpVersion11, web
from aiohttp.web_exceptions import HTTPException

from balancer.admission.body_budget import HeldBody
from balancer.errors import BodyTooLarge, BrokenFraming, ClientLeft, HeadersTooLarge, RequestTooSlow
from balancer.frontend.connection import BrokenBody, FastRequest
from balancer.frontend.heads import UNPARSABLE


class RequestBody:
    """Reads lazily; asks for the body first where the client waits to be asked."""

    def __init__(self, request: web.BaseRequest | FastRequest, *, idle_seconds: float) -> None:
        self._request = request
        self._idle_seconds = idle_seconds

    @property
    def length(self) -> int | None:
        return self._request.content_length

    async def read(self, *, limit_bytes: int, held: HeldBody) -> bytes:
        """The whole body. Raises as `BodySource.read` says, ClientLeft, and BrokenFraming where
        its framing is broken."""
        if self.length is not None and self.length > limit_bytes:
            raise _too_large(limit_bytes)
        content = self._request.content
        if content.is_eof() and content.exception() is None:  # all of it came with the head
            whole = content.read_nowait()
            held.grow(len(whole))
            if len(whole) > limit_bytes:
                raise _too_large(limit_bytes)
            return whole
        body = bytearray()
        async for piece in self.pieces():
            held.grow(len(piece))
            body += piece
            if len(body) > limit_bytes:
                raise _too_large(limit_bytes)
        return bytes(body)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body in the pieces in which it comes in."""
        request = self._request
        if (
            request.headers.get("Expect", "").casefold() == "100-continue"
            and request.version >= HttpVersion11
        ):
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not request.content.at_eof():
            try:
                async with asyncio.timeout(self._idle_seconds):
                    piece = await request.content.readany()
            except TimeoutError as error:
                raise RequestTooSlow(f"no byte of the body came in {self._idle_seconds:g} s") from error
            except ConnectionError as error:
                raise ClientLeft("the client left while sending") from error
            except BrokenBody as error:
                kind = HeadersTooLarge if error.status == 431 else BrokenFraming
                raise kind(str(error)) from error
            except (web.RequestPayloadError, HTTPException) as error:
                raise BrokenFraming(UNPARSABLE) from error
            if piece:
                yield piece


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than {limit_bytes} bytes")
