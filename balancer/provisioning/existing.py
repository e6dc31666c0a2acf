"""The Ollama servers that run on this machine already, whoever started them, and what that means for
provisioning: they hold GPU memory that nobody here can count on.

Linux only. What belongs to another user or to a container tells less of itself; its user, its unit and, on
the ports that Ollamas usually have, its port can still be had. These calls block for some milliseconds.
"""

import os
import pwd
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from balancer.provisioning import keeper
from balancer.provisioning.model_store import store_folder
from balancer.provisioning.process_table import PROC, arguments, environment, pids, read_process, read_text
from balancer.provisioning.sockets import Listener, descriptors, holder_of, listeners

OLLAMA_PORT = 11434
# Where further Ollamas of one machine are put by hand; those of the balancer come after.
_USUAL_PORTS = range(OLLAMA_PORT, 11500)
_TAKEN = "GPU memory that they take is not the balancer's to give: instances beside them may run out of it"
_NAMES = frozenset(("ollama", ".ollama-wrapped"))
_FORWARDERS = frozenset(("docker-proxy", "rootlessport", "pasta", "pasta.avx2", "slirp4netns"))
_SERVICE = re.compile(r"/([^/\s]+)\.service$", re.MULTILINE)
_USER_SERVICE = re.compile(r"/user@[0-9]+\.service/\S*")
_CONTAINER = re.compile(r"(docker|libpod|podman)?[-/]([0-9a-f]{64})\b")


@dataclass(frozen=True, slots=True)
class ExistingOllama:
    """One Ollama server. `addresses` are those that it is seen or taken to listen on, none where that cannot
    be told. `pid` is None for a listener on Ollama's own port whose process cannot be seen. `unit` is the
    systemd service that it is, of the system or, where `of_user`, of its user; `container` the id of the
    container that it runs in. `models_dir` is where its models are, None where that cannot be told. `keeper`
    is the state folder of the balancer that manages it, None where none does."""

    addresses: tuple[str, ...]
    pid: int | None = None
    user: str | None = None
    unit: str | None = None
    of_user: bool = False
    container: str | None = None
    engine: str = "docker"
    models_dir: Path | None = None
    models_readable: bool = False
    keeper: str | None = None

    @property
    def url(self) -> str | None:
        """Where it can be attached, None where that cannot be told."""
        return f"http://{self.addresses[0]}" if self.addresses else None

    @property
    def ports(self) -> frozenset[int]:
        """Where it listens, as far as that can be told."""
        return frozenset(int(each.rpartition(":")[2]) for each in self.addresses)

    @property
    def stop_command(self) -> str:
        """What ends it, and keeps it from being started again by what started it."""
        if self.container:
            return f"{self.engine} stop {self.container[:12]}"
        if self.unit:
            how = "systemctl --user" if self.of_user else "sudo systemctl"
            return f"{how} disable --now {self.unit}"
        if self.pid is None:
            return "sudo systemctl disable --now ollama"
        return f"{'' if self.user == _user_name(os.getuid()) else 'sudo '}kill {self.pid}"

    def __str__(self) -> str:
        where = f" on {', '.join(self.addresses)}" if self.addresses else ""
        who = [f"process {self.pid}" if self.pid is not None else "a process that cannot be seen"]
        who += [f"user {self.user}"] if self.user else []
        who += [f"{self.engine} container {self.container[:12]}"] if self.container else []
        who += [f"{self.unit}.service"] if self.unit else []
        return f"an Ollama runs here already{where}: {', '.join(who)}"


@dataclass(frozen=True, slots=True)
class Situation:
    """What runs here already, and the sentences that tell of it and of what can be done, a line each.
    `managed` are instances of other balancers, which nobody else is to use or to stop."""

    found: tuple[ExistingOllama, ...]
    managed: tuple[ExistingOllama, ...]
    sentences: tuple[str, ...]


@dataclass(slots=True)
class _Sockets:
    """Who listens on this machine; each listener is given to one server at most."""

    left: list[Listener] = field(default_factory=list)

    def take(self, wanted: Sequence[Listener]) -> tuple[str, ...]:
        self.left = [each for each in self.left if each not in wanted]
        return tuple(dict.fromkeys(each.address for each in wanted))


def look_around(
    *, gpus: bool, managed: Collection[int] = (), folder: str = "", proc: Path = PROC
) -> Situation:
    """What runs here besides the instances on the `managed` ports and those of the balancer with the state
    `folder`; `gpus`: whether there are GPUs to share."""
    every = find_existing(managed=managed, proc=proc)
    found = tuple(each for each in every if each.keeper is None)
    held = tuple(each for each in every if each.keeper not in {None, folder})
    attachable = [each.url for each in found if each.url]
    sentences = [line for each in found for line in _told(each)]
    sentences += _told_of_managed(held)
    if gpus and sentences:
        sentences.append(_TAKEN)
    if attachable:
        sentences.append(f"to use what runs: balancer serve {' '.join(attachable)}")
    return Situation(found, held, tuple(sentences))


def find_existing(*, managed: Collection[int] = (), proc: Path = PROC) -> tuple[ExistingOllama, ...]:
    """Every Ollama server of this machine but those on the `managed` ports, the one on Ollama's own port
    first."""
    listening = listeners(proc=proc)
    mine = {each.inode for each in listening if each.port in managed}
    sockets = _Sockets([each for each in listening if each.port not in managed])
    held = {pid: descriptors(pid, proc=proc) for pid in pids(proc) if _serves(proc / str(pid))}
    open_first = sorted(held, key=lambda pid: (held[pid] is None, pid))
    seen = [_existing(pid, held[pid], sockets, proc) for pid in open_first if not mine & (held[pid] or set())]
    own_port = f":{OLLAMA_PORT}"
    return tuple(
        sorted(
            _with_hidden(seen, sockets, proc),
            key=lambda each: (not (each.addresses and each.addresses[0].endswith(own_port)), each.addresses),
        )
    )


def _told(existing: ExistingOllama) -> Iterator[str]:
    yield str(existing)
    if existing.models_dir is not None and existing.models_readable:
        yield f"to use its models in managed instances: runtimes.ollama.models_dir: {existing.models_dir}"
    elif existing.models_dir is not None:
        yield f"its models are in {existing.models_dir}, which this user may not read"
    yield f"to stop it and leave everything to the balancer: {existing.stop_command}"


def _told_of_managed(held: Sequence[ExistingOllama]) -> Iterator[str]:
    for folder in dict.fromkeys(each.keeper for each in held):
        its = [each for each in held if each.keeper == folder]
        where = ", ".join(address for each in its for address in each.addresses)
        they = f"{len(its)} {'Ollamas are' if len(its) > 1 else 'Ollama is'}"
        yield f"{they} managed by the balancer with state folder {folder}" + (f" ({where})" if where else "")


def _serves(process: Path) -> bool:
    """Whether it is `ollama serve`, and neither a client nor a runner. Everyone may read that."""
    arguments = read_text(process / "cmdline").split("\0")
    named = read_text(process / "comm").strip() in _NAMES
    return named and len(arguments) > 1 and arguments[1] in ("serve", "start")


def _existing(pid: int, held: set[str] | None, sockets: _Sockets, proc: Path) -> ExistingOllama:
    process = proc / str(pid)
    control_groups = read_text(process / "cgroup")
    container = _CONTAINER.search(control_groups)
    held_by = _keeper(pid, proc)
    if container and container[2] not in read_text(proc / "self" / "cgroup"):
        engine = "podman" if container[1] in ("libpod", "podman") else "docker"
        return ExistingOllama(addresses=(), pid=pid, container=container[2], engine=engine, keeper=held_by)
    uid = _uid(process)
    service = _SERVICE.search(control_groups)
    models_dir = _models_dir(pid, uid, proc)
    return ExistingOllama(
        addresses=sockets.take(_listening(held, uid, sockets)),
        pid=pid,
        user=_user_name(uid),
        unit=service[1] if service else None,
        of_user=_USER_SERVICE.search(control_groups) is not None,
        models_dir=models_dir,
        models_readable=models_dir is not None and os.access(models_dir, os.R_OK | os.X_OK),
        keeper=held_by,
    )


def _keeper(pid: int, proc: Path) -> str | None:
    """The folder of the keeper that holds a process, by its marks; where those are closed to us, by the
    command line of its parent, which everyone may read."""
    process = read_process(pid, proc=proc)
    parent = arguments(process.parent, proc=proc) if process is not None else []
    held_by = parent[-1] if keeper.__name__ in parent[:-1] else None
    return keeper.folder_of(pid, proc=proc) or held_by


def _listening(held: set[str] | None, uid: int | None, sockets: _Sockets) -> list[Listener]:
    if held is not None:
        return [each for each in sockets.left if each.inode in held]
    # Its files are closed to us, but everyone may read which user listens where.
    usual = (each for each in sockets.left if each.uid == uid and each.port in _USUAL_PORTS)
    first = min(usual, key=lambda each: each.port, default=None)
    return [each for each in sockets.left if first is not None and (each.uid, each.port) == (uid, first.port)]


def _with_hidden(seen: Sequence[ExistingOllama], sockets: _Sockets, proc: Path) -> Iterator[ExistingOllama]:
    """Those seen, and who listens on Ollama's own port unseen: a container's is forwarded by another
    process, and processes can be hidden from other users."""
    hidden = [each for each in sockets.left if each.port == OLLAMA_PORT and _may_be_ollama(each, proc)]
    addresses = sockets.take(hidden)
    for each in seen:
        if each.container and addresses:
            yield replace(each, addresses=addresses)
            addresses = ()
        else:
            yield each
    if addresses:
        yield ExistingOllama(addresses=addresses, user=_user_name(hidden[0].uid))


def _may_be_ollama(listener: Listener, proc: Path) -> bool:
    pid = holder_of({listener.inode}, pids(proc), proc=proc)
    return pid is None or read_text(proc / str(pid) / "comm").strip() in _FORWARDERS


def _models_dir(pid: int, uid: int | None, proc: Path) -> Path | None:
    """As its environment says; where that is closed to us, the folder of its user's home if there is one."""
    given = environment(pid, proc=proc)
    if given:
        return store_folder(given)
    with suppress(KeyError, OSError):
        if uid is not None and (usual := store_folder({"HOME": pwd.getpwuid(uid).pw_dir})).is_dir():
            return usual
    return None


def _uid(process: Path) -> int | None:
    line = next((line for line in read_text(process / "status").splitlines() if line.startswith("Uid:")), "")
    words = line.split()
    return int(words[1]) if len(words) > 1 else None


def _user_name(uid: int | None) -> str | None:
    try:
        return None if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
