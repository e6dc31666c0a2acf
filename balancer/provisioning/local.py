"""What this machine's own process table tells of an Ollama that someone else started here.

An Ollama does not say how many slots its runners have, nor where its models are. Its child's command
line and its own environment do. Linux only, and only for processes of the same user; where nothing
can be read the answer is None, which is no fault. These calls block for a few milliseconds.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from balancer.provisioning.model_store import store_folder
from balancer.provisioning.process_table import PROC, environment, pids, read_text
from balancer.provisioning.sockets import holder_of, listening_inodes

_BLOB = re.compile(r"sha256-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class LocalOllama:
    """An Ollama server process here. Those with the same `models_id` read the same models; `slots`
    maps the digest of a runner's model blob to its slots, `ports` to where it listens."""

    pid: int
    models_id: str
    slots: Mapping[str, int] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)


def find_local_ollama(port: int, *, proc: Path = PROC) -> LocalOllama | None:
    """The Ollama that listens on a port of this machine, None where there is none to be seen.

    Source: Ollama v0.33 llm/llama_server.go: `llama-server --model …/blobs/sha256-… --port P … -np N`.
    """
    inodes = listening_inodes(port, proc=proc)
    if not inodes:
        return None
    named = (pid for pid in pids(proc) if read_text(proc / str(pid) / "comm").strip() == "ollama")
    pid = holder_of(inodes, named, proc=proc)
    if pid is None:
        return None
    runners = list(_runners(proc, pid))
    return LocalOllama(
        pid,
        _identity(proc / str(pid) / "root", store_folder(environment(pid, proc=proc))),
        slots={blob: slots for blob, slots, _ in runners},
        ports={blob: port for blob, _, port in runners if port is not None},
    )


def _identity(root: Path, models_dir: Path) -> str:
    """What tells two directories apart, whatever container or link they are seen through: their device
    and inode; the name where it cannot be looked at, as before the first model is there."""
    try:
        status = (root / str(models_dir).lstrip("/")).stat()
    except OSError:
        return str(models_dir.resolve())
    return f"{status.st_dev}:{status.st_ino}"


def _runners(proc: Path, parent: int) -> Iterator[tuple[str, int, int | None]]:
    for pid in pids(proc):
        status = read_text(proc / str(pid) / "stat").rpartition(")")[2].split()
        if len(status) > 1 and status[1] == str(parent):
            arguments = read_text(proc / str(pid) / "cmdline").split("\0")
            blob = next((found for each in arguments if (found := _BLOB.search(each))), None)
            slots = _value_after("-np", arguments) or _value_after("--parallel", arguments)
            port = _value_after("--port", arguments) or ""
            if blob is not None and slots is not None and slots.isdigit():
                yield blob.group(1), int(slots), int(port) if port.isdigit() else None


def _value_after(flag: str, arguments: list[str]) -> str | None:
    return next((value for each, value in pairwise(arguments) if each == flag), None)
