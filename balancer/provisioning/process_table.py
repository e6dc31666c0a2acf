"""This machine's process table, as /proc tells it: who is whose child, and a way to send a signal to a
process that cannot hit another one.

Standard library only, since the keeper runs on it. Linux only: elsewhere, and for what belongs to another
user, there is nothing to be seen, which is no fault. These calls block for a few milliseconds.
Source: proc_pid_stat(5), pidfd_open(2).
"""

import errno
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_DEAD = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class Process:
    """One process. `started` is in clock ticks since boot: with it a pid that was used again is known as
    another process."""

    pid: int
    parent: int
    session: int
    started: int
    alive: bool


def read_process(pid: int, *, proc: Path = PROC) -> Process | None:
    """The process of that pid now."""
    fields = read_text(proc / str(pid) / "stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), fields[0] not in _DEAD)


def processes(*, proc: Path = PROC) -> Mapping[int, Process]:
    """All processes that can be seen, by pid."""
    return {pid: found for pid in pids(proc) if (found := read_process(pid, proc=proc)) is not None}


def below(ancestor: int, table: Mapping[int, Process]) -> Iterator[Process]:
    """Those of a table that descend from a process, itself not among them."""
    return (each for each in table.values() if each.pid != ancestor and ancestor in lineage(each.pid, table))


def lineage(pid: int, table: Mapping[int, Process]) -> Iterator[int]:
    """The pid itself, its parent, the parent of that, and so on, as far as the table goes."""
    seen = set()
    while pid in table and pid not in seen:
        seen.add(pid)
        yield pid
        pid = table[pid].parent


def environment(pid: int, *, proc: Path = PROC) -> Mapping[str, str]:
    """The environment that a process was started with; empty where it cannot be read."""
    entries = read_text(proc / str(pid) / "environ").split("\0")
    return dict(entry.partition("=")[::2] for entry in entries if "=" in entry)


def arguments(pid: int, *, proc: Path = PROC) -> list[str]:
    """The command line of a process as it was given; empty where there is none to be seen."""
    return read_text(proc / str(pid) / "cmdline").removesuffix("\0").split("\0")


def command(pid: int, *, proc: Path = PROC) -> str:
    """The command line of a process, in one line; its name in brackets where it has none."""
    line = " ".join(" ".join(arguments(pid, proc=proc)).split())
    return line or f"[{read_text(proc / str(pid) / 'comm').strip()}]"


def send(process: Process, number: int) -> bool:
    """Send a signal to this very process; False where it is gone, or its pid belongs to another by now."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError as error:
        return error.errno == errno.ENOSYS and _send_by_pid(process, number)
    try:
        # What the handle stands for keeps its pid for as long as it has not been reaped.
        if _same(process):
            signal.pidfd_send_signal(handle, number)
            return True
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
    return False


def pids(proc: Path = PROC) -> Iterator[int]:
    """Every pid of the table."""
    with suppress(OSError):
        for entry in proc.iterdir():
            if entry.name.isdigit():
                yield int(entry.name)


def read_text(path: Path) -> str:
    """What a file of the table holds; nothing where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _send_by_pid(process: Process, number: int) -> bool:
    if not _same(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _same(process: Process) -> bool:
    now = read_process(process.pid)
    return now is not None and now.started == process.started
