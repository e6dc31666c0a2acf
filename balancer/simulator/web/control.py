"""The simulator's own routes: set faults, and see what Ollama would not show.

They bypass every fault and check of the gate. No real Ollama has them.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from balancer.simulator.configuration import VERSION
from balancer.simulator.errors import Refusal
from balancer.simulator.faults import FaultKind
from balancer.simulator.requests import decode_json
from balancer.simulator.runner import Runner
from balancer.simulator.web.framing import json_response, native_error
from balancer.simulator.web.parts import ServerParts


class ControlRoutes:
    """Handlers of /simulator/faults and /simulator/state."""

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/simulator/faults", self.list_faults),
            web.post("/simulator/faults", self.add_fault),
            web.delete("/simulator/faults", self.clear_faults),
            web.delete("/simulator/faults/{id}", self.clear_fault),
            web.get("/simulator/state", self.state),
        ]

    async def list_faults(self, request: web.Request) -> web.Response:
        return json_response(request, {"faults": [fault.as_json() for fault in self._parts.faults]})

    async def add_fault(self, request: web.Request) -> web.Response:
        try:
            fields = decode_json(await request.read())
            if fields.get("process") and not self._parts.config.may_kill_process:
                raise Refusal(400, "this server runs inside another process; it may not kill it")
            fault = self._parts.faults.add(fields)
        except Refusal as error:
            return native_error(request, error)
        except ValueError as error:
            return native_error(request, Refusal(400, str(error)))
        if fault.kind is FaultKind.REFUSE:
            self._parts.faults.clear(fault.id)
            self._parts.refuse(fault.seconds or 1.0)
        return json_response(request, fault.as_json(), status=201)

    async def clear_faults(self, request: web.Request) -> web.Response:
        self._parts.faults.clear()
        return json_response(request, {"faults": []})

    async def clear_fault(self, request: web.Request) -> web.Response:
        if request.match_info["id"].isdecimal():
            self._parts.faults.clear(int(request.match_info["id"]))
        return await self.list_faults(request)

    async def state(self, request: web.Request) -> web.Response:
        return json_response(request, state_of(self._parts))


def state_of(parts: ServerParts) -> dict[str, Any]:
    """Everything that a test may want to know, as JSON values."""
    runners = parts.scheduler.runners
    return {
        "name": parts.config.name,
        "version": VERSION,
        "speed": parts.config.speed,
        "connections_open": parts.connections_open(),
        **parts.seen.counts(),
        "waiting": sum(runner.slots.waiting for runner in runners),
        "pending_loads": parts.scheduler.pending,
        "loading": parts.scheduler.loading,
        "runners": [_runner_state(runner) for runner in runners],
        "recent_requests": [
            {"method": seen.method, "path": seen.path, "headers": [list(header) for header in seen.headers]}
            for seen in parts.seen.recent
        ],
    }


def _runner_state(runner: Runner) -> dict[str, Any]:
    return {
        "model": runner.model.name.display(),
        "digest": runner.model.digest,
        "num_ctx": runner.options.num_ctx,
        "slots": runner.slots.capacity,
        "slots_free": runner.slots.free,
        "slots_busy": runner.slots.busy,
        "slots_leaked": runner.slots.leaked,
        "waiting": runner.slots.waiting,
        "refs": runner.refs,
        "crashed": runner.crashed,
        "cached_tokens": runner.cache.held_tokens,
    }
