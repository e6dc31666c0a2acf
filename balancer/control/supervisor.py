"""The supervisor: starts the instances of this machine, watches their processes, and starts anew what
ends, hangs or never gets ready.

Sole owner of the lifecycle of managed instances. The keeper holds their processes; whether an instance
answers is the prober's to say, and one that it says is down while its process lives is asked once more
here before it counts as hung. What must happen to the fleet when a process ends happens here: health,
breaker, and a new incarnation.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from balancer.clock import Clock
from balancer.control.back_off import BackOff
from balancer.control.child_output import log_output
from balancer.control.lifecycle import House, Lifecycle, SupervisorPolicy
from balancer.control.managed import Ending, Managed, ManagedState, Reason
from balancer.core.ticket import InstanceId
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.provisioning import keeper_link
from balancer.provisioning.keeper_link import Exited, KeeperFailed, KeeperLink, Output, Refused, Started
from balancer.provisioning.launch import Launch
from balancer.provisioning.state_folder import StateFolder
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics
from balancer.upstream.control_client import ControlClient

_GONE_SECONDS = 10.0
"""For what was killed to be gone."""
_CPU = ("cpu",)


class NotManaged(Exception):
    """The instance was not started by this balancer."""


def refuse_restart(instance: InstanceId) -> None:
    """What becomes of a restart of an instance that nobody here has started. Raises NotManaged."""
    raise NotManaged(f"'{instance}' was not started by this balancer; restart it where it runs")


async def no_warm_up(_launch: Launch) -> None:
    """Nothing is loaded at the start."""


class Supervisor:
    """The managed instances, started in the order of `launches`; one of the same id must be in the fleet.

    `warm_up` is run on one that answers, before it counts as up; InstanceError means that it failed.
    `on_up` is told of each that is up, so that it can be probed at once.
    """

    def __init__(
        self,
        launches: Sequence[Launch],
        *,
        state_dir: Path,
        policy: SupervisorPolicy,
        fleet: Fleet,
        client: ControlClient,
        metrics: Metrics,
        clock: Clock,
        log: Logger,
        warm_up: Callable[[Launch], Awaitable[None]] = no_warm_up,
        on_up: Callable[[InstanceId], None] = lambda _: None,
    ) -> None:
        self._state_dir = state_dir
        self._policy = policy
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._house = House(
            policy=policy,
            fleet=fleet,
            client=client,
            metrics=metrics,
            clock=clock,
            log=log,
            linked=self._linked_keeper,
            turn=self._turn,
            warm_up=warm_up,
            on_up=on_up,
        )
        self._managed = {
            InstanceId(each.name): Managed(each, BackOff(policy.back_off, clock), clock) for each in launches
        }
        self._folder: StateFolder | None = None
        self._link: KeeperLink | None = None
        self._linked = asyncio.Event()
        self._unwanted: dict[str, asyncio.Event] = {}
        self._starts = asyncio.Semaphore(policy.starts)
        self._devices = {device: asyncio.Lock() for each in launches for device in each.devices or _CPU}
        self._rolling: list[Managed] = []
        self._rolls = asyncio.Event()

    async def open(self) -> None:
        """Take the state folder, and what a balancer that was killed has left running there: what is still
        wanted is adopted as it is. Raises FolderTaken, FolderUnusable, KeeperFailed."""
        self._folder = await asyncio.to_thread(StateFolder.open, self._state_dir)
        if self._folder.problem:
            self._log.warning("instances_not_adoptable", problem=self._folder.problem)
        await self._connect(self._folder)

    async def run(self) -> None:
        """Start, watch and heal until cancelled; `open` came before."""
        self._fleet.listen(on_down=self._went_down)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._roll())
            with suppress(TimeoutError):
                async with asyncio.timeout(self._policy.term_seconds + _GONE_SECONDS):
                    for gone in list(self._unwanted.values()):
                        await gone.wait()
            for managed in self._managed.values():
                group.create_task(Lifecycle(managed, self._house).run())

    async def close(self) -> None:
        """End every instance, and the keeper; `run` was cancelled before. Again it does nothing."""
        link, self._link = self._link, None
        if link is not None:
            for managed in self._managed.values():
                managed.enter(ManagedState.STOPPING)
            if not await link.end(term_seconds=self._policy.term_seconds):
                self._log.error("instances_not_ended", folder=str(self._state_dir))
            link.close()
            for managed in self._managed.values():
                managed.pid = None
                managed.enter(ManagedState.STOPPED)
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def restart(self, instance: InstanceId) -> None:
        """Drain it, end it and start it anew; also what ends a quarantine. Raises NotManaged."""
        managed = self._managed.get(instance)
        if managed is None:
            refuse_restart(instance)
        else:
            managed.ask_restart()

    def rolling_restart(self) -> None:
        """Restart all, one after the other, each once the one before is up; ends at one that fails."""
        if not self._rolling:
            self._rolling = list(self._managed.values())
            self._rolls.set()

    def told(self, instance: InstanceId) -> Mapping[str, object] | None:
        """What is shown of a managed instance; None of any other."""
        managed = self._managed.get(instance)
        if managed is None:
            return None
        return {**managed.told(), "restart_pending": managed in self._rolling or managed.restart_pending}

    async def _connect(self, folder: StateFolder) -> None:
        grace = self._policy.adopt_grace_seconds
        link = self._link = await KeeperLink.open(folder, adopt_grace_seconds=grace)
        for leftover in link.hello.leftovers:
            self._log.warning("leftover_ended", pid=leftover.pid, command=leftover.command)
        for found in link.hello.instances:
            managed = self._managed.get(InstanceId(found.name))
            if managed is not None and found.fingerprint == keeper_link.fingerprint(managed.launch):
                managed.adopt(found.pid, found.lines)
                age = round(self._clock.wall() - found.since, 3)
                self._log.info("instance_adopted", instance=found.name, pid=found.pid, age_seconds=age)
                continue
            self._unwanted[found.name] = asyncio.Event()
            self._log.info("instance_not_adopted", instance=found.name, pid=found.pid)
            if managed is not None:
                managed.restarts += 1
                self._metrics.instance_restarts.labels(managed.id, Reason.CHANGED.value).inc()
            link.stop(found.name, term_seconds=self._policy.term_seconds)
        self._linked.set()

    async def _listen(self) -> None:
        """Take in what the keeper tells; where it is gone, get another."""
        while True:
            assert self._link is not None
            async for event in self._link.events():
                self._take(event)
            self._linked.clear()
            self._link.close()
            for gone in self._unwanted.values():
                gone.set()  # the next keeper ends them
            self._unwanted.clear()
            self._log.error("keeper_lost", folder=str(self._state_dir))
            for managed in self._managed.values():
                if managed.pid is not None or managed.state is ManagedState.STARTING:
                    self._ended(managed, Ending(Reason.KEEPER_LOST, "the keeper of its process was killed"))
            await self._reconnect()

    async def _reconnect(self) -> None:
        assert self._folder is not None
        back_off = BackOff(self._policy.back_off, self._clock)
        while not self._linked.is_set():
            try:
                await self._connect(self._folder)
            except KeeperFailed as error:
                self._log.error("keeper_failed", error=str(error))
                await asyncio.sleep(back_off.failed() or self._policy.back_off.longest_seconds)

    def _take(self, event: keeper_link.Event) -> None:
        managed = self._managed.get(InstanceId(event.name))
        if event.name in self._unwanted and isinstance(event, Exited | Output):
            if isinstance(event, Exited):
                self._unwanted.pop(event.name).set()
        elif managed is not None:
            match event:
                case Started():
                    managed.pid = event.pid
                    managed.changed.set()
                case Refused():
                    self._ended(managed, Ending(Reason.REFUSED, event.error))
                case Exited():
                    managed.lines.clear()
                    managed.lines.extend(event.lines)
                    self._ended(managed, Ending(Reason.EXITED, _death(event.code)), left=event.left)
                case Output():
                    managed.lines.extend(event.lines)
                    log_output(self._log, managed.id, event.lines, event.lost)

    def _ended(self, managed: Managed, ending: Ending, *, left: Sequence[int] = ()) -> None:
        stopping = managed.state is ManagedState.STOPPING
        log = self._log.info if stopping else self._log.warning
        log("instance_exited", instance=managed.id, pid=managed.pid, error=ending.error)
        if left:
            self._log.error("processes_not_ended", instance=managed.id, pids=list(left))
        managed.ended(ending)
        if (instance := self._instance(managed)) is not None:
            self._fleet.ended(instance, ending.error)

    def _went_down(self, instance: Instance) -> None:
        """The prober has found it down: its life looks at once whether it hangs."""
        managed = self._managed.get(instance.id)
        if managed is not None:
            managed.changed.set()

    async def _linked_keeper(self) -> KeeperLink:
        await self._linked.wait()
        assert self._link is not None
        return self._link

    @asynccontextmanager
    async def _turn(self, launch: Launch) -> AsyncIterator[None]:
        """Its turn to be brought up: alone on each of its devices, and with few in all. The devices are
        taken in one order by all, so that no two wait for each other."""
        async with AsyncExitStack() as stack:
            for device in sorted(launch.devices or _CPU):
                await stack.enter_async_context(self._devices[device])
            await stack.enter_async_context(self._starts)
            yield

    async def _roll(self) -> None:
        """Carry out rolling restarts."""
        while True:
            await self._rolls.wait()
            self._rolls.clear()
            while self._rolling:
                managed = self._rolling[0]
                managed.ask_restart()
                await managed.settled.wait()
                self._rolling.pop(0)
                if managed.state is not ManagedState.UP:
                    self._log.error("rolling_restart_ended", instance=managed.id, state=managed.state.value)
                    self._rolling.clear()

    def _instance(self, managed: Managed) -> Instance | None:
        return self._fleet.get(managed.id) if managed.id in self._fleet else None


def _death(code: int) -> str:
    return f"its process ended with signal {-code}" if code < 0 else f"its process ended with code {code}"
