"""The admin listener and, with fewer routes, the metrics listener."""

from collections.abc import Mapping

from aiohttp import web

from balancer.admin.guards import (
    BODY_BYTES,
    changing,
    guard_host,
    guard_origin,
    json_answer,
    refused,
    tell_errors_as_json,
)
from balancer.admin.openapi import DOCUMENT
from balancer.admin.operations import Operations
from balancer.admin.report import Report
from balancer.control.supervisor import NotManaged
from balancer.core.ticket import InstanceId
from balancer.settings import Address, SettingsError
from balancer.telemetry.metrics import CONTENT_TYPE

_NAMED_INSTANCES = 20
_PATIENCE_SECONDS = 1.0
"""For answers under way at the end, and for the rest of a body that was refused."""


class AdminListener:
    """Metrics, health, and with `operations` the admin API: what the balancer is doing, and what an
    operator may change.

    Without `operations` it is the metrics listener: health without names, nothing to change, and it
    may be reached from other machines. Else it is for this machine, and checks that its Host header
    says so.
    """

    def __init__(self, *, address: Address, report: Report, operations: Operations | None = None) -> None:
        self._address = address
        self._report = report
        self._operations = operations
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it listens, once it is open."""
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def application(self) -> web.Application:
        """Its routes."""
        guards = [tell_errors_as_json] if self._operations is None else [tell_errors_as_json, guard_host]
        app = web.Application(middlewares=[*guards, guard_origin], client_max_size=BODY_BYTES)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/health", self._health)
        if self._operations is not None:
            self._add_admin_api(app.router, self._operations)
        return app

    async def open(self) -> None:
        """Begin to accept. Raises OSError where the address cannot be bound."""
        self._runner = web.AppRunner(
            self.application(),
            access_log=None,
            shutdown_timeout=_PATIENCE_SECONDS,
            lingering_time=_PATIENCE_SECONDS,
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, self._address.host, self._address.port).start()

    async def close(self) -> None:
        """Accept no more and cut what is under way."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _add_admin_api(self, router: web.UrlDispatcher, operations: Operations) -> None:
        router.add_get("/admin/v1/openapi.json", self._openapi)
        router.add_get("/admin/v1/config", self._config)
        router.add_get("/admin/v1/instances", self._instances)
        router.add_get("/admin/v1/devices", self._devices)
        router.add_get("/admin/v1/queue", self._queue)
        router.add_get("/admin/v1/requests", self._requests)
        router.add_get("/admin/v1/requests/{id}/decision", self._decision)

        async def drain(request: web.Request) -> web.Response:
            return self._drained(operations, request.match_info, drained=True)

        async def undrain(request: web.Request) -> web.Response:
            return self._drained(operations, request.match_info, drained=False)

        async def restart(request: web.Request) -> web.Response:
            return self._restarted(operations, request.match_info)

        async def restart_all(_request: web.Request) -> web.Response:
            operations.restart_all()
            return json_answer({"instances": self._report.instances()})

        async def reload(_request: web.Request) -> web.Response:
            return await self._reloaded(operations)

        router.add_post("/admin/v1/instances/{id:[^/]+}/drain", changing(drain))
        router.add_post("/admin/v1/instances/{id:[^/]+}/undrain", changing(undrain))
        router.add_post("/admin/v1/instances/{id:[^/]+}/restart", changing(restart))
        router.add_post("/admin/v1/restart", changing(restart_all))
        router.add_post("/admin/v1/reload", changing(reload))

    def _drained(self, operations: Operations, path: Mapping[str, str], *, drained: bool) -> web.Response:
        instance = InstanceId(path["id"])
        try:
            operations.drain(instance, drained)
            return json_answer(self._report.instance(instance))
        except KeyError:
            return self._unknown(instance)

    def _restarted(self, operations: Operations, path: Mapping[str, str]) -> web.Response:
        instance = InstanceId(path["id"])
        if instance not in self._report.names():
            return self._unknown(instance)
        try:
            operations.restart(instance)
        except NotManaged as error:
            return refused(409, str(error))
        return json_answer(self._report.instance(instance))

    def _unknown(self, instance: InstanceId) -> web.Response:
        return refused(404, f"there is no instance '{instance}'; {_listed(self._report.names())}")

    async def _reloaded(self, operations: Operations) -> web.Response:
        try:
            told = await operations.reload()
        except SettingsError as error:
            faults = [str(each) for each in error.faults]
            problem = "the configuration is refused; the one loaded before stays in force"
            return json_answer({"error": problem, "faults": faults}, status=400)
        return json_answer({"config": told.config, "changed": told.changed})

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._report.metrics(), headers={"Content-Type": CONTENT_TYPE})

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _readyz(self, _request: web.Request) -> web.Response:
        ready = self._report.ready
        return web.Response(status=200 if ready else 503, text="ready" if ready else "no instance is usable")

    async def _health(self, _request: web.Request) -> web.Response:
        health = self._report.summary() if self._operations is None else self._report.health()
        return json_answer(health, status=200 if self._report.ready else 503)

    async def _openapi(self, _request: web.Request) -> web.Response:
        return json_answer(DOCUMENT)

    async def _config(self, _request: web.Request) -> web.Response:
        return json_answer(self._report.config())

    async def _instances(self, _request: web.Request) -> web.Response:
        return json_answer({"instances": self._report.instances()})

    async def _devices(self, _request: web.Request) -> web.Response:
        return json_answer({"devices": self._report.devices(), "undetected": self._report.undetected})

    async def _queue(self, _request: web.Request) -> web.Response:
        return json_answer(self._report.queue())

    async def _requests(self, _request: web.Request) -> web.Response:
        return json_answer(self._report.requests())

    async def _decision(self, request: web.Request) -> web.Response:
        wanted = request.match_info["id"]
        decisions = self._report.decisions(wanted)
        if decisions is None:
            return refused(404, "no decision is remembered for that request id")
        return json_answer({"request": wanted, "decisions": decisions})


def _listed(names: list[str]) -> str:
    if not names:
        return "there is none at all"
    more = f" and {len(names) - _NAMED_INSTANCES} more" if len(names) > _NAMED_INSTANCES else ""
    return f"there are {', '.join(names[:_NAMED_INSTANCES])}{more}"
