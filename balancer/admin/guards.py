"""What a request to the admin listener must be before anything is done for it, and how a refusal looks.

A browser on the operator's machine reaches this listener too, so a page must not: Host tells a page
that rebound its own name, Origin one that posts across, and a JSON content type cannot be had from
a plain form. Refusals are JSON, those of the router among them.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from balancer.admission.origin import check_host
from balancer.errors import Forbidden

BODY_BYTES = 64 * 1024
_BODY_SECONDS = 10.0
_READING = frozenset({"GET", "HEAD"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_answer(value: object, *, status: int = 200) -> web.Response:
    """An answer of the admin API."""
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json", charset="utf-8"
    )


def refused(status: int, problem: str) -> web.Response:
    """An answer that says why nothing was done."""
    return json_answer({"error": problem}, status=status)


@web.middleware
async def tell_errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the router cannot place: 404, or 405 with `Allow`."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = refused(405, f"{request.method} is not allowed here; allowed are {allowed}")
        answer.headers["Allow"] = allowed
        return answer
    except web.HTTPNotFound:
        return refused(404, "the admin listener does not serve this path")


@web.middleware
async def guard_host(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Pass a request whose Host means this machine."""
    try:
        check_host(request.headers.get("Host"), own_name=socket.gethostname())
    except Forbidden as error:
        return refused(403, str(error))
    return await handler(request)


@web.middleware
async def guard_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Pass what only reads, what no page sent, and what a page of this very listener sent."""
    origins = request.headers.getall("Origin", [])
    if request.method not in _READING and not all(
        _own(each, request.headers.get("Host")) for each in origins
    ):
        return refused(403, "pages of other origins may not change anything here")
    return await handler(request)


def changing(handler: Handler) -> Handler:
    """The handler of a POST that needs no arguments: the body is JSON, and `{}` or empty."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            return refused(415, "the content type must be application/json")
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await request.read()
        except TimeoutError:
            return refused(408, f"the body did not come in {_BODY_SECONDS:g} s")
        except web.HTTPRequestEntityTooLarge:
            return refused(413, f"the body is larger than {BODY_BYTES} bytes")
        except web.RequestPayloadError:
            return refused(400, "the body cannot be read")
        if not _is_empty(body):
            return refused(400, "the body must be {} or empty: there are no arguments")
        return await handler(request)

    return guarded


def _own(origin: str, host: str | None) -> bool:
    """Whether an origin is the address that the request itself names."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return bool(parts.netloc) and parts.netloc.casefold() == (host or "").strip().casefold()


def _is_empty(body: bytes) -> bool:
    if not body.strip():
        return True
    try:
        return not msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
