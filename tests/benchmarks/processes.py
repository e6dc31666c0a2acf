"""Processes of a benchmark: started on one core, their CPU time and memory, what else the machine did."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")
_END_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_MOST_FILES = 65536


class Failed(Exception):
    """The benchmark cannot say anything; the message says why."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the measured proxy runs, and where everything else does."""

    proxy: int
    load: int

    @property
    def apart(self) -> bool:
        return self.proxy != self.load


@contextlib.contextmanager
def own_core() -> Iterator[Cores]:
    """Keep this process off the proxy's core, and let it open many files."""
    allowed = os.sched_getaffinity(0)
    ordered = sorted(allowed)
    cores = Cores(ordered[0], ordered[min(1, len(ordered) - 1)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if 0 <= hard < _MOST_FILES else _MOST_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    os.sched_setaffinity(0, {cores.load})
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, allowed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Child:
    """A process of this benchmark with all of its descendants, in a group of its own. It writes to `log`."""

    def __init__(
        self, command: Sequence[str], *, core: int, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})  # it is inherited, by threads too
        try:
            with log.open("ab") as out:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=dict(environment) if environment is not None else clean_environment(),
                    cwd=log.parent,
                    start_new_session=True,
                )
        finally:
            os.sched_setaffinity(0, own)
        self.log = log

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def cpu_seconds(self) -> float:
        """User and system time of it and all that it started, ended ones included."""
        ticks = sum(sum(each.ticks) for each in _tree(self.process.pid))
        return ticks / _TICKS

    def calls(self) -> tuple[int, int]:
        """How often its first process has called read(2) and write(2) with their kin; recv(2) and send(2) are
        not among them. Both are 0 where the kernel does not tell."""
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{self.process.pid}/io").read_text()
            told = dict(line.split(": ") for line in text.splitlines())
            return int(told["syscr"]), int(told["syscw"])
        return 0, 0

    def private_bytes(self) -> int:
        """Memory that no other process has a part in."""
        return sum(_private_bytes(each.pid) for each in _tree(self.process.pid))

    def peak_bytes(self) -> int:
        """The most memory that its first process ever held."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return 0

    def said(self) -> str:
        """What it wrote so far."""
        return self.log.read_text(errors="replace")

    def line_with(self, words: str = "", seconds: float = 20.0) -> str:
        """The first line that it writes with these words in it. Raises Failed where none comes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in self.said().splitlines(keepends=True):
                if words in line and line.endswith("\n"):
                    return line
            if not self.alive:
                break
            time.sleep(_LOOK_SECONDS)
        raise Failed(f"{self.process.args!r} said no such line in {seconds:g} s: {self.said()[-800:]}")

    def end(self) -> None:
        """End it and its group, by their id. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(_END_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used from a meter's start to its stop. Shares are of one core; `others` is of all cores
    that the benchmark has: what neither it nor its processes used."""

    seconds: float
    proxy_cpu_seconds: float
    proxy_reads: float
    proxy_writes: float
    others_share: float

    @property
    def proxy_share(self) -> float:
        return self.proxy_cpu_seconds / self.seconds


class Meter:
    """CPU time of the proxy, and of everything that is not ours."""

    def __init__(self, proxy: Child, others: Sequence[Child], cores: Cores) -> None:
        self._proxy = proxy
        self._others = others
        self._cores = cores

    def start(self) -> None:
        self._began = self._look()

    def stop(self) -> Usage:
        """What was used since `start`."""
        began, ended = self._began, self._look()
        seconds, proxy, ours, busy, reads, writes = (
            after - before for before, after in zip(began, ended, strict=True)
        )
        share = (busy - ours) / seconds / len({self._cores.proxy, self._cores.load})
        return Usage(
            seconds=seconds,
            proxy_cpu_seconds=proxy,
            proxy_reads=reads,
            proxy_writes=writes,
            others_share=max(0.0, share),
        )

    def _look(self) -> tuple[float, ...]:
        proxy = self._proxy.cpu_seconds()
        ours = proxy + sum(each.cpu_seconds() for each in self._others) + time.process_time()
        busy = _busy_seconds({self._cores.proxy, self._cores.load})
        return time.monotonic(), proxy, ours, busy, *self._proxy.calls()


def clean_environment() -> dict[str, str]:
    """This process's environment without what would configure a child by accident."""
    prefixes = ("BALANCER_", "OLLAMA_", "GPU_", "MODEL_POOL_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**kept, "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    ticks: tuple[int, ...]


def _tree(pid: int) -> list[_Process]:
    """A process and its descendants."""
    everyone = [
        found
        for entry in os.scandir("/proc")
        if entry.name.isdigit() and (found := _stat(int(entry.name))) is not None
    ]
    family, wanted = [each for each in everyone if each.pid == pid], {pid}
    while grown := [each for each in everyone if each.parent in wanted and each.pid not in wanted]:
        wanted |= {each.pid for each in grown}
        family += grown
    return family


def _stat(pid: int) -> _Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    # Fields 4 and 14 to 17 of proc(5): parent; utime, stime, cutime, cstime.
    return _Process(pid, int(fields[1]), tuple(map(int, fields[11:15])))


def _private_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


def _busy_seconds(cores: set[int]) -> float:
    """All CPU time of these cores but idle and waiting, since boot; time stolen by the host is busy."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *counts = line.split()
        if name in {f"cpu{each}" for each in cores}:
            user, nice, system, _, _, *rest = map(int, counts[:8])
            ticks += user + nice + system + sum(rest)
    return ticks / _TICKS
