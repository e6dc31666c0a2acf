"""Time that jumps: an event loop whose clock goes to the next timer at once, and the clock that reads it.

Everything asyncio runs on it unchanged, and in the same order each time: nothing here depends on the machine.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

_RESOLUTION_SECONDS = 1e-9
_LONGEST_DATE_SECONDS = 200 * 365.25 * 86400


class NothingHappens(Exception):
    """Everybody waits and no timer is set: a run that would never end."""


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio without sockets. It stands in for its own selector, which is where a loop waits."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = 0
        self._now = 0.0
        self._selector = self
        self._clock_resolution = _RESOLUTION_SECONDS
        self._defects: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _loop, context: self._defects.append(context))

    def time(self) -> float:
        """Seconds of virtual time since the loop was made."""
        return self._now

    def select(self, timeout: float | None) -> tuple[()]:
        """Wait, which takes no time. Raises NothingHappens where there is nothing to wait for."""
        self.turns += 1
        if timeout is None:
            raise NothingHappens("every task waits, and no timer is set")
        self._now += timeout
        return ()

    # The signature of the stubs ties `args` to `func`, which mypy cannot follow through an override.
    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Call it at once: there are no threads in virtual time."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - as an executor, which hands it to whoever waits
            done.set_exception(error)
        return done

    def run(self, main: Any) -> Any:
        """Run a coroutine to its end, and close. Raises what it raises, and what any callback has raised."""
        try:
            result = self.run_until_complete(main)
        finally:
            self.run_until_complete(self._end_tasks())
            self.close()
        for context in self._defects:
            raise context.get("exception") or RuntimeError(context["message"])
        return result

    async def _end_tasks(self) -> None:
        others = asyncio.all_tasks(self) - {asyncio.current_task(self)}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _process_events(self, event_list: Any) -> None:
        pass


class VirtualClock:
    """The clock of the house and the simulator's in one, on a loop in virtual time."""

    EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
    """The date at which every run begins."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.monotonic = loop.time
        self.now = loop.time
        self._call_at = loop.call_at

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        return self.EPOCH.timestamp() + self.now()

    async def sleep_until(self, due: float) -> None:
        """Return at `due`, or after one turn of the loop when it has passed."""
        await asyncio.sleep(max(due - self.now(), 0.0))

    def call_later(self, seconds: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        """Run `action` once after so many seconds."""
        return self._call_at(self.now() + max(seconds, 0.0), action)

    def date_after(self, seconds: float) -> datetime:
        """The date when so many seconds will have passed."""
        return self.EPOCH + timedelta(seconds=min(self.now() + seconds, _LONGEST_DATE_SECONDS))
