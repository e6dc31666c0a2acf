"""The reloader: takes a changed configuration over while the balancer runs, whole or not at all.

It is asked by the operator (admin API, SIGHUP) or finds a changed file itself. What settings mean,
and which of them can change while running, is not known here: that is `load` and `apply`.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, cast

from balancer.clock import Clock
from balancer.control.config_files import ConfigFiles
from balancer.settings import Fault, Settings, SettingsError
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics

_LOOK_SECONDS = 1.0
_READ_SECONDS = 10.0
_ID_CHARACTERS = 12
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A reload that went well: the id of the settings in force, and whether they are others than before."""

    config: str
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSource:
    """Where settings come from, again and again. `load` may block and raises SettingsError; `files`
    are those that it reads."""

    load: Callable[[], Settings]
    files: ConfigFiles


class Reloader:
    """One reload at a time; who asks meanwhile waits, and then has one of his own.

    `apply` takes settings over in one step that is never awaited in, or raises SettingsError and has
    changed nothing. Sole writer of the metrics of reloads.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        source: ConfigSource,
        apply: Callable[[Settings], None],
        metrics: Metrics,
        clock: Clock,
        log: Logger,
    ) -> None:
        self._source = source
        self._apply = apply
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._turn = asyncio.Lock()
        self._asked = asyncio.Event()
        self._thread: asyncio.Future[object] | None = None
        self.config = config_id(settings)
        """The id of the settings in force."""
        self.faults: tuple[Fault, ...] = ()
        """What the newest reload was refused for, empty where it went well."""
        self.loaded_at = 0.0
        """When the settings in force were last loaded, monotonic seconds."""
        self._note_success()

    def ask(self) -> None:
        """Reload soon; what comes of it is told in the log. For signal handlers."""
        self._asked.set()

    async def reload(self) -> Reloaded:
        """Load the settings anew and take them over; log and metrics are told in any case.

        Raises:
            SettingsError: they cannot be used, or not while running. The old ones stay, whole.
        """
        async with self._turn:
            try:
                settings = await self._in_thread(self._load)
                told = Reloaded(config_id(settings), config_id(settings) != self.config)
                if told.changed:
                    self._apply(settings)
            except SettingsError as error:
                self.faults = error.faults
                self._metrics.config_reload_success.set(0)
                self._log.error("config_refused", config=self.config, error=str(error))
                raise
            self.config, self.faults = told.config, ()
            self._note_success()
            self._log.info("config_reloaded", config=told.config, changed=told.changed)
            return told

    async def run(self) -> None:
        """Watch the files, and do what was asked for, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._asked.wait()
            await self.run_once()

    async def run_once(self) -> None:
        """One look: reload where that was asked for, or where a file changed and has come to rest. One
        that is refused is read again once it changes again."""
        asked = self._asked.is_set()
        self._asked.clear()
        try:
            if asked or await self._settled():
                await self.reload()
        except SettingsError:
            return
        except Exception as error:  # noqa: BLE001 - a boundary: a defect met in a file must not end the balancer
            self._metrics.config_reload_success.set(0)
            self._log.error("reload_failed", exc_info=error)

    async def _settled(self) -> bool:
        async with self._turn:
            return await self._in_thread(self._source.files.settled)

    def _load(self) -> Settings:
        files = self._source.files
        files.begin_reading()
        if faults := files.faults():
            raise SettingsError(faults)
        return self._source.load()

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        """Do what blocks. A disk that does not answer holds up one thread, never a second: the prober
        needs threads too. Raises SettingsError where it has not answered in time."""
        if self._thread is not None and not self._thread.done():
            await asyncio.wait((self._thread,), timeout=_READ_SECONDS)
            if not self._thread.done():
                raise _unread()
        thread = asyncio.get_running_loop().run_in_executor(None, work)
        # Should nobody wait for it to the end, its exception is to be taken all the same.
        thread.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self._thread = cast("asyncio.Future[object]", thread)
        await asyncio.wait((thread,), timeout=_READ_SECONDS)
        if not thread.done():
            raise _unread()
        return thread.result()

    def _note_success(self) -> None:
        self.loaded_at = self._clock.monotonic()
        self._metrics.config_reload_success.set(1)
        self._metrics.config_reload_timestamp.set(self._clock.wall())


def config_id(settings: Settings) -> str:
    """A short name for settings: equal for equal ones, in every process and on every machine."""
    text = json.dumps(settings.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_CHARACTERS]


def _unread() -> SettingsError:
    fault = Fault(
        "configuration", "(file)", f"was not read in {_READ_SECONDS:g} s", "files on a disk that answers"
    )
    return SettingsError([fault])
