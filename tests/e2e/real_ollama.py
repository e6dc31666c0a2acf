"""Real `ollama serve` processes on free ports of this machine, with tiny models in stores of their own.

The binary is named by OLLAMA_BINARY, the folder of the models' GGUF files by OLLAMA_TEST_GGUF. `say`,
`tool` and `think` always answer the same, `t` says random words until it happens to end, `m` says the same
words for long and slowly, `e` embeds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from client_talks import Cast
from harness import NAMES, BalancerProcess, Child, balancer_process, child, wait_for

BINARY = os.environ.get("OLLAMA_BINARY", "")
GGUF = Path(os.environ.get("OLLAMA_TEST_GGUF", "") or "nowhere")
CAST = Cast(chat="say", tools="tool", thinker="think", embedder="e")
RANDOM = Cast(chat="t", tools="tool", thinker="think", embedder="e")
SLOW = Cast(chat="m", tools="tool", thinker="think", embedder="e")
MODELS = ("t", "m", "e", "tool", "think", "say")

needs_ollama = [
    pytest.mark.ollama,
    pytest.mark.skipif(
        not os.access(BINARY, os.X_OK) or not Path(BINARY).is_file(),
        reason="OLLAMA_BINARY names no executable",
    ),
    pytest.mark.skipif(not GGUF.is_dir(), reason="OLLAMA_TEST_GGUF names no folder"),
]

_GATED = """#!/bin/sh
case " $* " in *" --model "*)
  echo $$ >> '{folder}/loads'
  until [ -e '{folder}/open' ]; do sleep 0.02; done
esac
exec '{real}' "$@"
"""
"""A runner is started without a model too, when the server looks for devices; those may pass."""

_CALLS = (
    '{{ if .ToolCalls }}{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", '
    '"parameters": {{ .Function.Arguments }}}{{ end }}{{ end }}'
)
_TURNS = (
    "{{- if .Tools }}tools: {{ .Tools }}\n{{ end }}{{- range .Messages }}{{ .Role }}: {{ .Content }}"
    + _CALLS
    + "\n{{ end }}assistant:"
)
_THOUGHTS = _TURNS.replace(
    "{{ .Content }}", "{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}"
)
TEMPLATE = "{{- if .Suffix }}<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>{{- else }}" + _TURNS + "{{- end }}"


@dataclass(frozen=True, slots=True)
class RealOllama:
    """One server process; `models` is its store."""

    child: Child
    url: str
    models: Path

    def served(self, path: str) -> int:
        """How many requests for a path have ended there, as its own log tells."""
        lines = self.child.out.read_text(errors="replace").splitlines()
        return sum("[GIN]" in line and f'"{path}"' in line for line in lines)

    def listed(self) -> set[str]:
        """The models that it lists."""
        return {str(each.model) for each in self._call("list").models}

    def resident(self) -> set[str]:
        """The models that are loaded there."""
        return {str(each.model) for each in self._call("ps").models}

    def runners(self) -> list[int]:
        """The process ids of its runners, loaded or loading."""
        parents = {each: _parent(each) for each in Path("/proc").iterdir() if each.name.isdigit()}
        children = (each for each, parent in parents.items() if parent == self.child.pid)
        return [int(each.name) for each in children if b"--model" in _read(each / "cmdline")]

    def kill_runners(self) -> None:
        """End its runners as a crash would."""
        for runner in self.runners():
            os.kill(runner, signal.SIGKILL)

    def kill(self) -> None:
        """End the server as a crash would; its runners stay behind."""
        self.child.end(signal.SIGKILL)

    def busy_ticks(self) -> int:
        """The processor time that its runners have used."""
        stats = (_read(Path("/proc") / str(each) / "stat") for each in self.runners())
        return sum(sum(map(int, each.rpartition(b")")[2].split()[11:13])) for each in stats)

    def _call(self, method: str) -> Any:
        with ollama.Client(host=self.url) as client:
            return getattr(client, method)()


@dataclass(frozen=True, slots=True)
class Gate:
    """An Ollama of its own at `binary`, whose runners load nothing before the gate is open."""

    folder: Path

    @property
    def binary(self) -> str:
        return str(self.folder / "bin" / "ollama")

    def loads(self) -> int:
        """How many loads were begun."""
        begun = self.folder / "loads"
        return len(begun.read_text().splitlines()) if begun.exists() else 0

    def open(self) -> None:
        """Let every load go on, now and from now on."""
        (self.folder / "open").touch()


def gate(folder: Path) -> Gate:
    """A gated Ollama in a folder that is not there yet: a copy of the binary, since a link is resolved
    to where it leads, and a shell script in place of the runner."""
    real = Path(BINARY).resolve()
    libraries = real.parent.parent / "lib" / "ollama"
    for each in ("bin", "lib/ollama"):
        (folder / each).mkdir(parents=True)
    shutil.copy(real, folder / "bin" / "ollama")
    for each in libraries.iterdir():
        if each.name != "llama-server":
            (folder / "lib" / "ollama" / each.name).symlink_to(each)
    runner = folder / "lib" / "ollama" / "llama-server"
    runner.write_text(_GATED.format(folder=folder, real=libraries / "llama-server"))
    runner.chmod(0o755)
    return Gate(folder)


@contextlib.contextmanager
def serving(
    name: str, models: Path, folder: Path, *, binary: str = BINARY, **environment: str
) -> Iterator[RealOllama]:
    """`ollama serve` for the length of a `with` block, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    settings = {
        "OLLAMA_HOST": url,
        "OLLAMA_MODELS": str(models),
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_CONTEXT_LENGTH": "2048",
        "OLLAMA_NUM_PARALLEL": "1",
        "HOME": str(folder / name),
    }
    (folder / name).mkdir(parents=True, exist_ok=True)
    with child(name, (binary, "serve"), folder, **{**settings, **environment}) as process:
        wait_for(lambda: _answers(url), about=f"{name} on {url}")
        yield RealOllama(process, url, models)


@dataclass(frozen=True, slots=True)
class Behind:
    """Real servers, and the balancer in front of them."""

    servers: tuple[RealOllama, ...]
    balancer: BalancerProcess

    @property
    def url(self) -> str:
        return self.balancer.url

    def served(self, path: str) -> list[int]:
        """How many requests for a path have ended at each server."""
        return [each.served(path) for each in self.servers]

    def runners(self) -> list[dict[str, Any]]:
        """The runners that the balancer knows of."""
        return [runner for each in self._told("instances") for runner in each["runners"]]

    def running(self) -> list[int]:
        """How many leases are out at each server."""
        return self._counted("running")

    def cooling(self) -> list[int]:
        """How many slots at each server are back and not lent yet."""
        return self._counted("cooling")

    def live(self) -> int:
        """How many requests are under way."""
        return len(self._told("requests", "live"))

    def recent(self) -> list[dict[str, Any]]:
        """The requests that ended, the newest first."""
        return self._told("requests", "recent")

    def loads(self) -> dict[str, list[str]]:
        """How the loads that the balancer began at each server ended, as its log tells."""
        ended: dict[str, list[str]] = {each.url: [] for each in self.servers}
        for line in self.balancer.log():
            if line["event"] == "load_ended":
                ended[f"http://{line['instance']}"].append(line["outcome"])
        return ended

    def outcome(self, request: str) -> str:
        """How the request of an id ended, empty while it runs."""
        return next((each["outcome"] for each in self.recent() if each["id"] == request), "")

    def server(self, headers: Mapping[str, str]) -> RealOllama:
        """The server that gave an answer, by the answer's headers."""
        named = headers["X-Balancer-Instance"]
        return next(each for each in self.servers if each.url.endswith(f"//{named}"))

    def _counted(self, what: str) -> list[int]:
        by_url = {each["url"]: each[what] for each in self._told("instances")}
        return [by_url[each.url] for each in self.servers]

    def _told(self, path: str, key: str = "") -> list[dict[str, Any]]:
        # Without TLS: to read the certificates would take longer than the answer.
        answer = httpx.get(f"{self.balancer.admin}/admin/v1/{path}", trust_env=False, verify=False)
        return answer.json()[key or path]


@contextlib.contextmanager
def in_front_of(
    servers: Sequence[RealOllama], folder: Path, *, slots: int | None = None, **environment: str
) -> Iterator[Behind]:
    """A balancer for servers that run; `slots` None lets it learn them."""
    attached = [{"url": each.url, "slots": slots} for each in servers]
    settings = {"BALANCER_INSTANCES": json.dumps(attached), **environment}
    with balancer_process(folder, "serve", **settings) as balancer:
        yield Behind(tuple(servers), balancer)


@contextlib.contextmanager
def behind(
    stores: Sequence[Path], folder: Path, *, slots: int | None = None, **environment: str
) -> Iterator[Behind]:
    """A server for each of these stores, and a balancer."""
    with contextlib.ExitStack() as stack:
        servers = tuple(
            stack.enter_context(serving(name, models, folder, **environment))
            for name, models in zip(NAMES, stores, strict=False)
        )
        yield stack.enter_context(in_front_of(servers, folder, slots=slots))


def fill(url: str, *names: str) -> None:
    """Create models there from their GGUF files."""
    with ollama.Client(host=url) as client:
        for name in names:
            client.create(name, **model_fields(name, client.create_blob(GGUF / f"{name}.gguf")))


def model_fields(name: str, digest: str) -> dict[str, Any]:
    """How a model is created from a blob; one thread, so that several fit on a small machine. The OpenAI
    paths set a temperature where none is asked for, so that `m` is made greedy by its top_k."""
    template = {"e": None, "think": _THOUGHTS}.get(name, TEMPLATE)
    parameters = {"num_thread": 1, "top_k": 1} if name == "m" else {"num_thread": 1}
    return {"files": {f"{name}.gguf": digest}, "template": template, "parameters": parameters}


def copy_store(store: Path, folder: Path) -> Path:
    """A store of its own with the same models: blobs are linked, manifests written anew."""
    shutil.copytree(store, folder, copy_function=_link_or_copy)
    return folder


def _link_or_copy(source: str, target: str) -> None:
    if "blobs" in Path(source).parts:
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def cli(url: str, home: Path, *arguments: str, given: str | None = None) -> str:
    """What the `ollama` command prints when it is pointed at an address."""
    done = subprocess.run(
        (BINARY, *arguments),
        input=given,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
        env={**_bare_environment(), "OLLAMA_HOST": url, "HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _bare_environment() -> Mapping[str, str]:
    return {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/version", trust_env=False, timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def _read(file: Path) -> bytes:
    """What a file of /proc says, nothing where its process has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return file.read_bytes()
    return b""


def _parent(process: Path) -> int:
    """The parent of a process, 0 where it has ended."""
    fields = _read(process / "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0
