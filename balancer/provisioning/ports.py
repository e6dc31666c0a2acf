"""Which ports can be had on this machine, and who it is that has one.

A port counts as taken where nobody can bind it at any address of this machine: an Ollama of another user
that listens on 0.0.0.0 is as much in the way as one on 127.0.0.1. These calls block for milliseconds.
"""

import errno
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from balancer.provisioning.process_table import PROC, command, pids
from balancer.provisioning.sockets import holder_of, listening_inodes

_PLACES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))
_TAKEN = frozenset((errno.EADDRINUSE, errno.EACCES))
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Holder:
    """Who listens on a port: `pid` is None where that process is another user's."""

    pid: int | None = None
    command: str = ""

    def __str__(self) -> str:
        return "a process of another user" if self.pid is None else f"process {self.pid} ({self.command})"


class PortTaken(Exception):
    """An explicit port cannot be had; says who has it."""

    def __init__(self, port: int, holder: Holder | None) -> None:
        by = f"is held by {holder}" if holder is not None else "cannot be bound, though nobody listens there"
        super().__init__(f"port {port} {by}")
        self.port = port
        self.holder = holder


def require_free(port: int) -> None:
    """Raise PortTaken unless the port can be bound now."""
    if not is_free(port):
        raise PortTaken(port, holder(port))


def is_free(port: int) -> bool:
    """Whether it can be bound at every address of this machine."""
    return all(_binds(family, host, port) for family, host in _PLACES)


def holder(port: int, *, proc: Path = PROC) -> Holder | None:
    """Who listens on a port of this machine; None where nobody does."""
    inodes = listening_inodes(port, proc=proc)
    if not inodes:
        return None
    pid = holder_of(inodes, pids(proc), proc=proc)
    return Holder() if pid is None else Holder(pid, command(pid, proc=proc)[:_SHOWN_CHARACTERS])


def _binds(family: socket.AddressFamily, host: str, port: int) -> bool:
    try:
        tried = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return True  # no IPv6 here, so nobody can hold it there
    with tried:
        # As every server does: connections that have just ended are not in the way.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            with suppress(OSError):
                tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            return error.errno not in _TAKEN
        return True
