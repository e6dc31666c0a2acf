"""The files of a configuration as the file system shows them: which change is new, and at rest.

Nothing is read here. Every call looks at the disk and so may block; it belongs in a thread.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from balancer.settings import Fault


@dataclass(frozen=True, slots=True)
class _Look:
    """What tells one state of a file from another. The time of its last status change is among it for
    writes that keep the size and set the time back, and for a file that was made readable."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


_Looks = tuple[_Look | None, ...]


class ConfigFiles:
    """Make it before the files are read for the first time, so that no change comes in between.

    Links are followed to their ends: a link that is pointed elsewhere is a change. A file that is not
    there counts as one in a state of its own.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._read = self._seen = self._look()

    def begin_reading(self) -> None:
        """The files are read now; what changes from here on is new."""
        self._read = self._seen = self._look()

    def settled(self) -> bool:
        """Whether they differ from what was read last, and stand as they stood at the call before:
        a file that is just being written is not to be read by halves."""
        looks = self._look()
        at_rest, self._seen = looks == self._seen, looks
        return at_rest and looks != self._read

    def faults(self) -> Sequence[Fault]:
        """Those that cannot be read a second time: what came through a pipe is gone."""
        piped = [each for each in self._paths if _is_pipe(each)]
        return [Fault(str(each), "(file)", "is a pipe and can be read only once", "a file") for each in piped]

    def _look(self) -> _Looks:
        return tuple(_look(each) for each in self._paths)


def _look(path: Path) -> _Look | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return _Look(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _is_pipe(path: Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
