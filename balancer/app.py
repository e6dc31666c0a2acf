"""The composition root: builds every object once, and runs them in one TaskGroup."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

from balancer import __version__
from balancer.accounting.ledger import Ledger
from balancer.admin.listener import AdminListener
from balancer.admin.report import Report
from balancer.admission.body_budget import BodyBudget
from balancer.admission.identity import is_loopback
from balancer.admission.queue import RequestQueue
from balancer.attempts import Attempts
from balancer.clock import Clock, SystemClock
from balancer.control.lag import LagWatch
from balancer.control.prober import Prober, ProbeTimes
from balancer.core.names import canonical_name
from balancer.core.ticket import InstanceId
from balancer.dispatch import Dispatcher
from balancer.fleet.fleet import Fleet
from balancer.fleet.health import Health
from balancer.fleet.instance import Instance, InstanceSpec
from balancer.forwarding.answers import Answers
from balancer.forwarding.stores import Stores
from balancer.frontend.listener import Listener
from balancer.pipeline import Pipeline, Policy
from balancer.provisioning.local import LocalOllama, find_local_ollama
from balancer.scheduling.scheduler import Scheduler
from balancer.settings import InstanceSettings, Settings
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics
from balancer.upstream.client import UpstreamClient
from balancer.upstream.control_client import ControlClient

_UPSTREAM_IDLE_SECONDS = 60.0
_STOP_GRACE_SECONDS = 5.0
_TELL_SECONDS = 1.0
_FIRST_PROBES_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a balancer listens, as URLs with real ports."""

    clients: str
    admin: str
    metrics: str | None


class Balancer:
    """One balancer, built from settings. Its parts are public for tests and for a look from inside."""

    def __init__(
        self, settings: Settings, *, log: Logger, clock: Clock | None = None, random: Random | None = None
    ) -> None:
        self.settings = settings
        self.log = log
        self.clock = clock or SystemClock()
        self.metrics = Metrics()
        self.metrics.build_info.labels(__version__).set(1)
        self.fleet = Fleet(_instance(each, settings) for each in _chosen(settings))
        self.queue = RequestQueue(limit=settings.limits.queue_requests)
        self.ledger = Ledger(
            metrics=self.metrics,
            log=log,
            clock=self.clock,
            known_model=self.fleet.knows,
        )
        self.dispatcher = Dispatcher(
            fleet=self.fleet,
            queue=self.queue,
            scheduler=Scheduler(self.fleet, strategy=settings.strategy.value, random=random or Random()),
            clock=self.clock,
            on_decision=self.ledger.decided,
        )
        self.client = UpstreamClient(
            connect_seconds=settings.limits.connect_seconds,
            idle_seconds=_UPSTREAM_IDLE_SECONDS,
            buffer_bytes=settings.limits.stream_buffer_bytes,
        )
        self.fleet.listen(on_down=self._went_down)
        self.control = ControlClient()
        self.prober = Prober(
            fleet=self.fleet,
            client=self.control,
            times=ProbeTimes(
                interval_seconds=settings.health.interval_seconds,
                timeout_seconds=settings.health.timeout_seconds,
            ),
            clock=self.clock,
            log=log,
            find_local=_find_local,
        )
        self.report = Report(
            fleet=self.fleet, queue=self.queue, ledger=self.ledger, metrics=self.metrics, clock=self.clock
        )
        self.listener = Listener(
            address=settings.listen, limits=settings.limits, handler=self._pipeline(), clock=self.clock
        )
        self.admin = AdminListener(address=settings.admin_listen, report=self.report)
        self.metrics_listener = (
            AdminListener(address=settings.metrics_listen, report=self.report, metrics_only=True)
            if settings.metrics_listen is not None
            else None
        )

    async def run(self, stop: asyncio.Event, *, opened: Callable[[Addresses], None] = lambda _: None) -> None:
        """Serve until `stop` is set. `opened` is called once all listeners accept.

        Raises:
            OSError: an address cannot be bound; nothing is left open.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.control.close)
            stack.callback(self.client.close)
            listeners = [each for each in (self.admin, self.metrics_listener) if each is not None]
            for listener in listeners:
                stack.push_async_callback(listener.close)
                await listener.open()
            stack.push_async_callback(self.listener.close)
            await self.listener.open()
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(self.prober.run()),
                    group.create_task(LagWatch(metrics=self.metrics, clock=self.clock).run()),
                ]
                await self._first_probes()
                opened(self._addresses())
                await stop.wait()
                await self._stop()
                for loop in loops:
                    loop.cancel()

    async def _stop(self) -> None:
        """Take nothing new, give answers under way some time, and tell the clients of those that need
        more that they are not whole."""
        self.listener.stop_accepting()
        self.dispatcher.stop()
        await self._idle(_STOP_GRACE_SECONDS)
        self.client.break_off("the balancer was stopped before the answer was complete")
        await self._idle(_TELL_SECONDS)
        await self.listener.close()

    async def _idle(self, within_seconds: float) -> None:
        """Until no request is under way, or so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self.ledger.idle.wait()

    async def _first_probes(self) -> None:
        """Give the instances a moment, that the first request is not told that there are none."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_PROBES_SECONDS):
                await self.prober.probed.wait()

    def _went_down(self, instance: Instance) -> None:
        """Requests that wait there for a first byte can go elsewhere."""
        self.log.warning("instance_down", instance=instance.id, error=instance.health.last_error)
        self.client.abandon(instance.id, "the instance went down")

    def _addresses(self) -> Addresses:
        metrics = self.metrics_listener.url if self.metrics_listener is not None else None
        return Addresses(self.listener.url, self.admin.url, metrics)

    def _pipeline(self) -> Pipeline:
        settings = self.settings
        attempts = Attempts(
            fleet=self.fleet,
            dispatcher=self.dispatcher,
            client=self.client,
            ledger=self.ledger,
            refresh=self.prober.refresh,
            look=self.prober.look,
            clock=self.clock,
        )
        return Pipeline(
            attempts=attempts,
            answers=Answers(fleet=self.fleet, refresh=self.prober.refresh, waiting=self.queue.__len__),
            stores=Stores(
                fleet=self.fleet,
                client=self.client,
                clock=self.clock,
                refresh=self.prober.refresh,
                changed=self.prober.changed,
            ),
            ledger=self.ledger,
            budget=BodyBudget(settings.limits.body_memory_bytes),
            policy=Policy(
                body_bytes=settings.limits.body_bytes,
                headers_bytes=settings.limits.headers_bytes,
                queue_seconds=settings.limits.queue_seconds,
                allow_model_changes=settings.allow_model_changes,
                cors_origins=frozenset(settings.cors_origins),
                loopback_only=settings.listen.loopback,
                own_name=socket.gethostname(),
            ),
            clock=self.clock,
            log=self.log,
        )


def _chosen(settings: Settings) -> tuple[InstanceSettings, ...]:
    """All instances, or the first one where nothing is to be balanced."""
    return settings.all_instances if settings.load_balancing.enabled else settings.all_instances[:1]


def _instance(settings: InstanceSettings, whole: Settings) -> Instance:
    spec = InstanceSpec(
        id=InstanceId(settings.name),
        url=settings.url,
        weight=settings.weight,
        max_concurrent_requests=settings.max_concurrent_requests,
        slots=settings.slots,
        models=frozenset(canonical_name(name) for name in settings.models),
        store=settings.store,
    )
    health = Health(
        unhealthy_threshold=whole.health.unhealthy_threshold,
        healthy_threshold=whole.health.healthy_threshold,
    )
    return Instance(spec, health)


def _find_local(instance: Instance) -> LocalOllama | None:
    """The process behind an instance of this machine."""
    parts = urlsplit(instance.spec.url)
    return find_local_ollama(parts.port or 80) if is_loopback(parts.hostname) else None
