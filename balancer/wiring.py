"""How settings, and what was provisioned, become the parts' own values, and the parts that need little else;
`app` builds the others with them."""

import socket
from collections.abc import Callable
from random import Random
from urllib.parse import urlsplit

from balancer.accounting.prefix_learner import PrefixLearner
from balancer.accounting.teacher import Teacher
from balancer.admission.identity import is_loopback
from balancer.admission.overload import WaitLimits
from balancer.clock import Clock
from balancer.control.instance_health import InstanceHealth
from balancer.control.lifecycle import SupervisorPolicy
from balancer.control.outlier_watch import OutlierWatch
from balancer.control.prober import ProbeTimes
from balancer.core.device import CPU
from balancer.core.names import canonical_name
from balancer.core.plan import PlannedInstance, Runtime
from balancer.core.ticket import InstanceId
from balancer.dispatch import Dispatcher
from balancer.fleet.breaker import BreakerPolicy, Breakers
from balancer.fleet.device_ledger import DeviceLedger
from balancer.fleet.ejection import EjectionPolicy
from balancer.fleet.fleet import Fleet
from balancer.fleet.health import Health, HealthPolicy
from balancer.fleet.instance import Instance
from balancer.fleet.instance_spec import InstanceSpec
from balancer.frontend.listener import Listener
from balancer.hedging import HedgePolicy, Hedging
from balancer.pipeline import Pipeline, Policy
from balancer.provisioning.local import LocalOllama, find_local_ollama
from balancer.provisioning.provisioned import Provisioned
from balancer.scheduling.adaptive import Adaptive
from balancer.scheduling.prefix_index import PrefixIndex
from balancer.scheduling.scheduler import Scheduler
from balancer.scheduling.strategies import STRATEGIES, Shelf
from balancer.settings import InstanceSettings, Settings, Strategy
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics
from balancer.upstream.client import UpstreamClient
from balancer.upstream.stream_memory import StreamMemory

_UPSTREAM_IDLE_SECONDS = 60.0
_RETRY_SPREAD = 1.5
_MOST_FOR_BODIES = 1 << 30
_MOST_FOR_STREAMS = 1 << 29
_SPARE_BYTES = 4 << 30
"""A CPU beside GPUs takes models of at most so many bytes."""


def wait_limits(settings: Settings) -> WaitLimits:
    """How long requests may wait."""
    limits = settings.limits
    return WaitLimits(longest=limits.queue_seconds, standing=limits.standing_delays)


def retry_spread(chance: Random) -> Callable[[], float]:
    """Factors for `Retry-After`, so that those turned away together do not come back together."""
    return lambda: chance.uniform(1.0, _RETRY_SPREAD)


def body_memory_bytes(settings: Settings, allowed_bytes: int) -> int:
    """Memory for all request bodies, of what the process may use."""
    limits = settings.limits
    return limits.body_memory_bytes or max(limits.body_bytes, min(_MOST_FOR_BODIES, allowed_bytes // 4))


def stream_memory_bytes(settings: Settings, allowed_bytes: int) -> int:
    """Memory for what slow readers leave of all streams, of what the process may use."""
    return settings.limits.stream_memory_bytes or min(_MOST_FOR_STREAMS, allowed_bytes // 8)


def prefix_index_bytes(settings: Settings) -> int:
    """Memory for what is remembered of prompts, 0 where they do not matter."""
    return settings.cache.index_bytes if settings.cache.sharing else 0


def policy(settings: Settings) -> Policy:
    """What the pipeline allows and bounds."""
    return Policy(
        body_bytes=settings.limits.body_bytes,
        headers_bytes=settings.limits.headers_bytes,
        queue_seconds=settings.limits.queue_seconds,
        queue_comment_seconds=settings.limits.queue_comment_seconds,
        allow_model_changes=settings.allow_model_changes,
        cors_origins=frozenset(settings.cors_origins),
        loopback_only=settings.listen.loopback,
        own_name=socket.gethostname(),
        reads_prefixes=settings.cache.sharing,
        hedges=settings.hedging.enabled,
    )


def probe_times(settings: Settings) -> ProbeTimes:
    """How the prober probes."""
    return ProbeTimes(
        interval_seconds=settings.health.interval_seconds,
        timeout_seconds=settings.health.timeout_seconds,
    )


def ejection_policy(settings: Settings) -> EjectionPolicy:
    """When outliers are left alone."""
    return EjectionPolicy(
        eject_below=settings.health.eject_below,
        restore_above=settings.health.restore_above,
        after_seconds=settings.health.eject_after_seconds,
    )


def prefix_index(settings: Settings) -> PrefixIndex:
    """What is remembered of prompts and where they went."""
    return PrefixIndex(limit_bytes=prefix_index_bytes(settings))


def scheduler(settings: Settings, fleet: Fleet, index: PrefixIndex, chance: Random) -> Scheduler:
    """Who decides, by the strategy that is set."""
    shelf: Shelf = {**STRATEGIES, Strategy.ADAPTIVE.value: lambda _: Adaptive(index)}
    return Scheduler(fleet, strategy=settings.strategy.value, random=chance, shelf=shelf)


def teacher(fleet: Fleet, index: PrefixIndex, clock: Clock) -> Teacher:
    """Who learns from answers, with an index to keep true."""
    return Teacher(fleet=fleet, prefixes=PrefixLearner(index=index, fleet=fleet), clock=clock)


def hedge_policy(settings: Settings) -> HedgePolicy:
    """Which requests a second instance may be asked for."""
    return HedgePolicy(
        enabled=settings.hedging.enabled,
        max_share=settings.hedging.max_share,
        min_delay_seconds=settings.hedging.min_delay_seconds,
    )


def hedging(
    settings: Settings, dispatcher: Dispatcher, metrics: Metrics, clock: Clock, log: Logger
) -> Hedging:
    """Who asks a second instance where the first is slow."""
    policy = hedge_policy(settings)
    return Hedging(dispatcher=dispatcher, policy=policy, metrics=metrics, clock=clock, log=log)


def outlier_watch(
    settings: Settings, fleet: Fleet, health: InstanceHealth, *, chance: Random, clock: Clock, log: Logger
) -> OutlierWatch:
    """Who scores health, and ejects outliers."""
    policy = ejection_policy(settings)
    return OutlierWatch(fleet=fleet, health=health, policy=policy, random=chance, clock=clock, log=log)


def supervisor_policy(settings: Settings) -> SupervisorPolicy:
    """How managed instances are watched and ended."""
    return SupervisorPolicy(
        adopt_grace_seconds=settings.provisioning.adopt_grace_seconds,
        drain_seconds=settings.limits.stop_seconds,
        probe_seconds=settings.health.timeout_seconds,
        probes=settings.health.unhealthy_threshold,
    )


def upstream_client(settings: Settings, memory: StreamMemory) -> UpstreamClient:
    """The client of all requests to instances."""
    return UpstreamClient(
        connect_seconds=settings.limits.connect_seconds,
        idle_seconds=_UPSTREAM_IDLE_SECONDS,
        buffer_bytes=settings.limits.stream_buffer_bytes,
        memory=memory,
    )


def device_ledger(settings: Settings, provisioned: Provisioned) -> DeviceLedger:
    """The ledger of the devices here, with the share of each managed instance."""
    ledger = DeviceLedger()
    reserve = settings.provisioning.memory_reserve_bytes
    ledger.use(provisioned.capacities(reserve), provisioned.shares())
    return ledger


def listener(settings: Settings, pipeline: Pipeline, memory: StreamMemory, clock: Clock) -> Listener:
    """Where clients connect."""
    return Listener(
        address=settings.listen,
        limits=settings.limits,
        fast=settings.fast_path,
        memory=memory,
        handler=pipeline,
        clock=clock,
    )


def instances(
    settings: Settings, provisioned: Provisioned, kept: Callable[[Instance], Instance] = lambda each: each
) -> list[Instance]:
    """Those attached, then those managed; the first one alone where nothing is to be balanced. Each goes
    through `kept`, which may give one that is there already."""
    made = [
        *(_instance(_attached(each), settings) for each in settings.all_instances),
        *(_instance(_managed(each, provisioned), settings) for each in provisioned.managed),
    ]
    return [kept(each) for each in (made if settings.load_balancing.enabled else made[:1])]


def find_local(instance: Instance) -> LocalOllama | None:
    """The process behind an instance of this machine."""
    parts = urlsplit(instance.spec.url)
    return find_local_ollama(parts.port or 80) if is_loopback(parts.hostname) else None


def _attached(settings: InstanceSettings) -> InstanceSpec:
    return InstanceSpec(
        id=InstanceId(settings.name),
        url=settings.url,
        weight=settings.weight,
        max_concurrent_requests=settings.max_concurrent_requests,
        slots=settings.slots,
        models=frozenset(canonical_name(name) for name in settings.models),
        store=settings.store,
        devices=_devices(settings.device),
        runtime=Runtime(settings.runtime.value),
    )


def _managed(planned: PlannedInstance, provisioned: Provisioned) -> InstanceSpec:
    beside_gpus = any(device.gpu and device.instances for device in provisioned.plan.devices)
    spare = not planned.devices and beside_gpus and not planned.model_path
    return InstanceSpec(
        id=InstanceId(planned.name),
        url=f"http://127.0.0.1:{planned.port}",
        weight=planned.weight,
        max_concurrent_requests=planned.max_concurrent_requests,
        slots=planned.slots,
        models=frozenset(canonical_name(name) for name in planned.models),
        devices=planned.devices,
        runtime=planned.runtime,
        managed=True,
        spare_bytes=min(planned.memory_bytes, _SPARE_BYTES) if spare else None,
    )


def _instance(spec: InstanceSpec, whole: Settings) -> Instance:
    health = HealthPolicy(
        unhealthy_threshold=whole.health.unhealthy_threshold,
        healthy_threshold=whole.health.healthy_threshold,
        slow_start_seconds=whole.health.slow_start_seconds,
    )
    breakers = BreakerPolicy(
        threshold=whole.circuit_breaker.threshold,
        reset_seconds=whole.circuit_breaker.reset_seconds,
        permits=whole.circuit_breaker.permits,
        enabled=whole.circuit_breaker.enabled,
    )
    return Instance(spec, Health(health), Breakers(breakers))


def _devices(device: str | None) -> tuple[str, ...] | None:
    """Those of an instance, as its configuration names them."""
    if device is None:
        return None
    return () if device.casefold() == CPU else (device,)
