"""`balancer serve` on a machine with GPUs and nothing else: it starts its instances, heals and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from harness import CHAT, BalancerProcess, balancer, balancer_process, wait_for
from real_ollama import BINARY, CAST, fill, needs_ollama

from tests.fakes.gpu_machine import GIB, GpuMachine, gpu

ROOT = Path(__file__).parents[2]
SMALL = {"name": "NVIDIA GeForce RTX 3060 Ti", "total": 8188 << 20, "used": 0}
ALONE = {"attach_existing": False}
"""An Ollama that happens to run on the machine plays no part."""
_OLLAMA = f"""#!/bin/sh
export PYTHONPATH='{ROOT}'
exec '{sys.executable}' -m balancer.simulator --port "${{OLLAMA_HOST##*:}}" --speed 500 --slots 1 \\
  --keep-alive -1 --model {CHAT} --memory 24GiB
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    """Two small GPUs, and an `ollama` on the PATH that is simulated."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ollama").write_text(_OLLAMA)
    (programs / "ollama").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    found = GpuMachine(tmp_path / "machine.json", monkeypatch)
    found.has(gpu(0, **SMALL), gpu(1, **SMALL))
    return found


@contextlib.contextmanager
def serving(
    tmp_path: Path, *, own: dict[str, Any] | None = None, **settings: Any
) -> Iterator[BalancerProcess]:
    """A balancer that provisions, on ports that no other test has; `own` is an instance by name."""
    first = 15_000 + (os.getpid() % 900) * 10
    provisioning = {"first_port": first, "adopt_grace_seconds": 3, **ALONE, **settings}
    config = tmp_path / "config.json"  # YAML too
    named = [{"gpu_id": 1, "name": "own", **own}] if own else []
    told = {"provisioning": provisioning, "health": {"interval_seconds": 0.5}, "gpu_instances": named}
    config.write_text(json.dumps(told))
    with balancer_process(tmp_path, "serve", "--config", str(config)) as started:
        wait_for(lambda: ready(started) == len(started.instances()), about="instances that are up")
        yield started
        started.child.end()


def ready(started: BalancerProcess) -> int:
    return sum(1 for each in started.instances() if each["state"] == "up")


def rows(started: BalancerProcess) -> dict[str, dict[str, Any]]:
    told = httpx.get(f"{started.admin}/admin/v1/instances", trust_env=False).json()
    return {each["id"]: each for each in told["instances"]}


def pids(started: BalancerProcess) -> dict[str, int]:
    return {name: each["managed"]["pid"] for name, each in rows(started).items()}


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def ask(started: BalancerProcess, model: str = CHAT) -> str:
    with ollama.Client(host=started.url, trust_env=False) as client:
        return str(client.generate(model, "hello").response)


def test_instances_of_two_gpus_and_one_over_both_are_started_and_serve(
    machine: GpuMachine, tmp_path: Path
) -> None:
    with serving(tmp_path) as started:
        told = rows(started)
        assert set(told) == {"gpu0", "gpu1", "gpus"}
        assert told["gpu0"]["devices"] == [gpu(0)["uuid"]]
        assert told["gpus"]["devices"] == [gpu(0)["uuid"], gpu(1)["uuid"]]
        assert ask(started)
        left = list(pids(started).values())
        assert started.child.end() == 0
    wait_for(lambda: not any(map(alive, left)), about="every instance is gone")


def test_an_instance_that_is_killed_is_started_anew(machine: GpuMachine, tmp_path: Path) -> None:
    with serving(tmp_path) as started:
        before = pids(started)
        os.kill(before["gpu0"], signal.SIGKILL)
        wait_for(lambda: pids(started)["gpu0"] not in {None, before["gpu0"]}, about="another process")
        wait_for(lambda: ready(started) == 3, about="all up again")
        assert pids(started)["gpu1"] == before["gpu1"]
        assert ask(started)
        page = httpx.get(f"{started.admin}/metrics", trust_env=False).text
        assert 'balancer_instance_restarts_total{instance="gpu0",reason="exited"} 1.0' in page


def test_a_balancer_that_is_killed_leaves_them_to_the_next(machine: GpuMachine, tmp_path: Path) -> None:
    with serving(tmp_path, adopt_grace_seconds=30) as first:
        before = pids(first)
        first.child.end(signal.SIGKILL)
        # What they hold now is taken, and would make another plan.
        machine.has(gpu(0, **{**SMALL, "used": 6 * GIB}), gpu(1, **{**SMALL, "used": 7 * GIB}))
        with serving(tmp_path, adopt_grace_seconds=30) as second:
            assert pids(second) == before
            assert ask(second)


def test_instances_by_name_are_adopted_too(machine: GpuMachine, tmp_path: Path) -> None:
    """They answer where they are configured, and are no less the balancer's for that."""
    own = {"port": 24_900 + os.getpid() % 50}
    with serving(tmp_path, own=own, adopt_grace_seconds=30) as first:
        before = pids(first)
        first.child.end(signal.SIGKILL)
        with serving(tmp_path, own=own, adopt_grace_seconds=30) as second:
            assert pids(second) == before
            assert rows(second)["own"]["managed"]["adopted"]


def test_a_second_balancer_takes_no_plan_from_the_first(machine: GpuMachine, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"provisioning": {"slots": 3, **ALONE}}))
    with serving(tmp_path, adopt_grace_seconds=30) as first:
        before = pids(first)
        anywhere = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
        done = balancer("serve", "--config", str(other), *anywhere)
        assert done.returncode == 1
        assert "in use by another balancer" in done.stderr
        first.child.end(signal.SIGKILL)
        with serving(tmp_path, adopt_grace_seconds=30) as second:
            assert pids(second) == before


def test_a_balancer_that_is_killed_for_good_leaves_nothing(machine: GpuMachine, tmp_path: Path) -> None:
    with serving(tmp_path, adopt_grace_seconds=0.5) as started:
        left = list(pids(started).values())
        started.child.end(signal.SIGKILL)
        wait_for(lambda: not any(map(alive, left)), about="every instance is gone")


def test_what_was_planned_by_is_fixed_while_it_runs(machine: GpuMachine, tmp_path: Path) -> None:
    with serving(tmp_path) as started:
        config = tmp_path / "config.json"
        told = json.loads(config.read_text())
        config.write_text(json.dumps(told | {"provisioning": told["provisioning"] | {"slots": 3}}))

        done = balancer("reload", "--admin", started.admin)

        assert done.returncode == 2, done.stderr
        assert "provisioning" in done.stderr
        assert "while it runs" in done.stderr


def test_without_gpu_the_cpu_gets_one(machine: GpuMachine, tmp_path: Path) -> None:
    machine.has()
    with serving(tmp_path) as started:
        assert set(rows(started)) == {"cpu"}
        assert ask(started)


def test_without_ollama_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GpuMachine(tmp_path / "machine.json", monkeypatch).has(gpu(0, **SMALL))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))

    addresses = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    done = balancer("serve", *addresses, BALANCER_PROVISIONING__ATTACH_EXISTING="false")

    assert done.returncode == 3, done.stderr
    assert "ollama.com/download" in done.stderr
    assert "balancer demo" in done.stderr


def test_gpu_instances_name_what_is_started_and_a_gpu_that_is_missing(
    machine: GpuMachine, tmp_path: Path
) -> None:
    config = tmp_path / "gpus.yaml"
    port = 24_000 + os.getpid() % 900
    own = f"gpu_id: 1, name: own, port: {port}, memory_limit: 4GiB, models: [{CHAT}, none]"
    config.write_text(f"gpu_instances: [{{{own}}}]\n")
    with balancer_process(tmp_path, "serve", "--config", str(config)) as started:
        wait_for(lambda: ready(started) == len(started.instances()), about="instances that are up")
        told = rows(started)
        assert told["own"]["url"] == f"http://127.0.0.1:{port}"
        assert told["own"]["managed"]["pid"]
        wait_for(lambda: rows(started)["own"]["runners"], about="the model that is meant for it, loaded")
        warmed = [(each["model"], each["error"]) for each in started.log() if each["event"] == "warmed_up"]
        assert warmed[0] == (CHAT, None)
        assert "none" in warmed[1][1]
        assert started.child.end() == 0

    config.write_text(f"gpu_instances: [{{gpu_id: 7, port: {port}}}]\n")
    done = balancer("serve", "--config", str(config), "--listen", "127.0.0.1:0")
    assert done.returncode == 2, done.stderr
    assert "there is no GPU 7" in done.stderr
    assert "RTX 3060 Ti" in done.stderr
    assert balancer("check", str(config)).returncode == 0


@pytest.mark.ollama
@needs_ollama[1]
@needs_ollama[2]
def test_three_real_ollamas_share_a_gpu_that_is_made_up(
    machine: GpuMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They find no GPU and run on the CPU, which is told: a model that is silently there is degraded."""
    machine.has(gpu(0, used=0))
    monkeypatch.setenv("PATH", f"{Path(BINARY).parent}{os.pathsep}{os.environ['PATH']}")
    with serving(tmp_path) as started:
        assert set(rows(started)) == {"gpu0-1", "gpu0-2", "gpu0-3"}
        assert len({each["store"] for each in rows(started).values()}) == 1
        before = pids(started)
        started.child.end(signal.SIGKILL)
    with serving(tmp_path) as started:
        assert pids(started) == before, "the next balancer adopts them, and attaches none"
        fill(started.url, CAST.chat)
        assert ask(started, CAST.chat)

        wait_for(lambda: min(each["health"] for each in rows(started).values()) < 0.1, about="one degraded")
        (victim,) = (name for name, each in rows(started).items() if each["runners"])
        server = pids(started)[victim]
        (runner,) = children(server)
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: not alive(runner), about="its llama-server is gone too")
        wait_for(lambda: pids(started)[victim] not in {None, server}, about="another process")
        wait_for(lambda: ready(started) == 3, about="all up again")
        assert ask(started, CAST.chat)

        left = [*pids(started).values(), *(each for pid in pids(started).values() for each in children(pid))]
        assert started.child.end() == 0
    wait_for(lambda: not any(map(alive, left)), about="servers and runners are gone")


def children(parent: int) -> list[int]:
    """The runners of a server; those that it asks about devices end by themselves."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    found = [int(each) for task in tasks for each in task.read_text().split()]
    return [each for each in found if "--model" in Path(f"/proc/{each}/cmdline").read_text().split("\0")]
