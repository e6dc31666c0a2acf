"""Who listens on this machine, and which process has which socket, as /proc tells it.

Linux only. Everyone may read who listens where, but the descriptors of another user's process are closed.
These calls block for a few milliseconds. Source: proc_pid_net(5), proc_pid_fd(5).
"""

import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from balancer.provisioning.process_table import PROC

_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens. `host` is how it is reached from this machine, `uid` whose it is, `inode` what a
    descriptor names it by."""

    host: str
    port: int
    uid: int
    inode: str

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def listeners(*, proc: Path = PROC) -> list[Listener]:
    """Every socket that listens for TCP."""
    return [each for table in ("tcp", "tcp6") for each in _listeners(proc / "net" / table)]


def listening_inodes(port: int, *, proc: Path = PROC) -> set[str]:
    """The sockets that listen on a port."""
    return {each.inode for each in listeners(proc=proc) if each.port == port}


def ports_of(holders: Collection[int], *, proc: Path = PROC) -> frozenset[int]:
    """The ports on which some processes listen."""
    inodes = {inode for pid in holders for inode in descriptors(pid, proc=proc) or ()}
    return frozenset(each.port for each in listeners(proc=proc) if each.inode in inodes)


def holder_of(inodes: set[str], among: Iterable[int], *, proc: Path = PROC) -> int | None:
    """The first of some processes that holds one of these sockets; None where none is seen to."""
    return next((pid for pid in among if not inodes.isdisjoint(descriptors(pid, proc=proc) or ())), None)


def descriptors(pid: int, *, proc: Path = PROC) -> set[str] | None:
    """What a process has open, sockets by their inodes; None where that is closed to us."""
    found = set()
    try:
        for link in (proc / str(pid) / "fd").iterdir():
            with suppress(OSError):  # closed since the folder was read
                found.add(str(link.readlink()))
    except OSError:
        return None
    return found


def _listeners(table: Path) -> Iterator[Listener]:
    """Those that listen stand before all others. Source: Linux net/ipv4/tcp_ipv4.c, tcp_seq_start."""
    with suppress(OSError), table.open(errors="replace") as lines:
        for line in islice(lines, 1, None):
            columns = line.split()
            if len(columns) < 10 or columns[3] != _LISTEN:
                return
            address, _, port = columns[1].rpartition(":")
            yield Listener(_host(address), int(port, 16), int(columns[7]), f"socket:[{columns[9]}]")


def _host(address: str) -> str:
    """How a listener is reached from this machine. The kernel writes its address word by word in the
    machine's own byte order."""
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if not any(packed):
        return "127.0.0.1"
    text = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
    return f"[{text}]" if ":" in text else text
