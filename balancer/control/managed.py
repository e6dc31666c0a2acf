"""One instance that the balancer started: the state of its process, as the supervisor knows and shows it."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from balancer.clock import Clock
from balancer.control.back_off import BackOff
from balancer.core.ticket import InstanceId
from balancer.provisioning.launch import Launch
from balancer.provisioning.output import LINES_KEPT

_SHOWN_LINES = 20


class ManagedState(StrEnum):
    """How far a process is: waiting for its turn → starting → ready (it answers) → up (it may be used)."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    UP = "up"
    BACKING_OFF = "backing_off"
    QUARANTINED = "quarantined"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Reason(StrEnum):
    """Why a process was ended, or ended by itself; label of `balancer_instance_restarts_total`."""

    EXITED = "exited"
    REFUSED = "refused"
    NOT_READY = "not_ready"
    PORT_TAKEN = "port_taken"
    WARM_UP = "warm_up"
    HUNG = "hung"
    OPERATOR = "operator"
    CHANGED = "changed"
    KEEPER_LOST = "keeper_lost"

    @property
    def blames(self) -> bool:
        """Whether the instance is to blame, so that it must wait before it is started again."""
        return self not in {Reason.OPERATOR, Reason.CHANGED, Reason.KEEPER_LOST}


_SETTLED = frozenset(
    {ManagedState.UP, ManagedState.BACKING_OFF, ManagedState.QUARANTINED, ManagedState.STOPPED}
)


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a life of the process is over, and what there is to be said of it."""

    reason: Reason
    error: str = ""


class Managed:
    """The record of one managed instance. Sole writer is the supervisor; `changed` wakes whoever waits for
    the next thing to happen to it, and `settled` is set while nothing is under way."""

    def __init__(self, launch: Launch, back_off: BackOff, clock: Clock) -> None:
        self.launch = launch
        self.id = InstanceId(launch.name)
        self.back_off = back_off
        self.pid: int | None = None
        self.exit: Ending | None = None
        self.error = ""
        self.restarts = 0
        self.restart_asked = False
        self.restart_pending = False
        self.adopted = False
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self.changed = asyncio.Event()
        self.settled = asyncio.Event()
        self._clock = clock
        self._state = ManagedState.WAITING
        self._since = clock.monotonic()

    @property
    def state(self) -> ManagedState:
        """What it is doing now."""
        return self._state

    def enter(self, state: ManagedState) -> None:
        """It does something else from now on."""
        self._state, self._since = state, self._clock.monotonic()
        if state not in _SETTLED:
            self.settled.clear()
        elif not self.restart_asked:
            self.restart_pending = False
            self.settled.set()

    def ask_restart(self) -> None:
        """An operator wants it to be started anew."""
        self.restart_asked = self.restart_pending = True
        self.settled.clear()
        self.changed.set()

    def begin(self) -> None:
        """Its process is to be started."""
        self.exit, self.adopted = None, False

    def adopt(self, pid: int, lines: Sequence[str]) -> None:
        """Its process runs already."""
        self.pid, self.exit, self.adopted = pid, None, True
        self.lines.extend(lines)

    async def begun(self) -> Ending | None:
        """None once its process runs."""
        while self.pid is None and self.exit is None:
            await self.next_change()
        return self.exit

    def ended(self, ending: Ending) -> None:
        """Its process is gone."""
        self.pid, self.exit = None, ending
        self.changed.set()

    def ending_or(self, other: Ending) -> Ending:
        """How its process ended; another where it runs."""
        return self.exit or other

    async def gone(self, *, within_seconds: float) -> None:
        """Wait for the end of its process, for so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while self.pid is not None:
                    await self.next_change()

    async def restart_asked_for(self, *, within_seconds: float | None) -> bool:
        """Wait for an operator, for so long at most; whether there was one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while not self.restart_asked:
                    await self.next_change()
        return self.restart_asked

    async def next_change(self, *, within_seconds: float | None = None) -> None:
        """Wait until something has happened to it since this was last asked, for so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self.changed.wait()
                self.changed.clear()

    @property
    def last_lines(self) -> list[str]:
        """The last that it wrote."""
        return list(self.lines)[-_SHOWN_LINES:]

    def told(self) -> Mapping[str, object]:
        """What the admin API shows of it."""
        quarantined = self._state is ManagedState.QUARANTINED
        return {
            "state": self._state.value,
            "since_seconds": round(self._clock.monotonic() - self._since, 3),
            "pid": self.pid,
            "adopted": self.adopted,
            "port": self.launch.port,
            "restarts": self.restarts,
            "error": self.error or None,
            "lines": self.last_lines if quarantined else [],
        }
