"""The balancer's end of the line to its keeper: finds the one of its folder, or starts one, and talks to it.

It knows nothing of why an instance is started or ended, which is the supervisor's business.
"""

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import msgspec

import balancer
from balancer.provisioning import process_table
from balancer.provisioning.keeper import LOCK, MESSAGE_BYTES, PROTOCOL, SOCKET
from balancer.provisioning.launch import Launch
from balancer.provisioning.state_folder import StateFolder

_START_SECONDS = 20.0
_HELLO_SECONDS = 15.0
"""Longer than a keeper needs to end what another left behind."""
_END_SECONDS = 10.0
"""For everything to be gone after a KILL."""
_LOOK_SECONDS = 0.02
_KEEPER = "balancer.provisioning.keeper"


class KeeperFailed(Exception):
    """No keeper could be started, or it did not answer."""


class Adoptable(msgspec.Struct, frozen=True):
    """An instance that runs already, as the keeper tells of it; `since` in seconds since the Unix epoch."""

    name: str
    pid: int
    port: int
    fingerprint: str
    since: float
    lines: list[str]


class Leftover(msgspec.Struct, frozen=True):
    """A process that a keeper which was killed had left behind, and that was ended."""

    pid: int
    command: str


class Hello(msgspec.Struct, frozen=True, tag_field="event", tag="hello"):
    """The keeper's first words."""

    protocol: int
    pid: int
    instances: list[Adoptable]
    leftovers: list[Leftover]


class Started(msgspec.Struct, frozen=True, tag_field="event", tag="started"):
    """A process was started."""

    name: str
    pid: int


class Refused(msgspec.Struct, frozen=True, tag_field="event", tag="refused"):
    """A process could not be started."""

    name: str
    error: str


class Exited(msgspec.Struct, frozen=True, tag_field="event", tag="exited"):
    """An instance ended, and nothing of it is left but what is in `left`, pids that would not go. `code` is
    negative for a signal."""

    name: str
    pid: int
    code: int
    lines: list[str]
    left: list[int]


class Output(msgspec.Struct, frozen=True, tag_field="event", tag="output"):
    """Lines that an instance wrote, and how many more it wrote that are not told."""

    name: str
    lines: list[str]
    lost: int


Event: TypeAlias = Started | Refused | Exited | Output
_decode_hello = msgspec.json.Decoder(Hello).decode
_decode = msgspec.json.Decoder(Event).decode


class KeeperLink:
    """One connection to a keeper. `hello` is what it told first."""

    def __init__(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hello = hello
        self._keeper = process_table.read_process(hello.pid)
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, folder: StateFolder, *, adopt_grace_seconds: float) -> "KeeperLink":
        """The keeper of the folder, else a new one, which first ends what was left of an earlier. One that
        does not answer, or speaks otherwise, is replaced with all that it holds. Raises KeeperFailed."""
        for _ in range(2):
            link = await cls._greet(folder)
            if link is not None and link.hello.protocol == PROTOCOL:
                grace = 0.0 if folder.problem else adopt_grace_seconds
                link._say({"do": "hello", "adopt_grace_seconds": grace})
                return link
            if link is not None:
                await link.end(term_seconds=5.0)
                link.close()
            await asyncio.to_thread(_clear_away, folder.path)
            await asyncio.to_thread(_start_keeper, folder.path)
        raise KeeperFailed(f"the keeper of {folder.path} was started and does not answer")

    @classmethod
    async def _greet(cls, folder: StateFolder) -> "KeeperLink | None":
        """The keeper of the folder, None where none answers."""
        connection = _connected(folder.path)
        if connection is None:
            return None
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MESSAGE_BYTES)
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                return cls(_decode_hello(await reader.readline()), reader, writer)
        except (TimeoutError, OSError, ValueError, msgspec.MsgspecError):
            writer.close()
            return None

    async def events(self) -> AsyncIterator[Event]:
        """What happens, until the keeper is gone."""
        try:
            while line := await self._reader.readline():
                yield _decode(line)
        except (OSError, ValueError, msgspec.MsgspecError):
            return

    def start(self, launch: Launch) -> None:
        """Start an instance; Started or Refused follows."""
        self._say({"do": "start", "fingerprint": fingerprint(launch), **msgspec.to_builtins(launch)})

    def stop(self, name: str, *, term_seconds: float) -> None:
        """End an instance that runs, with TERM, and KILL after so long; Exited follows."""
        self._say({"do": "stop", "name": name, "term_seconds": term_seconds})

    async def end(self, *, term_seconds: float) -> bool:
        """End all instances and the keeper itself; whether it is gone in time."""
        self._say({"do": "end", "term_seconds": term_seconds})
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(term_seconds + _END_SECONDS):
                while await self._reader.read(MESSAGE_BYTES):
                    pass
                while self._keeper_lives():  # noqa: ASYNC110 - it is no child of this process
                    await asyncio.sleep(_LOOK_SECONDS)
                return True
        return False

    def close(self) -> None:
        """Leave the keeper to itself: it waits its grace for another balancer."""
        self._writer.close()

    def _keeper_lives(self) -> bool:
        now = process_table.read_process(self.hello.pid)
        return (
            now is not None and now.alive and self._keeper is not None and now.started == self._keeper.started
        )

    def _say(self, message: object) -> None:
        if not self._writer.is_closing():
            self._writer.write(_encoded(message) + b"\n")


def fingerprint(launch: Launch) -> str:
    """The same for launches that start the same process with the same environment."""
    whole = (launch.arguments, sorted(launch.environment.items()), launch.port)
    return hashlib.sha256(_encoded(whole)).hexdigest()


def _encoded(message: object) -> bytes:
    """As JSON in ASCII. Names of files and variables need not be UTF-8, and pass as Python escapes them."""
    return json.dumps(message, separators=(",", ":")).encode()


def _connected(folder: Path) -> socket.socket | None:
    """A connection to the keeper's socket. By way of a descriptor: the path of a socket is short."""
    try:
        inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"/proc/self/fd/{inside}/{SOCKET}")
    except OSError:
        connection.close()
        return None
    finally:
        os.close(inside)
    connection.setblocking(False)
    return connection


def _start_keeper(folder: Path) -> None:
    """Start a keeper in the background. Raises KeeperFailed."""
    command = [sys.executable, "-P", "-m", _KEEPER, str(folder)]
    house = str(Path(balancer.__path__[0]).parent)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # someone may have cleaned up
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_START_SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": house},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KeeperFailed(f"no keeper could be started: {error}") from error
    if ended.returncode:
        told = ended.stderr.decode(errors="replace").strip().splitlines()
        raise KeeperFailed(f"no keeper could be started: {told[-1] if told else ended.returncode}")


def _clear_away(folder: Path) -> None:
    """See to it that no keeper has the folder: wait for one that is ending, kill one that does not answer."""
    keeper = _keeper_of(folder)
    deadline = time.monotonic() + _END_SECONDS
    while keeper is not None and time.monotonic() < deadline:
        if (folder / SOCKET).exists() or time.monotonic() > deadline - _END_SECONDS / 2:
            process_table.send(keeper, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)
        keeper = _keeper_of(folder)


def _keeper_of(folder: Path) -> process_table.Process | None:
    """The keeper that has the folder by what its lock says. Something else may have its pid by now, so it
    must be a keeper of that very folder by its command line too."""
    told = process_table.read_text(folder / LOCK).strip()
    found = process_table.read_process(int(told)) if told.isdigit() else None
    arguments = [] if found is None else process_table.arguments(found.pid)
    return found if found is not None and found.alive and arguments[-2:] == [_KEEPER, str(folder)] else None
