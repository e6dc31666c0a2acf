"""Warming up: the models that are meant for an instance are loaded before it counts as up."""

from collections.abc import Mapping

from balancer.core.plan import Plan, Runtime
from balancer.errors import InstanceError
from balancer.provisioning.launch import Launch
from balancer.telemetry.logs import Logger
from balancer.upstream.control_client import ControlClient

_LOAD_SECONDS = 900.0


class WarmUp:
    """Loads what the plan means for an instance. Runtimes of one model load it by themselves."""

    def __init__(self, plan: Plan, client: ControlClient, log: Logger) -> None:
        self._client = client
        self._log = log
        self._models = {each.name: each.models for each in plan.instances if each.runtime is Runtime.OLLAMA}

    async def load(self, launch: Launch) -> None:
        """Load them one after the other. A model that is not there, or cannot be loaded, is logged and left
        to those who ask for it."""
        url = f"http://127.0.0.1:{launch.port}"
        for model in self._models.get(launch.name, ()):
            try:
                status, told = await self._load(url, "/api/generate", {"model": model})
                if status == 400:  # a model that embeds does not generate
                    status, told = await self._load(url, "/api/embed", {"model": model, "input": []})
                error = None if status < 300 else told.get("error", status)
            except InstanceError as unanswered:
                error = str(unanswered)
            log = self._log.info if error is None else self._log.warning
            log("warmed_up", instance=launch.name, model=model, error=error)

    async def _load(
        self, url: str, path: str, body: Mapping[str, object]
    ) -> tuple[int, Mapping[str, object]]:
        return await self._client.try_post(url, path, body, timeout_seconds=_LOAD_SECONDS)
