"""The GPUs of this machine, asked for in a child process: a driver that hangs or crashes takes that with
it and nothing else. A process that hangs in the kernel cannot be ended; such a one is left behind, and
no other is started while it is there.
"""

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

import balancer
from balancer.core.detection import Detection, DetectionOutcome, DeviceReading
from balancer.provisioning.device_answer import DETECT, READ, Answer

COMMAND = (sys.executable, "-m", "balancer.provisioning.device_reader")

_ROOT = Path(balancer.__path__[0]).parent
_LINE_BYTES = 1 << 20
"""The longest answer; that of 64 GPUs is a fiftieth of it."""
_END_SECONDS = 1.0
_LONGEST_BACK_OFF_SECONDS = 60.0
_ANSWERS_WITH_A_LOST_GPU = 60
"""Of one child. Then it is replaced: only a library that is opened anew finds a GPU that came back."""


async def detect(within_seconds: float, *, command: Sequence[str] = COMMAND) -> Detection:
    """What GPUs there are; takes at most so long, and up to a second more where the child does not end.
    Raises nothing: what fails is an outcome."""
    child = _Child(command)
    try:
        answer = await child.ask(DETECT, within_seconds)
    except _Late as late:
        return Detection(outcome=DetectionOutcome.NO_ANSWER, reason=str(late))
    except _Unanswered as problem:
        return Detection(outcome=DetectionOutcome.FAILED, reason=str(problem))
    finally:
        await child.end()
    if answer.detection is None:
        return Detection(outcome=DetectionOutcome.FAILED, reason=answer.problem or _NO_ANSWER)
    return answer.detection


class DeviceWatcher:
    """Reads all GPUs again and again until cancelled, by one child that it keeps.

    `took` is given each reading. `missed` is told why there was none: the child hangs, crashed or talks
    nonsense, and is replaced, after 1 s and then twice as long each time, a minute at most; or the
    driver itself refuses. Both are called on the event loop and must not block."""

    def __init__(
        self,
        *,
        took: Callable[[Sequence[DeviceReading]], None],
        missed: Callable[[str], None],
        interval_seconds: float = 1.0,
        within_seconds: float = 2.0,
        first_within_seconds: float = 15.0,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._took = took
        self._missed = missed
        self._interval_seconds = interval_seconds
        self._within_seconds = within_seconds
        self._first_within_seconds = first_within_seconds
        self._command = command
        self._child: _Child | None = None
        self._failures = 0
        self._seen: set[str] = set()

    async def run(self) -> None:
        """Read until cancelled; then the child is ended."""
        try:
            while True:
                pause = await self.run_once()
                await asyncio.sleep(pause)
        finally:
            await self._drop()

    async def run_once(self) -> float:
        """One reading, and how many seconds to wait for the next."""
        try:
            readings = await self._read()
        except _Unanswered as problem:
            self._failures += 1
            self._missed(str(problem))
            await self._drop()
            return float(min(2 ** min(self._failures - 1, 30), _LONGEST_BACK_OFF_SECONDS))
        self._failures = 0
        self._took(readings)
        there = {each.key for each in readings if each.lost is None}
        self._seen |= there
        if self._child and self._child.answers >= _ANSWERS_WITH_A_LOST_GPU and self._seen - there:
            await self._drop()
        return self._interval_seconds

    async def _read(self) -> Sequence[DeviceReading]:
        if self._child is None:
            self._child = _Child(self._command)
        elif self._child.ending:
            raise _Unanswered("the process that asks the NVIDIA driver hangs in it and cannot be ended")
        within = self._within_seconds if self._child.answers else self._first_within_seconds
        answer = await self._child.ask(READ, within)
        if answer.readings is None:
            raise _Unanswered(answer.problem or _NO_ANSWER)
        return answer.readings

    async def _drop(self) -> None:
        """End the child, and forget it once it is gone."""
        if self._child is not None and await self._child.end():
            self._child = None


class _Unanswered(Exception):
    """The child did not answer; says why."""


class _Late(_Unanswered):
    """It did not answer in time."""


_NO_ANSWER = "the process that asks the NVIDIA driver answered something else"


class _Child:
    """One child, started at the first question. One question at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: Process | None = None
        self.answers = 0
        self.ending = False

    async def ask(self, what: bytes, within_seconds: float) -> Answer:
        """Raises _Unanswered; then it is of no more use."""
        try:
            async with asyncio.timeout(within_seconds):
                line = await self._line(what)
        except TimeoutError:
            raise _Late(f"the NVIDIA driver did not answer within {within_seconds:g} s") from None
        except (OSError, ValueError) as error:  # not started, gone, or a line without end
            raise _Unanswered(f"the process that asks the NVIDIA driver failed: {error}") from error
        try:
            answer = msgspec.json.decode(line, type=Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _Unanswered(_NO_ANSWER) from error
        self.answers += 1
        return answer

    async def end(self) -> bool:
        """End it; False where it is still there after a second. May be called again."""
        self.ending = True
        process = self._process
        if process is None:
            return True
        with suppress(ProcessLookupError):
            process.kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await process.communicate()
        return process.returncode is not None

    async def _line(self, what: bytes) -> bytes:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                limit=_LINE_BYTES,
                cwd=_ROOT,
                start_new_session=True,  # a Ctrl-C on the terminal is for the balancer
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        # Where it is gone already, uvloop raises RuntimeError at once; how it ended is told below.
        with suppress(ConnectionError, RuntimeError):
            process.stdin.write(what + b"\n")
            await process.stdin.drain()
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise OSError(f"it ended{_told(await process.wait())}")
        return line


def _told(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f" with exit status {status}"
    return f" by {signal.Signals(-status).name}"
