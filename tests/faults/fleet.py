"""Three simulated instances, each behind its passthrough, and a balancer in a process of its own.

Whatever is started here is ended here. What a row injects, it injects through `Instance` (processes
and simulated faults) and its passthrough (networks).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from balancer.simulator import ServerConfig, ServiceRates, SimulatedOllama
from tests.faults.passthrough import Passthrough
from tests.faults.talks import CHAT, EMBEDDER

NAMES = ("one", "two", "three")
ROOT = Path(__file__).parents[2]
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.02
_END_SECONDS = 10.0
INFERENCE_PATHS = ("/api/chat", "/api/generate", "/api/embed", "/v1/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How the simulated instances serve, in real seconds."""

    slots: int = 4
    decode_rate: float = 60.0
    prefill_rate: float = 5000.0
    load_seconds: float = 0.2
    answer_tokens: int = 24
    seed: int = 7

    def arguments(self) -> list[str]:
        """As the command line has it."""
        options = {**asdict(self), "keep_alive": -1}
        return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]

    def config(self, name: str) -> ServerConfig:
        """As a server of this process has it."""
        return ServerConfig(
            name=name,
            slots=self.slots,
            seed=self.seed,
            load_seconds=self.load_seconds,
            keep_alive_seconds=float("inf"),
            answer_tokens=self.answer_tokens,
            rates=ServiceRates(
                prefill_tokens_per_second=self.prefill_rate, decode_tokens_per_second=self.decode_rate
            ),
        )


class Instance:
    """One simulated instance; in a process of its own where it is to be killed or stopped."""

    def __init__(self, name: str, served: Served, session: aiohttp.ClientSession, *, process: bool) -> None:
        self.name = name
        self.passthrough = Passthrough(name, 0)
        self._served = served
        self._session = session
        self._process: subprocess.Popen[bytes] | None = None
        self._server = None if process else SimulatedOllama(served.config(name))

    @property
    def url(self) -> str:
        """Where it listens itself, past its passthrough."""
        return f"http://127.0.0.1:{self.passthrough.target_port}"

    async def start(self) -> None:
        """Serve, and take connections; after a kill again, on the same ports."""
        if self._server is not None:
            await self._server.start()
            self.passthrough.target_port = self._server.port
        else:
            self._process = self._spawn()
            assert self._process.stdout is not None
            line = await asyncio.to_thread(self._process.stdout.readline)
            self.passthrough.target_port = int(json.loads(line)["url"].rpartition(":")[2])
        await self.passthrough.open()

    async def kill(self) -> None:
        """SIGKILL: connections are reset, and none is taken."""
        assert self._process is not None
        self.passthrough.cut()
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        _close_pipe(self._process)

    def pause(self) -> None:
        """SIGSTOP: everything stays open, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def fault(self, kind: str, **fields: Any) -> None:
        """Set a fault of the simulator."""
        await self.ask("POST", "/simulator/faults", {"kind": kind, **fields})

    async def hang(self) -> None:
        """Answer no client's request; probes are answered."""
        for path in INFERENCE_PATHS:
            await self.fault("hang", path=path)

    async def clear(self) -> None:
        """Forget the faults of the simulator."""
        await self.ask("DELETE", "/simulator/faults")

    async def state(self) -> dict[str, Any]:
        """What the simulator tells of itself."""
        state: dict[str, Any] = json.loads(await self.ask("GET", "/simulator/state"))
        return state

    async def warm_up(self) -> None:
        """Load the models that clients ask for."""
        await self.ask("POST", "/api/generate", {"model": CHAT})
        await self.ask("POST", "/api/embed", {"model": EMBEDDER, "input": "hello"})

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """One question past the balancer."""
        async with self._session.request(method, self.url + path, json=body) as response:
            content = await response.read()
            assert response.status < 400, f"{method} {path}: {response.status} {content[:200]!r}"
            return content

    async def end(self) -> None:
        """End it and everything that passes."""
        self.passthrough.close()
        if self._server is not None:
            await self._server.stop()
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            _close_pipe(self._process)

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "balancer.simulator", "--name", self.name]
        port = f"--port={self.passthrough.target_port}"
        return subprocess.Popen(
            [*command, port, *self._served.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            cwd=ROOT,
        )


class BalancerProcess:
    """A balancer in a process of its own, by the command `module`; its log is a file with a JSON object a
    line."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        session: aiohttp.ClientSession,
        *,
        module: str = "balancer",
    ) -> None:
        place = Path(tempfile.mkdtemp(dir=folder))
        self.config = place / "balancer.yaml"
        self.write_config(json.dumps(settings))
        self.log, self._out = place / "log", place / "out"
        self.session = session
        command = [sys.executable, "-m", module, "serve", "--config", str(self.config)]
        with self.log.open("wb") as log, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=environment(), cwd=ROOT
            )
        self.url = self.admin = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def peak_bytes(self) -> int:
        """The most memory that it ever held."""
        return self._memory("VmHWM")

    @property
    def held_bytes(self) -> int:
        return self._memory("VmRSS")

    async def opened(self) -> None:
        """Return once it listens."""
        await until(lambda: "listens on" in self._out.read_text() or self.process.poll() is not None)
        said = self._out.read_text()
        assert "listens on" in said, f"it ended with {self.process.returncode}: {self.log.read_text()}"
        words = said.partition("\n")[0].replace(",", " ").split()
        self.url, self.admin = words[words.index("on") + 1], words[-1]

    def write_config(self, text: str) -> None:
        """Replace the configuration file in one step; JSON is YAML."""
        fresh = self.config.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.config)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What it logged, of these names or all of it. A line that is not complete yet is left out."""
        lines = self.log.read_bytes().rpartition(b"\n")[0].splitlines()
        events = [json.loads(line) for line in lines if line.startswith(b"{")]
        return [each for each in events if not names or each["event"] in names]

    async def get(self, path: str, *, admin: bool = False) -> tuple[int, bytes]:
        """A status and a body."""
        async with self.session.get((self.admin if admin else self.url) + path) as response:
            return response.status, await response.read()

    async def instances(self) -> list[dict[str, Any]]:
        """What it knows of the instances."""
        told: list[dict[str, Any]] = json.loads((await self.get("/admin/v1/instances", admin=True))[1])[
            "instances"
        ]
        return told

    async def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        lines = (await self.get("/metrics", admin=True))[1].decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    async def retries_refused(self) -> int:
        """How many further tries its budget did not allow."""
        return int(await self.metric("balancer_retries_refused_total"))

    async def until_ready_is(self, status: int) -> None:
        """Return once /readyz answers so."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (await self.get("/readyz"))[0] != status:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)

    async def left_over(self) -> list[str]:
        """What is still under way in it, in words."""
        left = [
            f"{each['id']} counts {each['running']} running"
            for each in await self.instances()
            if each["running"]
        ]
        queue = json.loads((await self.get("/admin/v1/queue", admin=True))[1])
        live = json.loads((await self.get("/admin/v1/requests", admin=True))[1])["live"]
        left += [f"{queue['waiting']} wait in the queue"] if queue["waiting"] else []
        return left + ([f"{len(live)} requests are live"] if live else [])

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def exit_code(self, seconds: float = _END_SECONDS) -> int | None:
        """Its exit code; None where it does not end in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(self.process.wait, seconds)
        return None

    async def end(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.kill()
        await asyncio.to_thread(self.process.wait)

    def _memory(self, name: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Instances and a balancer in front of them."""

    instances: tuple[Instance, ...]
    balancer: BalancerProcess
    settings: Mapping[str, Any]

    @property
    def first(self) -> Instance:
        """The one that rows do something to."""
        return self.instances[0]


@contextlib.asynccontextmanager
async def running(
    folder: Path, served: Served, settings: Mapping[str, Any], *, processes: bool
) -> AsyncIterator[Fleet]:
    """A fleet with warm models, once the balancer has seen all of it."""
    async with contextlib.AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=_PATIENCE_SECONDS)
        connector = aiohttp.TCPConnector(force_close=True)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)
        )
        instances = tuple(Instance(name, served, session, process=processes) for name in NAMES)
        for each in instances:
            stack.push_async_callback(each.end)
        await asyncio.gather(*(each.start() for each in instances))
        await asyncio.gather(*(each.warm_up() for each in instances))
        attached = [
            {"name": each.name, "url": each.passthrough.url, "slots": served.slots} for each in instances
        ]
        whole = merged(SETTINGS, settings, {"instances": attached})
        balancer = BalancerProcess(folder, whole, session)
        stack.push_async_callback(balancer.end)
        await balancer.opened()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while {each["state"] for each in await balancer.instances()} != {"up"}:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)
        yield Fleet(instances, balancer, whole)


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """One tree of settings; later ones win."""
    whole: dict[str, Any] = {}
    for tree in trees:
        for name, value in tree.items():
            inner = whole.get(name)
            whole[name] = (
                merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
            )
    return whole


async def until(holds: Callable[[], object], seconds: float = _PATIENCE_SECONDS) -> bool:
    """Wait for a state, looking often; whether it came."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_LOOK_SECONDS)
    return True


def environment() -> dict[str, str]:
    """This process's environment without what would configure a child by accident."""
    prefixes = ("BALANCER_", "OLLAMA_", "GPU_", "MODEL_POOL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**kept, "PYTHONPATH": str(ROOT)}


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    if process.stdout is not None:
        process.stdout.close()


SETTINGS: Mapping[str, Any] = {
    "listen": "127.0.0.1:0",
    "admin_listen": "127.0.0.1:0",
    "health": {"interval_seconds": 0.5, "timeout_seconds": 2.0},
    "log": {"format": "json"},
}
