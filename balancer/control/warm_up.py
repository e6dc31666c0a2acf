"""Warming up: the models that are meant for an instance are loaded before it counts as up."""

from balancer.core.plan import Plan, Runtime
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
        """Load them one after the other. A model that is not there or cannot be loaded is logged and left to
        those who ask for it. Raises InstanceError where the instance does not answer."""
        url = f"http://127.0.0.1:{launch.port}"
        for model in self._models.get(launch.name, ()):
            status, told = await self._client.try_post(
                url, "/api/generate", {"model": model}, timeout_seconds=_LOAD_SECONDS
            )
            if status == 400:  # a model that embeds does not generate
                status, told = await self._client.try_post(
                    url, "/api/embed", {"model": model, "input": []}, timeout_seconds=_LOAD_SECONDS
                )
            log = self._log.info if status < 300 else self._log.warning
            log("warmed_up", instance=launch.name, model=model, status=status, error=told.get("error"))
