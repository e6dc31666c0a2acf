"""Opening files that somebody else put there: only regular ones, so that no pipe or device is waited for."""

import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """A regular file, open for reading. Raises: OSError, also where it is anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"'{path}' is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_start(path: Path, most_bytes: int) -> bytes:
    """The first bytes of a regular file. Raises: OSError."""
    with open_regular(path) as file:
        return file.read(most_bytes)
