"""The life of one managed instance: brought up, watched, ended, and after a rest brought up again.

Whether it answers is the prober's to say; one that the prober has found down while its process lives is
asked once more here, and where it stays silent its process hangs. The keeper does what is decided here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field

from balancer.clock import Clock
from balancer.control.back_off import BackOffPolicy
from balancer.control.managed import Ending, Managed, ManagedState, Reason
from balancer.core.ticket import InstanceId
from balancer.errors import BadResponse, InstanceError
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.fleet.instance_spec import DrainedBy
from balancer.provisioning.keeper_link import KeeperLink
from balancer.provisioning.launch import Launch
from balancer.provisioning.ports import PortTaken, holder, require_free
from balancer.provisioning.process_table import lineage, processes
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics
from balancer.upstream.control_client import ControlClient

_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorPolicy:
    """`starts` may be under way at once in all. An instance has `term_seconds` from TERM to KILL, and its
    requests `drain_seconds` before that where an operator restarts it. It hangs where `probes` in a row
    go unanswered, each for `probe_seconds`; its first work may take `warm_up_seconds`. Where a balancer
    has gone, what it has started waits for another `adopt_grace_seconds`."""

    adopt_grace_seconds: float = 15.0
    term_seconds: float = 5.0
    drain_seconds: float = 8.0
    probe_seconds: float = 5.0
    probes: int = 3
    warm_up_seconds: float = 3600.0
    starts: int = 4
    back_off: BackOffPolicy = field(default_factory=BackOffPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What a life needs of the house. `linked` waits for a keeper; `turn` is held while an instance is
    brought up. `warm_up` is run on one that answers, before it counts as up, and raises InstanceError
    where it failed; `on_up` is told of each that is up."""

    policy: SupervisorPolicy
    fleet: Fleet
    client: ControlClient
    metrics: Metrics
    clock: Clock
    log: Logger
    linked: Callable[[], Awaitable[KeeperLink]]
    turn: Callable[[Launch], AbstractAsyncContextManager[None]]
    warm_up: Callable[[Launch], Awaitable[None]]
    on_up: Callable[[InstanceId], None]


class Lifecycle:
    """The lives of one managed instance."""

    def __init__(self, managed: Managed, house: House) -> None:
        self._managed = managed
        self._house = house
        self._url = f"http://127.0.0.1:{managed.launch.port}"

    async def run(self) -> None:
        """Live until cancelled."""
        while True:
            ending = await self._one_life()
            await self._end_process()
            self._managed.error = ending.error
            await self._rest(ending)
            self._managed.restarts += 1
            self._house.metrics.instance_restarts.labels(self._managed.id, ending.reason.value).inc()

    async def _one_life(self) -> Ending:
        """From the start to the end that it came to, whose process may run still."""
        managed = self._managed
        managed.enter(ManagedState.WAITING)
        async with self._house.turn(managed.launch):
            managed.restart_asked = False
            ending = await self._bring_up()
            if ending is not None:
                # Nothing of it is left before the next one of its device has its turn.
                await (self._drain() if ending.reason is Reason.OPERATOR else self._end_process())
                return ending
        ending = await self._watch()
        if ending.reason is Reason.OPERATOR:
            await self._drain()
        return ending

    async def _bring_up(self) -> Ending | None:
        """None once it is up."""
        managed, house = self._managed, self._house
        managed.enter(ManagedState.STARTING)
        await house.linked()
        began_at = house.clock.monotonic()
        ending = None if managed.pid is not None else await self._start_process()
        ending = ending or await self._await_ready(began_at + managed.launch.ready_seconds)
        if ending is not None:
            return ending
        managed.enter(ManagedState.READY)
        ending = None if managed.adopted else await self._warm_up()
        if ending is not None:
            return ending
        managed.error = ""
        managed.enter(ManagedState.UP)
        seconds = round(house.clock.monotonic() - began_at, 3)
        house.log.info("instance_ready", instance=managed.id, pid=managed.pid, seconds=seconds)
        house.on_up(managed.id)
        return None

    async def _warm_up(self) -> Ending | None:
        """None once it has done its first work; cut short where its life is over before."""
        launch, limit = self._managed.launch, self._house.policy.warm_up_seconds
        work = asyncio.ensure_future(self._house.warm_up(launch))
        try:
            async with asyncio.timeout(limit):
                while not work.done():
                    if (ending := await self._over()) is not None:
                        return ending
                    await asyncio.wait({work}, timeout=_LOOK_SECONDS)
                work.result()
        except (InstanceError, TimeoutError) as error:
            told = str(error) or f"no end of it in {limit:g} s"
            return self._managed.ending_or(Ending(Reason.WARM_UP, f"its first load failed: {told}"))
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        return self._managed.exit

    async def _start_process(self) -> Ending | None:
        """None once the keeper has started it."""
        managed, launch = self._managed, self._managed.launch
        try:
            await asyncio.to_thread(require_free, launch.port)
        except PortTaken as error:
            return Ending(Reason.PORT_TAKEN, str(error))
        link = await self._house.linked()
        managed.begin()
        # No await in between: a keeper that is lost from here on tells so.
        link.start(launch)
        if (ending := await managed.begun()) is None:
            self._house.log.info("instance_started", instance=managed.id, pid=managed.pid, port=launch.port)
        return ending

    async def _await_ready(self, deadline: float) -> Ending | None:
        """None once it answers; what answers must be its own process."""
        managed, house = self._managed, self._house
        while True:
            problem = await self._ask(house.policy.probe_seconds)
            if problem is None or managed.exit is not None:
                thief = await asyncio.to_thread(self._thief)
                return Ending(Reason.PORT_TAKEN, thief) if thief else managed.exit
            if managed.restart_asked:
                return Ending(Reason.OPERATOR)
            if house.clock.monotonic() > deadline:
                return Ending(Reason.NOT_READY, f"not ready in {managed.launch.ready_seconds:g} s: {problem}")
            await managed.next_change(within_seconds=_LOOK_SECONDS)

    def _thief(self) -> str:
        """Who listens on its port without being of its process; empty where nobody does. One that cannot be
        seen is believed to be its own for as long as that lives: it would have ended without the port."""
        managed = self._managed
        found, table = holder(managed.launch.port), processes()
        if found is None or (found.pid is None and managed.pid is not None):
            return ""
        at_hand = table.get(found.pid or 0)
        own = at_hand is not None and managed.pid in {at_hand.session, *lineage(at_hand.pid, table)}
        return "" if own else f"port {managed.launch.port} is held by {found}"

    async def _watch(self) -> Ending:
        """Wait until it ends, hangs, or is to be restarted."""
        while (ending := await self._over()) is None:
            await self._managed.next_change(within_seconds=self._house.policy.probe_seconds)
        return ending

    async def _over(self) -> Ending | None:
        """Why its life is over; None where it is not."""
        managed = self._managed
        if managed.exit is not None:
            return managed.exit
        if managed.restart_asked:
            return Ending(Reason.OPERATOR)
        if self._is_down() and await self._hangs():
            return managed.ending_or(Ending(Reason.HUNG, "its process lives and does not answer"))
        return None

    def _is_down(self) -> bool:
        instance = self._instance
        return instance is not None and not instance.usable and not instance.unproven

    async def _hangs(self) -> bool:
        """Whether none of a few probes is answered in any way, or its process has ended meanwhile."""
        for _ in range(self._house.policy.probes):
            problem = await self._ask(self._house.policy.probe_seconds)
            if self._managed.exit is not None:
                return True
            if problem is None or isinstance(problem, BadResponse):
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    async def _ask(self, within_seconds: float) -> InstanceError | None:
        """None where its ready path answers 200 now, else what is wrong."""
        path = self._managed.launch.ready_path
        try:
            await self._house.client.get(self._url, path, timeout_seconds=within_seconds)
        except InstanceError as error:
            return error
        return None

    async def _drain(self) -> None:
        """Give it no new requests, and those that it has some time to end."""
        instance, house = self._instance, self._house
        if instance is None:
            return
        self._managed.enter(ManagedState.STOPPING)
        house.fleet.drain(instance, drained=True, by=DrainedBy.RESTART)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(house.policy.drain_seconds):
                    while instance.running or instance.loading is not None:  # noqa: ASYNC110 - has no event
                        await asyncio.sleep(_LOOK_SECONDS)
            await self._end_process()
        finally:
            house.fleet.drain(instance, drained=False, by=DrainedBy.RESTART)

    async def _end_process(self) -> None:
        """Nothing of it is left afterwards, however long that takes: its memory and its port are needed."""
        managed, house = self._managed, self._house
        while managed.pid is not None:
            managed.enter(ManagedState.STOPPING)
            link = await house.linked()
            link.stop(managed.id, term_seconds=house.policy.term_seconds)
            await managed.gone(within_seconds=house.policy.term_seconds * 2)

    async def _rest(self, ending: Ending) -> None:
        """Wait for the next try: not at all where it is not to blame, and where it fails time and again
        until an operator asks for it."""
        managed, house = self._managed, self._house
        if managed.restart_asked or not ending.reason.blames:
            return
        wait = managed.back_off.failed()
        facts = {"instance": managed.id, "reason": ending.reason.value, "error": ending.error}
        if wait is None:
            house.log.error("instance_quarantined", **facts, lines=managed.last_lines)
            managed.enter(ManagedState.QUARANTINED)
        else:
            house.log.warning("instance_restarting", **facts, delay_seconds=round(wait, 3))
            managed.enter(ManagedState.BACKING_OFF)
        if await managed.restart_asked_for(within_seconds=wait):
            managed.back_off.forget()

    @property
    def _instance(self) -> Instance | None:
        fleet = self._house.fleet
        return fleet.get(self._managed.id) if self._managed.id in fleet else None
