"""Starting things for the end-to-end tests: balancers in this process, and processes of their own.

Whatever is started here is ended here. It knows no client library (client_talks.py) and no real Ollama
(real_ollama.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from balancer.app import Addresses, Balancer
from balancer.clock import Clock
from balancer.settings import load
from balancer.simulator import ModelStore, ServerConfig, ServiceRates, SimulatedOllama
from balancer.telemetry.logs import make_logger

CHAT, THINKER, EMBEDDER = "llama3.2:latest", "qwen3:8b", "nomic-embed-text:latest"
NAMES = ("one", "two", "three")
LONG = ServiceRates(decode_tokens_per_second=50, prefill_tokens_per_second=1e6)
"""With `answer_tokens` in the thousands: an answer that goes on for minutes, a part every 20 ms."""

_PATIENCE_SECONDS = 20.0
_LOOK_SECONDS = 0.01


def quick(**changes: Any) -> ServerConfig:
    """A simulated instance on which nothing takes noticeable time and nothing expires."""
    return ServerConfig(**{"speed": 500, "keep_alive_seconds": 1e6, "slots": 2, **changes})


def talkative(**changes: Any) -> ServerConfig:
    """A simulated instance whose answers go on for minutes."""
    return quick(**{"speed": 1, "load_seconds": 0, "rates": LONG, "answer_tokens": 5000, **changes})


@dataclass(frozen=True, slots=True)
class Stack:
    """A balancer of this process, with the simulated instances behind it."""

    balancer: Balancer
    addresses: Addresses
    servers: tuple[SimulatedOllama, ...]
    log: io.StringIO

    @property
    def url(self) -> str:
        return self.addresses.clients

    @property
    def admin(self) -> str:
        return self.addresses.admin

    def finished(self) -> list[dict[str, Any]]:
        """The wide events of the requests that ended."""
        return wide_events(self.log.getvalue())

    def asked(self, path: str) -> list[int]:
        """How often each simulated instance was asked for a path."""
        return [each.seen.requests_by_path[path] for each in self.servers]


def wide_events(text: str) -> list[dict[str, Any]]:
    """The request events of a log, which must be one JSON object a line."""
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if line["event"] == "request_finished"]


@contextlib.asynccontextmanager
async def simulated(*configs: ServerConfig, shared: bool = False) -> AsyncIterator[list[SimulatedOllama]]:
    """Simulated instances of this process; with a store for all, or each with its own."""
    store = ModelStore(configs[0].models) if shared else None
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(SimulatedOllama(config, store).running()) for config in configs
        ]


@contextlib.asynccontextmanager
async def balancing(
    instances: Sequence[SimulatedOllama | str],
    *,
    usable: int | None = None,
    runtime: str = "ollama",
    slots: int | None = None,
    clock: Clock | None = None,
    **settings: Any,
) -> AsyncIterator[Stack]:
    """A balancer of this process in front of these, once so many of them (default: all) are usable; by the
    machine's time unless another `clock` is given."""
    urls = [each if isinstance(each, str) else each.url for each in instances]
    pairs = zip(NAMES, urls, strict=False)
    attached = [{"name": name, "url": url, "runtime": runtime, "slots": slots} for name, url in pairs]
    overrides = {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "instances": attached, **settings}
    log = io.StringIO()
    balancer = Balancer(
        load((), environ={}, overrides=overrides),
        log=make_logger(level="info", output_format="json", stream=log),
        clock=clock,
    )
    stop, opened = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(balancer.run(stop, opened=opened.set_result))
        try:
            addresses = await opened
            wanted = len(instances) if usable is None else usable
            await until(lambda: len(balancer.fleet.usable()) == wanted)
            servers = tuple(each for each in instances if not isinstance(each, str))
            yield Stack(balancer, addresses, servers, log)
        finally:
            stop.set()


@contextlib.asynccontextmanager
async def fleet(*configs: ServerConfig, shared: bool = False, **settings: Any) -> AsyncIterator[Stack]:
    """A balancer in front of simulated instances, all in this process."""
    async with simulated(*configs, shared=shared) as servers, balancing(servers, **settings) as stack:
        yield stack


async def until(holds: Callable[[], object], seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait for a state, looking often; fails where it never comes."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not so within {seconds:g} s"
        await asyncio.sleep(_LOOK_SECONDS)


def wait_for(holds: Callable[[], object], seconds: float = _PATIENCE_SECONDS, *, about: str = "") -> None:
    """As `until`, where no loop runs."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not so within {seconds:g} s: {about}"
        time.sleep(_LOOK_SECONDS)


def http(url: str, **options: Any) -> httpx.AsyncClient:
    """A plain client; proxies named in the environment are ignored."""
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=_PATIENCE_SECONDS, **options)


def records(response: httpx.Response) -> list[dict[str, Any]]:
    """The records of a native stream that was read whole."""
    return [json.loads(line) for line in response.text.splitlines()]


@contextlib.contextmanager
def refusing_address() -> Iterator[str]:
    """An address of this machine at which connections are refused, kept from everyone else."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class Child:
    """A process in a group of its own, with its output in files."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**_environment(), **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self, mark: str) -> str:
        """The first line of its output that holds the mark, once it is there."""
        wait_for(lambda: self._line(mark) or self.process.poll() is not None, about=f"'{mark}' in {self.out}")
        found = self._line(mark)
        assert found is not None, f"ended with {self.process.returncode}: {self.err.read_text()}"
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal and wait; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(_PATIENCE_SECONDS)

    def end_group(self) -> None:
        """End it and whatever it left behind in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(_PATIENCE_SECONDS)

    def _line(self, mark: str) -> str | None:
        lines = self.out.read_text().splitlines(keepends=True)
        return next((each for each in lines if mark in each and each.endswith("\n")), None)


@contextlib.contextmanager
def child(name: str, command: Sequence[str], folder: Path, **environment: str) -> Iterator[Child]:
    """A process for the length of a `with` block."""
    started = Child(name, command, folder, **environment)
    try:
        yield started
    finally:
        started.end_group()


@dataclass(frozen=True, slots=True)
class BalancerProcess:
    """A balancer in a process of its own; its log is one JSON object a line."""

    child: Child
    url: str
    admin: str

    def finished(self) -> list[dict[str, Any]]:
        """The wide events of the requests that ended."""
        return wide_events(self.child.err.read_text())

    def log(self) -> list[dict[str, Any]]:
        """Its log so far."""
        return [json.loads(line) for line in self.child.err.read_text().splitlines()]

    def all_usable(self) -> bool:
        """Whether every instance answers its probes."""
        usable, _, total, *_ = httpx.get(f"{self.url}/readyz", trust_env=False).text.split()
        return usable == total

    def instances(self) -> list[dict[str, Any]]:
        """What `status` knows of the instances."""
        return json.loads(balancer("status", "--json", "--admin", self.admin).stdout)["instances"]


@contextlib.contextmanager
def balancer_process(folder: Path, *arguments: str, **environment: str) -> Iterator[BalancerProcess]:
    """`balancer serve` or `demo` on free ports, once all of its instances are usable."""
    addresses = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    with child("balancer", command(*arguments, *addresses), folder, **environment) as started:
        words = started.line("listens on").replace(",", " ").split()
        told = BalancerProcess(started, words[words.index("on") + 1], words[-1])
        wait_for(told.all_usable, about=f"all instances usable at {told.url}")
        yield told


def command(*arguments: str) -> list[str]:
    """The command line of the balancer."""
    return [sys.executable, "-m", "balancer", *arguments]


def balancer(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the balancer to its end."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        encoding="utf-8",
        timeout=_PATIENCE_SECONDS,
        check=False,
        env={**_environment(), **environment},
    )


def _environment() -> Mapping[str, str]:
    """This process's environment without what would configure a child by accident."""
    prefixes = ("BALANCER_", "OLLAMA_", "GPU_", "MODEL_POOL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**kept, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
