"""The composition root: builds every object once, and runs them in one TaskGroup."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from random import Random

from balancer import __version__, wiring
from balancer.accounting.ledger import Ledger
from balancer.admin.listener import AdminListener
from balancer.admin.operations import Operations
from balancer.admin.report import Report
from balancer.admission.body_budget import BodyBudget
from balancer.admission.queue import RequestQueue
from balancer.attempts import Attempts
from balancer.clock import Clock, SystemClock
from balancer.control.config_files import ConfigFiles
from balancer.control.device_watch import DeviceWatch
from balancer.control.instance_health import InstanceHealth
from balancer.control.lag import LagWatch
from balancer.control.loader import Loader
from balancer.control.lost_devices import LostDevices
from balancer.control.prober import Prober
from balancer.control.reloader import ConfigSource, Reloader
from balancer.control.room import Room
from balancer.control.stall_watch import StallWatch
from balancer.control.supervisor import Supervisor, no_warm_up
from balancer.control.warm_up import WarmUp
from balancer.core.ticket import InstanceId
from balancer.dispatch import Dispatcher
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.fleet.instance_spec import DrainedBy
from balancer.forwarding.answers import Answers
from balancer.forwarding.stores import Stores
from balancer.memory import memory_allowed
from balancer.pipeline import Pipeline
from balancer.provisioning.provisioned import NOTHING, Provisioned
from balancer.provisioning.state_folder import state_path
from balancer.settings import Settings, refuse_fixed_changes
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics
from balancer.upstream.control_client import ControlClient
from balancer.upstream.stream_memory import StreamMemory

_TELL_SECONDS = 1.0
_FIRST_PROBES_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a balancer listens, as URLs with real ports."""

    clients: str
    admin: str
    metrics: str | None


class Balancer:
    """One balancer, built from settings; `source` is where a reload finds newer ones, None: nowhere;
    what was `provisioned` on this machine is started. Its parts are public for tests and for a look from
    inside."""

    def __init__(
        self,
        settings: Settings,
        *,
        log: Logger,
        source: ConfigSource | None = None,
        provisioned: Provisioned = NOTHING,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self.settings = settings
        self.log = log
        self.clock = clock or SystemClock()
        self.metrics = Metrics()
        self.metrics.build_info.labels(__version__).set(1)
        self.provisioned = provisioned
        self.fleet = Fleet(wiring.instances(settings, provisioned), clock=self.clock)
        self.queue = RequestQueue(limit=settings.limits.queue_requests)
        self.ledger = Ledger(metrics=self.metrics, log=log, clock=self.clock, known_model=self.fleet.knows)
        self._memory_allowed = memory_allowed()
        self.stream_memory = StreamMemory(wiring.stream_memory_bytes(settings, self._memory_allowed))
        self.budget = BodyBudget(wiring.body_memory_bytes(settings, self._memory_allowed))
        self.client = wiring.upstream_client(settings, self.stream_memory)
        self.control = ControlClient()
        self.prober = self._prober()
        self.devices = self._device_watch()
        self.health = InstanceHealth(fleet=self.fleet, devices=self.devices, clock=self.clock, log=log)
        self.device_ledger = wiring.device_ledger(settings, provisioned)
        self.room = self._room()
        self.loader = self._loader()
        self.prefix_index = wiring.prefix_index(settings)
        chance = random or Random()
        self.scheduler = wiring.scheduler(settings, self.fleet, self.prefix_index, chance)
        self.dispatcher = Dispatcher(
            fleet=self.fleet,
            queue=self.queue,
            scheduler=self.scheduler,
            clock=self.clock,
            load=self.loader.begin,
            wait_limits=wiring.wait_limits(settings),
            on_decision=self.ledger.decided,
            spread=wiring.retry_spread(chance),
        )
        self.outlier_watch = wiring.outlier_watch(
            settings, self.fleet, self.health, chance=chance, clock=self.clock, log=log
        )
        self.fleet.listen(on_down=self._went_down)
        self.supervisor = self._supervisor() if provisioned.launches else None
        self.attempts = self._attempts()
        self.stall_watch = self._stall_watch()
        self.pipeline = self._pipeline()
        self.listener = wiring.listener(settings, self.pipeline, self.stream_memory, self.clock)
        self.reloader = self._reloader(source)
        self.report = self._report()
        self.admin = AdminListener(
            address=settings.admin_listen, report=self.report, operations=self._operations()
        )
        self.metrics_listener = (
            AdminListener(address=settings.metrics_listen, report=self.report)
            if settings.metrics_listen is not None
            else None
        )

    def apply(self, settings: Settings) -> None:
        """Take over other settings whole, in one step: what is under way goes on, what comes later
        finds the new ones. An instance whose name and URL stay keeps its state.

        Raises:
            SettingsError: something changes that is fixed while the balancer runs; nothing was taken over.
        """
        refuse_fixed_changes(self.settings, settings, provisioned=bool(self.provisioned.launches))
        self.settings = settings
        limits = settings.limits
        self.scheduler.use(settings.strategy.value)
        self.queue.limit = limits.queue_requests
        self.dispatcher.overload.use(wiring.wait_limits(settings))
        self.prefix_index.limit_bytes = wiring.prefix_index_bytes(settings)
        self.budget.limit_bytes = wiring.body_memory_bytes(settings, self._memory_allowed)
        self.stream_memory.limit_bytes = wiring.stream_memory_bytes(settings, self._memory_allowed)
        self.client.use(connect_seconds=limits.connect_seconds, buffer_bytes=limits.stream_buffer_bytes)
        self.attempts.silent_seconds = limits.stream_idle_seconds
        self.attempts.hedging.policy = wiring.hedge_policy(settings)
        self.prober.times = wiring.probe_times(settings)
        self.stall_watch.unload_all = settings.health.unload_stalled
        self.outlier_watch.use(wiring.ejection_policy(settings))
        self.pipeline.policy = wiring.policy(settings)
        self.listener.use(limits, fast=settings.fast_path)
        self.fleet.replace(wiring.instances(settings, self.provisioned, self._kept))
        self.client.keep_only({each.spec.url for each in self.fleet.instances()})

    def _kept(self, fresh: Instance) -> Instance:
        """The one that is there under the same name and URL, respecified; else the fresh one."""
        kept = self.fleet.get(fresh.id) if fresh.id in self.fleet else None
        if kept is None or (kept.spec.url, kept.runtime) != (fresh.spec.url, fresh.runtime):
            return fresh
        kept.respecify(fresh)
        return kept

    async def run(self, stop: asyncio.Event, *, opened: Callable[[Addresses], None] = lambda _: None) -> None:
        """Serve until `stop` is set. `opened` is called once all listeners accept.

        Raises:
            OSError: an address cannot be bound; nothing is left open.
            FolderTaken, FolderUnusable, KeeperFailed: instances cannot be held here; nothing is left open.
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
            if self.supervisor is not None:
                stack.push_async_callback(self.supervisor.close)
                await self.supervisor.open()
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(self.prober.run()),
                    group.create_task(self.loader.run()),
                    group.create_task(LagWatch(metrics=self.metrics, clock=self.clock).run()),
                    group.create_task(self.reloader.run()),
                    group.create_task(self.stall_watch.run()),
                    group.create_task(self.outlier_watch.run()),
                    group.create_task(self.devices.run()),
                ]
                if self.supervisor is not None:
                    loops.append(group.create_task(self.supervisor.run()))
                await self._first_probes()
                opened(self._addresses())
                await stop.wait()
                await self._stop()
                for loop in loops:
                    loop.cancel()

    def _restart(self, instance: InstanceId) -> bool:
        """Begin to restart an instance that the balancer started; False for others."""
        if self.supervisor is None or self.supervisor.told(instance) is None:
            return False
        self.supervisor.restart(instance)
        return True

    def drain(self, instance: InstanceId, drained: bool, by: DrainedBy = DrainedBy.OPERATOR) -> None:
        """Give an instance no new requests, or give it requests again. Raises KeyError."""
        self.fleet.drain(self.fleet.get(instance), drained=drained, by=by)
        self.log.info("instance_drained" if drained else "instance_undrained", instance=instance, by=by.value)

    async def _stop(self) -> None:
        """Not ready any more and nothing new lent, while the listener still says so; then wait for the
        answers under way, and tell the clients of those that need longer that they are not whole."""
        self.dispatcher.stop()
        self.log.info("stopping", requests=len(self.ledger.live()))
        under_way = self.ledger.live()
        await self.ledger.ended(under_way, within_seconds=self.settings.limits.stop_seconds)
        self.listener.stop_accepting()
        self.client.break_off("the balancer was stopped before the answer was complete")
        await self.ledger.ended(under_way, within_seconds=_TELL_SECONDS)
        await self.listener.close()

    def _is_stopping(self) -> bool:
        return self.dispatcher.stopping

    async def _first_probes(self) -> None:
        """Give the instances a moment, that the first request is not told that there are none."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_PROBES_SECONDS):
                await self.prober.probed.wait()

    def _went_down(self, instance: Instance) -> None:
        """Requests that wait there for a first byte can go elsewhere."""
        self.log.warning("instance_down", instance=instance.id, error=instance.health.last_error)
        self.client.abandon(instance.spec.url, "the instance went down")

    def _addresses(self) -> Addresses:
        metrics = self.metrics_listener.url if self.metrics_listener is not None else None
        return Addresses(self.listener.url, self.admin.url, metrics)

    def _prober(self) -> Prober:
        return Prober(
            fleet=self.fleet,
            client=self.control,
            times=wiring.probe_times(self.settings),
            clock=self.clock,
            log=self.log,
            find_local=wiring.find_local,
        )

    def _device_watch(self) -> DeviceWatch:
        devices = self.provisioned.devices
        drain = partial(self.drain, by=DrainedBy.LOST_DEVICE)
        lost = LostDevices(devices=devices, fleet=self.fleet, drain=drain, restart=self._restart)
        return DeviceWatch(
            devices,
            undetected=self.provisioned.undetected,
            metrics=self.metrics,
            clock=self.clock,
            log=self.log,
            on_lost=lost.lost,
            on_back=lost.back,
        )

    def _room(self) -> Room:
        return Room(
            ledger=self.device_ledger,
            fleet=self.fleet,
            client=self.control,
            restart=self._restart,
            metrics=self.metrics,
            log=self.log,
        )

    def _loader(self) -> Loader:
        return Loader(
            fleet=self.fleet,
            client=self.client,
            ledger=self.device_ledger,
            room=self.room,
            look=self.prober.look,
            read=self.prober.read,
            metrics=self.metrics,
            clock=self.clock,
            log=self.log,
        )

    def _supervisor(self) -> Supervisor:
        return Supervisor(
            self.provisioned.launches,
            state_dir=state_path(self.settings.state_dir, os.environ),
            policy=wiring.supervisor_policy(self.settings),
            fleet=self.fleet,
            client=self.control,
            metrics=self.metrics,
            clock=self.clock,
            log=self.log,
            warm_up=WarmUp(self.provisioned.plan, self.control, self.log).load
            if self.settings.provisioning.warm_up
            else no_warm_up,
            on_up=self.prober.look,
        )

    def _attempts(self) -> Attempts:
        return Attempts(
            fleet=self.fleet,
            dispatcher=self.dispatcher,
            client=self.client,
            ledger=self.ledger,
            teacher=wiring.teacher(self.fleet, self.prefix_index, self.clock),
            hedging=wiring.hedging(self.settings, self.dispatcher, self.metrics, self.clock, self.log),
            refresh=self.prober.refresh,
            look=self.prober.look,
            out_of_memory=self.room.out_of_memory,
            clock=self.clock,
            silent_seconds=self.settings.limits.stream_idle_seconds,
        )

    def _stall_watch(self) -> StallWatch:
        return StallWatch(
            fleet=self.fleet,
            client=self.control,
            silences=self.attempts.silences,
            give_up=self.attempts.give_up,
            is_idle=self.prober.is_idle,
            restart=self._restart,
            unload_all=self.settings.health.unload_stalled,
            metrics=self.metrics,
            clock=self.clock,
            log=self.log,
        )

    def _pipeline(self) -> Pipeline:
        return Pipeline(
            attempts=self.attempts,
            answers=Answers(
                fleet=self.fleet,
                refresh=self.prober.refresh,
                waiting=self.queue.__len__,
                stopping=self._is_stopping,
            ),
            stores=Stores(
                fleet=self.fleet,
                client=self.client,
                clock=self.clock,
                refresh=self.prober.refresh,
                changed=self.prober.changed,
            ),
            ledger=self.ledger,
            budget=self.budget,
            policy=wiring.policy(self.settings),
            clock=self.clock,
            log=self.log,
        )

    def _reloader(self, source: ConfigSource | None) -> Reloader:
        return Reloader(
            settings=self.settings,
            source=source or ConfigSource(load=lambda: self.settings, files=ConfigFiles(())),
            apply=self.apply,
            metrics=self.metrics,
            clock=self.clock,
            log=self.log,
        )

    def _report(self) -> Report:
        return Report(
            fleet=self.fleet,
            queue=self.queue,
            waits=self.dispatcher.charges.expected_waits,
            ledger=self.ledger,
            reloader=self.reloader,
            metrics=self.metrics,
            bodies=self.budget,
            streams=self.stream_memory,
            prefixes=self.prefix_index,
            devices=self.devices,
            health=self.health,
            clock=self.clock,
            stopping=self._is_stopping,
            managed=self.supervisor.told if self.supervisor is not None else _unmanaged,
        )

    def _operations(self) -> Operations:
        if self.supervisor is None:
            return Operations(drain=self.drain, reload=self.reloader.reload)
        return Operations(
            drain=self.drain,
            reload=self.reloader.reload,
            restart=self.supervisor.restart,
            restart_all=self.supervisor.rolling_restart,
        )


def _unmanaged(_instance: InstanceId) -> None:
    """Nothing is told of the process of an instance that someone else has started."""
