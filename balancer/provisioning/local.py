"""What this machine's own process table tells of an Ollama that someone else started here.

An Ollama does not say how many slots its runners have, nor where its models are. Its child's command
line and its own environment do. Linux only, and only for processes of the same user; where nothing
can be read the answer is None, which is no fault. These calls block for a few milliseconds.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

_LISTEN = "0A"
_BLOB = re.compile(r"sha256-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class LocalOllama:
    """An Ollama server process here. Those with the same `models_id` read the same models; `slots`
    maps the digest of a runner's model blob to its slots, `ports` to where it listens."""

    pid: int
    models_id: str
    slots: Mapping[str, int] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)


def find_local_ollama(port: int, *, proc: Path = Path("/proc")) -> LocalOllama | None:
    """The Ollama that listens on a port of this machine, None where there is none to be seen.

    Source: Ollama v0.33 llm/llama_server.go: `llama-server --model …/blobs/sha256-… --port P … -np N`.
    """
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(proc / "net" / table, port)}
    if not inodes:
        return None
    named = (pid for pid in _pids(proc) if _text(proc / str(pid) / "comm").strip() == "ollama")
    pid = next((pid for pid in named if _holds_socket(proc / str(pid), inodes)), None)
    if pid is None:
        return None
    environment = dict(
        entry.partition("=")[::2] for entry in _text(proc / str(pid) / "environ").split("\0") if "=" in entry
    )
    models_dir = environment.get("OLLAMA_MODELS") or f"{environment.get('HOME', '')}/.ollama/models"
    runners = list(_runners(proc, pid))
    return LocalOllama(
        pid,
        _identity(proc / str(pid) / "root", models_dir),
        slots={blob: slots for blob, slots, _ in runners},
        ports={blob: port for blob, _, port in runners if port is not None},
    )


def _identity(root: Path, models_dir: str) -> str:
    """What tells two directories apart, whatever container or link they are seen through: their device
    and inode; the name where it cannot be looked at, as before the first model is there."""
    try:
        status = (root / models_dir.lstrip("/")).stat()
    except OSError:
        return str(Path(models_dir).resolve())
    return f"{status.st_dev}:{status.st_ino}"


def _runners(proc: Path, parent: int) -> Iterator[tuple[str, int, int | None]]:
    for pid in _pids(proc):
        status = _text(proc / str(pid) / "stat").rpartition(")")[2].split()
        if len(status) > 1 and status[1] == str(parent):
            arguments = _text(proc / str(pid) / "cmdline").split("\0")
            blob = next((found for each in arguments if (found := _BLOB.search(each))), None)
            slots = _value_after("-np", arguments) or _value_after("--parallel", arguments)
            port = _value_after("--port", arguments) or ""
            if blob is not None and slots is not None and slots.isdigit():
                yield blob.group(1), int(slots), int(port) if port.isdigit() else None


def _value_after(flag: str, arguments: list[str]) -> str | None:
    return next((value for each, value in pairwise(arguments) if each == flag), None)


def _listening(table: Path, port: int) -> Iterator[str]:
    """Those that listen stand before all others. Source: Linux net/ipv4/tcp_ipv4.c, tcp_seq_start."""
    with suppress(OSError), table.open(errors="replace") as lines:
        for line in islice(lines, 1, None):
            columns = line.split()
            if len(columns) < 10 or columns[3] != _LISTEN:
                return
            if int(columns[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{columns[9]}]"


def _pids(proc: Path) -> Iterator[int]:
    for entry in proc.iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def _holds_socket(process: Path, inodes: set[str]) -> bool:
    try:
        return any(str(link.readlink()) in inodes for link in (process / "fd").iterdir())
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
