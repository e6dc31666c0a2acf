"""How the balancer's own parts reach the instances in virtual time: what the upstream client and the control
client are to real ones, without HTTP.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from balancer.errors import BadResponse, ConnectFailed
from balancer.simulator.virtual.instances import VirtualInstance
from balancer.upstream.client import UpstreamRequest
from balancer.upstream.control_client import ControlClient


class VirtualUpstream:
    """What the loader asks; satisfies `control.loader.Asks`."""

    def __init__(self, instances: Mapping[str, VirtualInstance]) -> None:
        self._instances = instances

    async def ask(
        self, url: str, request: UpstreamRequest, *, limit_bytes: int, within_seconds: float
    ) -> tuple[int, bytes]:
        assert isinstance(request.body, bytes)
        body = msgspec.json.decode(request.body, type=dict[str, object])
        status, answer = await self._instances[url].ask(request.target, body)
        return status, msgspec.json.encode(answer)


class VirtualControl(ControlClient):
    """The questions of the prober and of those who make room, with their deadlines."""

    def __init__(self, instances: Mapping[str, VirtualInstance]) -> None:
        self._instances = instances

    async def close(self) -> None:
        pass

    async def _good(
        self, method: str, url: str, path: str, body: Mapping[str, object] | None, timeout_seconds: float
    ) -> Mapping[str, object]:
        what = f"{method} {path}"
        try:
            async with asyncio.timeout(timeout_seconds):
                status, answer = await self._instances[url].ask(path, body or {})
        except TimeoutError as error:
            raise ConnectFailed(f"{what}: no answer in {timeout_seconds:g} s") from error
        if status != HTTPStatus.OK:
            raise BadResponse(f"{what}: answered {status}")
        return answer
