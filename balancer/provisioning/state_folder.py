"""The folder in which a balancer finds, after it was killed, what it had started; one balancer each.

Nothing in it is needed to serve. Where it cannot be written a folder of this run alone takes its place:
instances are held all the same, but no later balancer can find them to take them over.
"""

import fcntl
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

_LOCK = "balancer.lock"
_NAME = "ollama-balancer"


class FolderTaken(Exception):
    """Another balancer that runs has the folder; names its pid."""

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(
            f"{path} is in use by another balancer (process {pid}); stop that one, or set another state_dir"
        )


class FolderUnusable(Exception):
    """Neither the folder nor a temporary one can be written."""


class StateFolder:
    """A folder of one user, held by one balancer until it ends, however it ends. `problem` tells why it is
    a temporary one, which no later balancer will find; empty where it is the one asked for."""

    def __init__(self, path: Path, lock: int, problem: str = "") -> None:
        self.path = path
        self.problem = problem
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> "StateFolder":
        """Take the folder, made where it is missing. Raises FolderTaken, FolderUnusable."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_own(path)
            return cls(path.resolve(), _locked(path))
        except OSError as error:
            problem = f"{path}: {error.strerror or error}"
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f"{_NAME}-"))
            return cls(temporary, _locked(temporary), problem)
        except OSError as error:
            raise FolderUnusable(f"{problem}; and no temporary folder: {error}") from error

    def close(self) -> None:
        """Let another balancer have it."""
        os.close(self._lock)
        if self.problem:
            for each in self.path.iterdir():
                each.unlink(missing_ok=True)
            self.path.rmdir()


def state_path(configured: str | None, environ: Mapping[str, str]) -> Path:
    """Where state is kept: as configured, `~` understood, else where this system keeps such things.
    Source: XDG Base Directory Specification 0.8, in which a relative path counts as none."""
    if configured is not None:
        return Path(os.path.expanduser(configured))
    told = Path(environ.get("XDG_STATE_HOME", ""))
    return (told if told.is_absolute() else Path(environ.get("HOME") or "/", ".local", "state")) / _NAME


def _require_own(path: Path) -> None:
    """Raise OSError where another user owns the folder or may write to it."""
    told = path.stat()
    if told.st_uid != os.geteuid():
        raise PermissionError(1, "belongs to another user")
    if told.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(1, "other users may write to it")


def _locked(path: Path) -> int:
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise FolderTaken(path, pid) from None
    try:
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
    except OSError:
        os.close(lock)
        raise
    return lock
