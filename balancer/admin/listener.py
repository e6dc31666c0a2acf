"""The admin listener and, with fewer routes, the metrics listener."""

import socket
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from balancer.admin.report import Report
from balancer.admission.origin import check_host
from balancer.errors import Forbidden
from balancer.settings import Address
from balancer.telemetry.metrics import CONTENT_TYPE

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminListener:
    """Read-only so far: metrics, health, instances, queue, requests and decisions.

    With `metrics_only` it serves `/metrics` and health without names, and may be reached from
    other machines; else it is for this machine, and checks that its Host header says so.
    """

    def __init__(self, *, address: Address, report: Report, metrics_only: bool = False) -> None:
        self._address = address
        self._report = report
        self._metrics_only = metrics_only
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it listens, once it is open."""
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def open(self) -> None:
        """Begin to accept. Raises OSError where the address cannot be bound."""
        app = web.Application(middlewares=[] if self._metrics_only else [_guard_host])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/health", self._health)
        if not self._metrics_only:
            app.router.add_get("/admin/v1/instances", self._instances)
            app.router.add_get("/admin/v1/queue", self._queue)
            app.router.add_get("/admin/v1/requests", self._requests)
            app.router.add_get("/admin/v1/requests/{id}/decision", self._decision)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._address.host, self._address.port).start()

    async def close(self) -> None:
        """Accept no more and cut what is under way."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._report.metrics(), headers={"Content-Type": CONTENT_TYPE})

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _readyz(self, _request: web.Request) -> web.Response:
        ready = self._report.ready
        return web.Response(status=200 if ready else 503, text="ready" if ready else "no instance is usable")

    async def _health(self, _request: web.Request) -> web.Response:
        health = self._report.summary() if self._metrics_only else self._report.health()
        return _json(health, status=200 if self._report.ready else 503)

    async def _instances(self, _request: web.Request) -> web.Response:
        return _json({"instances": self._report.instances()})

    async def _queue(self, _request: web.Request) -> web.Response:
        return _json(self._report.queue())

    async def _requests(self, _request: web.Request) -> web.Response:
        return _json(self._report.requests())

    async def _decision(self, request: web.Request) -> web.Response:
        wanted = request.match_info["id"]
        decisions = self._report.decisions(wanted)
        if decisions is None:
            return _json({"error": "no decision is remembered for that request id"}, status=404)
        return _json({"request": wanted, "decisions": decisions})


@web.middleware
async def _guard_host(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        check_host(request.headers.get("Host"), own_name=socket.gethostname())
    except Forbidden as error:
        return _json({"error": str(error)}, status=403)
    return await handler(request)


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json", charset="utf-8"
    )
