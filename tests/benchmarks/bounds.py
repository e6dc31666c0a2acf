"""A bound on the memory of a process: a control group of the kernel, where one can be made."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_EMPTY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Bound:
    """A group that was made. A command behind `wrapper` runs in it."""

    folder: Path
    second: bool

    @property
    def wrapper(self) -> tuple[str, ...]:
        return "sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs")

    def peak_bytes(self) -> int:
        """The most memory that the group ever held; 0 where the kernel does not tell."""
        name = "memory.peak" if self.second else "memory.max_usage_in_bytes"
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / name).read_text())
        return 0


@contextlib.contextmanager
def bounded(limit_bytes: int) -> Iterator[Bound | str]:
    """A group with this limit, removed at the end; or why there is none."""
    made = _make(limit_bytes)
    try:
        yield made
    finally:
        if isinstance(made, Bound):
            _remove(made.folder)


def _make(limit_bytes: int) -> Bound | str:
    name = f"ollama-balancer-bench-{os.getpid()}"
    reasons = []
    for parent, second in _parents():
        folder = parent / name
        try:
            folder.mkdir()
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            continue
        limits = {"memory.max": limit_bytes, "memory.swap.max": 0}
        first = {"memory.limit_in_bytes": limit_bytes, "memory.memsw.limit_in_bytes": limit_bytes}
        (limit, *others) = (limits if second else first).items()
        try:
            (folder / limit[0]).write_text(str(limit[1]))
        except OSError as error:
            reasons.append(f"{folder / limit[0]}: {error.strerror}")
            _remove(folder)
            continue
        for file, value in others:
            with contextlib.suppress(OSError):  # not every kernel counts swap
                (folder / file).write_text(str(value))
        return Bound(folder, second)
    return "no control group can be made here: " + ("; ".join(reasons) or "none with memory is mounted")


def _parents() -> Iterator[tuple[Path, bool]]:
    """Groups that may have a child with a limit on memory: this process's own, then the uppermost."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        second = not controllers
        if not second and "memory" not in controllers.split(","):
            continue
        top = _GROUPS if second else _GROUPS / "memory"
        for parent in (top / own.lstrip("/"), top):
            if (parent / "cgroup.procs").exists():
                yield parent, second


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + _EMPTY_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            folder.rmdir()
        if not folder.exists():
            return
        time.sleep(0.05)
