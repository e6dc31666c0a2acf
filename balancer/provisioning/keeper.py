"""The keeper, `python -m balancer.provisioning.keeper FOLDER`: a small process that holds the instances, so
that they outlive a balancer that is killed, and never outlive both.

It starts each instance in a session of its own, drains what it writes, reaps it, and ends whatever it
leaves behind: as a child subreaper it inherits every descendant whose parent has gone, those that left
the group among them. One balancer at a time talks to it, in JSON lines over a socket in the folder:

    hello, start, stop, end                  to the keeper, under the key `do`
    hello, started, refused, exited, output  from it, under the key `event`

When the balancer goes, the keeper waits `adopt_grace_seconds` for another, then ends everything and
itself; `end` and SIGTERM do so at once. It is one thread on the standard library alone, and blocks on
nobody: a balancer that does not read loses lines of output, and in the end its connection.
"""

import asyncio
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from balancer.provisioning import process_table
from balancer.provisioning.output import Output
from balancer.provisioning.process_table import Process

PROTOCOL = 1
FOLDER_VARIABLE = "OLLAMA_BALANCER_STATE_DIR"
"""In the environment of every instance and so of its runners: the folder of the keeper that holds it."""
INSTANCE_VARIABLE = "OLLAMA_BALANCER_INSTANCE"
LOCK, SOCKET, LOG = "keeper.lock", "keeper.sock", "keeper.log"
MESSAGE_BYTES = 1 << 22

_FIRST_SECONDS = 15.0
"""For the balancer that started it to connect."""
_ABANDONED_SECONDS = 3.0
"""From TERM to KILL where no balancer is there to say how long."""
_KILL_SECONDS = 5.0
"""For what was killed to be gone; a process in an uninterruptible call may need longer, or for ever."""
_LOOK_SECONDS = 0.02
_HELLO_LINES_BYTES = MESSAGE_BYTES // 2
_OUTPUT_WAITING_BYTES = 1 << 20
_WAITING_BYTES = 1 << 24
_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER. Source: Linux include/uapi/linux/prctl.h."""


class Held:
    """An instance that runs."""

    def __init__(self, name: str, pid: int, asked: dict[str, Any], output: Output) -> None:
        self.name = name
        self.pid = pid
        self.asked = asked
        self.output = output
        self.since = time.time()
        self.killing: asyncio.TimerHandle | None = None

    def told(self, line_bytes: int) -> dict[str, Any]:
        """What a balancer needs to adopt it, and the newest lines that take so much in a message."""
        facts = {key: self.asked[key] for key in ("name", "port", "arguments", "fingerprint")}
        return {**facts, "pid": self.pid, "since": self.since, "lines": self._newest(line_bytes)}

    def _newest(self, line_bytes: int) -> list[str]:
        lines = self.output.lines()
        left = accumulate((-len(json.dumps(each)) for each in reversed(lines)), initial=line_bytes)
        return lines[len(lines) - sum(each >= 0 for each in left) + 1 :]

    def signal(self, number: int) -> None:
        """To its whole group, which is there for as long as its first process was not reaped."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Keeper:
    """The instances of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._held: dict[str, Held] = {}
        self._ending: dict[int, asyncio.Task[None]] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._talks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._grace_seconds = _FIRST_SECONDS
        self._grace: asyncio.TimerHandle | None = None
        self._stopping = asyncio.Event()
        self._term_seconds = _ABANDONED_SECONDS
        self._leftovers: list[dict[str, Any]] = []

    async def run(self, listener: socket.socket) -> None:
        """Hold instances until there is nobody to hold them for; nothing of them is left then."""
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopping.set)
        self._loop.add_signal_handler(signal.SIGHUP, lambda: None)
        self._leftovers = await end_leftovers(self._folder)
        server = await asyncio.start_unix_server(self._connected, sock=listener, limit=MESSAGE_BYTES)
        self._begin_grace()
        await self._stopping.wait()
        server.close()
        (self._folder / SOCKET).unlink(missing_ok=True)
        await self._end_all()
        if self._writer is not None:
            self._writer.close()
        for talk in self._talks:
            talk.cancel()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = self._loop.create_task(self._talk(reader, writer))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one balancer until it goes. A newer one takes the place of an older."""
        if _peer_of(writer) != os.geteuid():
            writer.close()
            return
        if self._writer is not None:
            self._writer.close()
        self._writer = writer
        if self._grace is not None:
            self._grace.cancel()
        alive = [each for each in self._held.values() if each.pid not in self._ending]
        instances = [each.told(_HELLO_LINES_BYTES // len(alive)) for each in alive]
        hello = {"protocol": PROTOCOL, "pid": os.getpid(), "instances": instances}
        self._say("hello", **hello, leftovers=self._leftovers)
        self._leftovers = []
        try:
            while line := await reader.readline():
                self._do(json.loads(line))
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"a balancer was cut off: {error!r}", file=sys.stderr, flush=True)
        finally:
            writer.close()
            if self._writer is writer:
                self._writer = None
                self._begin_grace()

    def _begin_grace(self) -> None:
        wait = self._grace_seconds if self._held or self._grace is None else 0.0
        self._grace = self._loop.call_later(wait, self._stopping.set)

    def _do(self, asked: dict[str, Any]) -> None:
        match asked["do"]:
            case "hello":
                self._grace_seconds = float(asked["adopt_grace_seconds"])
            case "start":
                self._start(asked)
            case "stop":
                if (held := self._held.get(asked["name"])) is not None:
                    self._stop(held, float(asked["term_seconds"]))
            case "end":
                self._term_seconds = float(asked["term_seconds"])
                self._stopping.set()
            case other:
                raise ValueError(f"nothing is known of '{other}'")

    def _say(self, event: str, **facts: Any) -> None:
        if self._writer is None or self._writer.is_closing():
            return
        waiting = self._writer.transport.get_write_buffer_size()
        if waiting > _WAITING_BYTES:
            self._writer.transport.abort()
        elif event != "output" or waiting < _OUTPUT_WAITING_BYTES:
            self._writer.write(json.dumps({"event": event, **facts}).encode() + b"\n")

    def _start(self, asked: dict[str, Any]) -> None:
        name = asked["name"]
        if name in self._held or self._stopping.is_set():
            self._say("refused", name=name, error="it runs already, or the keeper is ending")
            return
        marks = {FOLDER_VARIABLE: str(self._folder), INSTANCE_VARIABLE: name}
        reading, writing = os.pipe()
        try:
            pid = _spawn(asked["arguments"], {**asked["environment"], **marks}, writing)
        except (OSError, ValueError, TypeError, IndexError) as error:
            os.close(reading)
            reason = getattr(error, "strerror", None) or error
            self._say("refused", name=name, error=f"{''.join(map(str, asked['arguments'][:1]))}: {reason}")
            return
        finally:
            os.close(writing)
        output = Output(reading, self._loop, lambda lines, lost: self._tell_output(name, lines, lost))
        self._held[name] = Held(name, pid, asked, output)
        self._empty.clear()
        self._say("started", name=name, pid=pid)

    def _tell_output(self, name: str, lines: list[str], lost: int) -> None:
        self._say("output", name=name, lines=lines, lost=lost)

    def _stop(self, held: Held, term_seconds: float) -> None:
        """TERM, and KILL where that was not enough. One that was stopped must go on to see a TERM."""
        held.signal(signal.SIGTERM)
        held.signal(signal.SIGCONT)
        if held.killing is not None:
            held.killing.cancel()
        held.killing = self._loop.call_later(term_seconds, held.signal, signal.SIGKILL)

    def _reap(self) -> None:
        """Take note of every child that has ended. The first process of an instance is reaped only once
        what is left of it was killed: until then nobody else can have its number."""
        by_pid = {each.pid: each for each in self._held.values()}
        for child in process_table.processes().values():
            if child.alive or child.parent != os.getpid() or child.pid in self._ending:
                continue
            held = by_pid.get(child.pid)
            if held is None:
                _reaped(child.pid)
            else:
                held.signal(signal.SIGKILL)
                self._ending[child.pid] = self._loop.create_task(self._bury(held))

    async def _bury(self, held: Held) -> None:
        """The first process of an instance has ended: end what is left of it, then tell."""
        if held.killing is not None:
            held.killing.cancel()
        left = await _killed(lambda: self._remains(held))
        code = _reaped(held.pid)
        del self._held[held.name], self._ending[held.pid]
        if not self._held:
            self._empty.set()
        held.output.close()
        self._say("exited", name=held.name, pid=held.pid, code=code, lines=held.output.lines(), left=left)

    def _remains(self, held: Held) -> list[Process]:
        """What is left of an instance: its session, what carries its name, and all that descends from
        those. What has dropped its environment and its session too goes with the last instance."""
        table = process_table.processes()
        mine = list(process_table.below(os.getpid(), table))
        alone = len(self._held) == 1
        others = {each.pid for each in self._held.values()} - {held.pid}
        roots = {
            each.pid
            for each in mine
            if each.pid not in others
            and (
                each.session == held.pid
                or (alone and each.parent == os.getpid())
                or process_table.environment(each.pid).get(INSTANCE_VARIABLE) == held.name
            )
        }
        return [each for each in mine if each.alive and roots & set(process_table.lineage(each.pid, table))]

    async def _end_all(self) -> None:
        for held in self._held.values():
            self._stop(held, self._term_seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._term_seconds + _KILL_SECONDS):
                await self._empty.wait()
        await _killed(_all_below)


def folder_of(pid: int, *, proc: Path = process_table.PROC) -> str | None:
    """The folder of the keeper whose marks a process carries, None where it carries none. The folder alone is
    none: whoever takes its variable for a setting would have the balancer killed."""
    told = process_table.environment(pid, proc=proc)
    return told.get(FOLDER_VARIABLE) if INSTANCE_VARIABLE in told else None


def is_held(pid: int, folder: str) -> bool:
    """Whether a process carries the marks of an instance of that folder."""
    return folder_of(pid) == folder


async def end_leftovers(folder: Path) -> list[dict[str, Any]]:
    """Kill what a keeper of this folder left behind when it was killed: every process with the folder in
    its environment, and what descends from those. Tells what there was."""
    found = _leftovers(folder)
    if found:
        told = [{"pid": each.pid, "command": process_table.command(each.pid)[:200]} for each in found]
        await _killed(lambda: _leftovers(folder))
        return told
    return []


def main(arguments: list[str]) -> int:
    """Become the keeper of a folder, in the background. Returns once it can be connected to: 0, or 1 where
    there is one already."""
    folder = Path(arguments[0]).resolve()
    os.chdir(folder)
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder} has a keeper already, process {Path(LOCK).read_text().strip()}", file=sys.stderr)
        return 1
    listener = _listen()
    if keeper := os.fork():
        os.ftruncate(lock, 0)
        os.write(lock, f"{keeper}\n".encode())
        return 0
    os.setsid()
    _redirect()
    os.chdir("/")
    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this system lets no process adopt its descendants")
    asyncio.run(_keep(folder, listener))
    return 0


async def _keep(folder: Path, listener: socket.socket) -> None:
    await Keeper(folder).run(listener)


def _listen() -> socket.socket:
    """A socket in the working folder that only this user can connect to."""
    Path(SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(SOCKET)
    finally:
        os.umask(before)
    listener.listen()
    return listener


def _redirect() -> None:
    """Hold nothing of the terminal or pipe of whoever started the keeper."""
    nothing = os.open(os.devnull, os.O_RDWR)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor, target in ((nothing, 0), (nothing, 1), (log, 2)):
        os.dup2(descriptor, target)


def _spawn(arguments: list[str], environment: dict[str, str], output: int) -> int:
    """Start a program with nothing of ours but the pipe for its output. Raises OSError."""
    program = shutil.which(arguments[0], path=environment.get("PATH", os.defpath))
    if program is None:
        raise FileNotFoundError(2, "there is no such program")
    return os.posix_spawn(
        program,
        arguments,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _reaped(pid: int) -> int:
    """The exit code of a child that has ended, which waits for nothing; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _all_below() -> list[Process]:
    return [each for each in process_table.below(os.getpid(), process_table.processes()) if each.alive]


def _peer_of(writer: asyncio.StreamWriter) -> int:
    """The user at the other end. Source: unix(7), SO_PEERCRED."""
    credentials = struct.Struct("3i")
    told = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return int(credentials.unpack(told)[1])


async def _killed(find: Callable[[], list[Process]]) -> list[int]:
    """Kill what is found until nothing is; the pids of what would not go."""
    deadline = time.monotonic() + _KILL_SECONDS
    while found := find():
        for each in found:
            process_table.send(each, signal.SIGKILL)
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(_LOOK_SECONDS)
    return [each.pid for each in found]


def _leftovers(folder: Path) -> list[Process]:
    table = process_table.processes()
    own = set(process_table.lineage(os.getpid(), table))
    mark = str(folder)
    roots = {pid for pid in table if is_held(pid, mark)} - own
    return [
        each
        for each in table.values()
        if each.alive and each.pid not in own and roots & set(process_table.lineage(each.pid, table))
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
