"""A supervisor over real processes, with a fleet and a prober, and nothing else of a balancer.

`python -m tests.fakes.supervised STATE_DIR GRACE PORT[:CONDUCT]…` is one in a process of its own, which may
be killed.
"""

import asyncio
import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import uvloop

from balancer.clock import SystemClock
from balancer.control.back_off import BackOffPolicy
from balancer.control.lifecycle import SupervisorPolicy
from balancer.control.prober import Prober, ProbeTimes
from balancer.control.supervisor import Supervisor
from balancer.core.ticket import InstanceId
from balancer.fleet.breaker import BreakerPolicy, Breakers
from balancer.fleet.fleet import Fleet
from balancer.fleet.health import Health, HealthPolicy
from balancer.fleet.instance import Instance
from balancer.fleet.instance_spec import InstanceSpec
from balancer.provisioning import process_table
from balancer.provisioning.launch import Launch
from balancer.provisioning.ports import is_free
from balancer.telemetry.logs import make_logger
from balancer.telemetry.metrics import Metrics
from balancer.upstream.control_client import ControlClient

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0
QUICK = BackOffPolicy(first_seconds=0.05, longest_seconds=0.2, jitter_seconds=0.01)
_LOOK_SECONDS = 0.02
_NUMBERS = count()


def a_port() -> int:
    """A port that is free, and another for each call and each process."""
    first = 20_000 + (os.getpid() % 600) * 20
    return next(filter(is_free, count(first + next(_NUMBERS) % 20)))


def simulated(name: str, port: int, *arguments: str, **facts: Any) -> Launch:
    """A simulated Ollama."""
    command = (sys.executable, "-m", "balancer.simulator", "--port", str(port), "--name", name, *arguments)
    return _launch(name, port, command, facts)


def misbehaving(name: str, port: int, conduct: str, *arguments: str, **facts: Any) -> Launch:
    """A server of tests/fakes/misbehaving.py."""
    command = (sys.executable, "-m", "tests.fakes.misbehaving", str(port), conduct, *arguments)
    return _launch(name, port, command, facts)


def _launch(name: str, port: int, command: tuple[str, ...], facts: dict[str, Any]) -> Launch:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **facts.pop("environment", {})}
    values = {"ready_path": "/api/version", "ready_seconds": PATIENCE_SECONDS, **facts}
    return Launch(name=name, arguments=command, environment=environment, port=port, **values)


@dataclass
class Rig:
    """What a supervisor works on. `log` is what it logged."""

    supervisor: Supervisor
    fleet: Fleet
    metrics: Metrics
    log: TextIO

    def told(self, name: str) -> dict[str, Any]:
        """What is shown of one."""
        told = self.supervisor.told(InstanceId(name))
        assert told is not None
        return dict(told)

    def pid(self, name: str) -> int:
        """The process of one that runs."""
        pid = self.told(name)["pid"]
        assert isinstance(pid, int)
        return pid

    def instance(self, name: str) -> Instance:
        """Its record in the fleet."""
        return self.fleet.get(InstanceId(name))

    def logged(self, event: str) -> list[dict[str, Any]]:
        """What was logged under a name."""
        assert isinstance(self.log, io.StringIO)
        events = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [each for each in events if each["event"] == event]

    def restarts(self, name: str, reason: str) -> float:
        """What the metric says."""
        return self.metrics.instance_restarts.labels(name, reason).value

    async def reach(self, name: str, state: str) -> None:
        """Wait for a state."""
        await until(lambda: self.told(name)["state"] == state, f"{name} {state}")

    async def usable(self, *names: str) -> None:
        """Wait until they are up and answer their probes."""
        for name in names:
            await self.reach(name, "up")
            await until(lambda each=name: self.instance(each).usable, f"{name} usable")  # type: ignore[misc]


@contextlib.asynccontextmanager
async def supervising(
    state_dir: Path,
    *launches: Launch,
    policy: dict[str, Any] | None = None,
    log: TextIO | None = None,
    warm_up: Callable[[Launch], Awaitable[None]] | None = None,
    **facts: Any,
) -> AsyncIterator[Rig]:
    """A supervisor that has begun to start these, until it ends them."""
    clock, metrics, client = SystemClock(), Metrics(), ControlClient()
    log = log or io.StringIO()
    logger = make_logger(level="debug", output_format="json", stream=log)
    fleet = Fleet([_instance(each) for each in launches], clock=clock)
    times = ProbeTimes(interval_seconds=0.2, timeout_seconds=1.0)
    prober = Prober(
        fleet=fleet, client=client, times=times, clock=clock, log=logger, find_local=lambda _: None
    )
    values = {"back_off": QUICK, "probe_seconds": 0.5, "term_seconds": 5.0, **(policy or {})}
    more = {} if warm_up is None else {"warm_up": warm_up}
    supervisor = Supervisor(
        launches,
        state_dir=state_dir,
        policy=SupervisorPolicy(**values),
        fleet=fleet,
        client=client,
        metrics=metrics,
        clock=clock,
        log=logger,
        on_up=prober.look,
        **more,
        **facts,
    )
    loops = []
    try:
        await supervisor.open()
        loops = [asyncio.create_task(each.run()) for each in (prober, supervisor)]
        yield Rig(supervisor, fleet, metrics, log)
        assert not any(each.done() for each in loops)
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await supervisor.close()
        await client.close()


def _instance(launch: Launch) -> Instance:
    spec = InstanceSpec(id=InstanceId(launch.name), url=f"http://127.0.0.1:{launch.port}")
    return Instance(
        spec, Health(HealthPolicy(unhealthy_threshold=2, healthy_threshold=1)), Breakers(BreakerPolicy())
    )


async def until(holds: Callable[[], object], what: str = "a state that was to come") -> None:
    """Wait for a state, looking often; fails loudly when it never comes."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not holds():  # noqa: ASYNC110 - most states have no event
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise AssertionError(f"did not come: {what}") from None


def alive(pid: int) -> bool:
    """Whether a process runs."""
    found = process_table.read_process(pid)
    return found is not None and found.alive


def modes(folder: Path) -> set[str]:
    """What the files of a folder, and the folder itself, allow to whom."""
    return {f"{each.name} {each.stat().st_mode & 0o777:o}" for each in (folder, *folder.iterdir())}


def peak_memory_bytes(pid: int) -> int:
    """The most that a process has held at once."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def lives(text: str) -> list[tuple[str, str]]:
    """The starts and ends in a log, with the instance."""
    wanted = {"instance_exited", "instance_started", "instance_ready"}
    events = [json.loads(line) for line in text.splitlines()]
    return [(each["event"], each["instance"]) for each in events if each["event"] in wanted]


def keeper_of(folder: Path) -> int:
    """The pid of a folder's keeper."""
    return int((folder / "keeper.lock").read_text())


def end_keeper(folder: Path) -> None:
    """Leave no keeper behind where a test has failed, nor what it holds."""
    with contextlib.suppress(OSError, ValueError):
        keeper = keeper_of(folder)
        if process_table.arguments(keeper)[-1:] == [str(folder)]:
            os.kill(keeper, signal.SIGCONT)
            os.kill(keeper, signal.SIGTERM)


def _asked(port: str, conduct: str = "") -> Launch:
    name = f"s{port}"
    return misbehaving(name, int(port), conduct) if conduct else simulated(name, int(port))


async def _main(folder: str, grace: str, ports: Sequence[str]) -> None:
    launches = [_asked(*each.split(":")) for each in ports]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    policy = {"adopt_grace_seconds": float(grace)}
    async with supervising(Path(folder), *launches, policy=policy, log=sys.stderr) as rig:
        await rig.usable(*(each.name for each in launches))
        told = {each.name: rig.pid(each.name) for each in launches}
        print(json.dumps(told), flush=True)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1], sys.argv[2], sys.argv[3:]))
