"""What every request passes before its handler: the record, the checks, the faults.

Also what unknown paths and wrong verbs are answered. Faults limited to a model
strike later, when the handler has read the body (`strike_model`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from balancer.simulator.dialects import anthropic, openai
from balancer.simulator.dialects.native import error_body
from balancer.simulator.errors import QUEUE_FULL
from balancer.simulator.faults import Fault, FaultKind
from balancer.simulator.observations import SeenRequest
from balancer.simulator.web.framing import whole_response
from balancer.simulator.web.parts import ServerParts

CONTROL_PREFIX = "/simulator/"
_INFERENCE_PATHS = frozenset(
    {
        "/api/generate",
        "/api/chat",
        "/api/embed",
        "/api/embeddings",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/audio/transcriptions",
    }
)
_CONNECTION_FAULTS = (FaultKind.CLOSE_BEFORE_HEADERS, FaultKind.GARBAGE, FaultKind.HANG)
_STATUS_FAULTS = (FaultKind.STATUS_500, FaultKind.BUSY_503)
_ORIGIN_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
# Python's is_private counts more networks than Go's.
_PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
_ALLOWED_HEADERS = (
    *("Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "Openai-Beta"),
    *("X-Stainless-Arch", "X-Stainless-Async", "X-Stainless-Custom-Poll-Interval"),
    *("X-Stainless-Helper-Method", "X-Stainless-Lang", "X-Stainless-Os", "X-Stainless-Package-Version"),
    *("X-Stainless-Poll-Helper", "X-Stainless-Retry-Count", "X-Stainless-Runtime"),
    *("X-Stainless-Runtime-Version", "X-Stainless-Timeout"),
)
_PREFLIGHT = {
    "Access-Control-Allow-Headers": ",".join(_ALLOWED_HEADERS),
    "Access-Control-Allow-Methods": "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS",
    "Access-Control-Max-Age": "43200",
}
_ORIGIN_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")


class FaultStruck(Exception):
    """A fault that is limited to a model has met a request for it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.kind)
        self.fault = fault


class AnsweredEarly(Exception):
    """A handler's helper has the answer already."""

    def __init__(self, response: web.StreamResponse) -> None:
        super().__init__("answered early")
        self.response = response


def strike_model(parts: ServerParts, request: web.Request, model: str) -> None:
    """Count a request for this model, and meet the faults that are limited to it.

    Raises: FaultStruck, which the gate carries out.
    """
    parts.seen.requests_by_model[model] += 1
    kinds = (*_CONNECTION_FAULTS, *_STATUS_FAULTS)
    fault = parts.faults.take(*kinds, path=request.path, model=model, named=True)
    if fault is not None:
        raise FaultStruck(fault)


def gate(parts: ServerParts) -> Middleware:
    """The middleware of one server."""

    @web.middleware
    async def pass_gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(CONTROL_PREFIX):
            return await handler(request)
        _record(parts, request)
        if (refused := _refused_by_name(parts, request)) is not None:
            return refused
        fault = _fault_of(parts, request)
        if fault is not None and (struck := await _carry_out(parts, fault, request)) is not None:
            return struck
        try:
            return await handler(request)
        except FaultStruck as caught:
            return await _carry_out(parts, caught.fault, request) or await handler(request)
        except AnsweredEarly as early:
            return early.response
        except web.HTTPNotFound:
            return _not_found(request)
        except web.HTTPMethodNotAllowed:
            refused = _plain(request, 405, b"405 method not allowed")
            refused.headers["Allow"] = _allowed_methods(request)
            return refused

    return pass_gate


async def name_origin(request: web.Request, response: web.StreamResponse) -> None:
    """Answer an allowed Origin as Ollama's CORS layer does, and drop aiohttp's Server header."""
    response.headers.pop("Server", None)
    origin = request.headers.get("Origin")
    if origin and response.status != 403:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"
        if request.method == "OPTIONS":
            response.headers.add("Vary", "Access-Control-Request-Method")
            response.headers.add("Vary", "Access-Control-Request-Headers")


def _record(parts: ServerParts, request: web.Request) -> None:
    parts.seen.requests_by_path[request.path] += 1
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers)
    parts.seen.recent.append(SeenRequest(method=request.method, path=request.path_qs, headers=headers))


def _fault_of(parts: ServerParts, request: web.Request) -> Fault | None:
    kinds = list(_CONNECTION_FAULTS)
    if request.path == "/api/ps":
        kinds.append(FaultKind.PROBE_SLOW)
    if request.path in _INFERENCE_PATHS:
        kinds += _STATUS_FAULTS
    return parts.faults.take(*kinds, path=request.path)


async def _carry_out(parts: ServerParts, fault: Fault, request: web.Request) -> web.StreamResponse | None:
    """The answer that the fault gives; None when the request goes on after it."""
    match fault.kind:
        case FaultKind.HANG | FaultKind.PROBE_SLOW:
            if fault.seconds is None:
                # For ever is what this fault is for: it ends when the client or the server does.
                await asyncio.Event().wait()
            await parts.clock.sleep_until(parts.clock.now() + (fault.seconds or 0.0))
            return None
        case FaultKind.STATUS_500:
            return _dialect_error(request, 500, "simulated fault")
        case FaultKind.BUSY_503:
            return _dialect_error(request, 503, QUEUE_FULL)
        case FaultKind.GARBAGE:
            return _hang_up(request, b"\x00\x16\x03 this is not HTTP\r\n\r\n")
        case _:
            return _hang_up(request, b"")


def _hang_up(request: web.Request, last_words: bytes) -> web.Response:
    if request.transport is not None:
        if last_words:
            request.transport.write(last_words)
        request.transport.close()
    # Never sent: writing to a closing transport fails, which aiohttp takes as the client's leaving.
    return web.Response()


def _dialect_error(request: web.Request, status: int, message: str) -> web.Response:
    if request.path == "/v1/messages":
        body = anthropic.error_body(status, message, "req_" + "0" * 24)
    elif request.path.startswith("/v1/"):
        body = openai.error_body(status, message)
    else:
        body = error_body(message)
    return whole_response(request, body, status=status)


def _plain(request: web.Request, status: int, body: bytes) -> web.Response:
    return whole_response(request, body, status=status, content_type="text/plain")


def _not_found(request: web.Request) -> web.StreamResponse:
    if len(request.path) > 1 and request.path.endswith("/"):
        target = request.path.rstrip("/")
        if request.method != "GET":
            return web.Response(status=307, headers={"Location": target})
        page = f'<a href="{target}">Moved Permanently</a>.\n\n'.encode()
        moved = whole_response(request, page, status=301, content_type="text/html; charset=utf-8")
        moved.headers["Location"] = target
        return moved
    return _plain(request, 404, b"404 page not found")


def _refused_by_name(parts: ServerParts, request: web.Request) -> web.Response | None:
    """The empty 403 of a foreign Origin or Host, and the 204 of a preflight.

    Host is only checked on listeners of the loopback, where OPTIONS needs no
    Origin when Host is a name. Source: Ollama v0.33 server/routes.go allowedHostsMiddleware.
    """
    host = request.headers.get("Host", "")
    origin = request.headers.get("Origin", "")
    if origin and not _origin_allowed(origin, host):
        return web.Response(status=403)
    allowed = {"Allow": methods} if (methods := _allowed_methods(request)) else {}
    if request.method == "OPTIONS" and origin:
        return web.Response(status=204, headers={**_PREFLIGHT, **allowed})
    if not _is_loopback(parts.config.host):
        return None
    if not host_allowed(host):
        return web.Response(status=403)
    if request.method == "OPTIONS" and not _is_address(host):
        return web.Response(status=204, headers=allowed)
    return None


def _allowed_methods(request: web.Request) -> str:
    """The verbs that the path knows, in Ollama's order; empty for an unknown path."""
    problem = request.match_info.http_exception
    known = problem.allowed_methods if isinstance(problem, web.HTTPMethodNotAllowed) else set()
    return ", ".join(method for method in ("HEAD", "GET", "POST", "DELETE") if method in known)


def _origin_allowed(origin: str, host: str) -> bool:
    parsed = urlsplit(origin)
    if parsed.scheme in _ORIGIN_SCHEMES or origin in {f"http://{host}", f"https://{host}"}:
        return True
    return parsed.scheme in {"http", "https"} and parsed.hostname in _ORIGIN_HOSTS


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_address(header: str) -> bool:
    """Whether a Host header holds an IP address and no name."""
    try:
        ipaddress.ip_address(urlsplit(f"//{header}").hostname or "")
    except ValueError:
        return False
    return True


def host_allowed(header: str) -> bool:
    """Whether a loopback listener serves this Host header."""
    name = (urlsplit(f"//{header}").hostname or "").lower()
    if name in {"", "localhost", socket.gethostname().lower()}:
        return True
    if name.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified or any(address in net for net in _PRIVATE_NETWORKS)
