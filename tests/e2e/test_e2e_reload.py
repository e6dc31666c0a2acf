"""Reloads and drains of a balancer process, as an operator has them: signals, files, commands."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import CHAT, BalancerProcess, Child, balancer, balancer_process, child, command, wait_for


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BalancerProcess]:
    """`balancer demo` with two instances and a file."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "balancer.yaml").write_text("batching: {max_size: 4}\n")
    arguments = ("--speed", "500", "--instances", "2", "--config", str(folder / "balancer.yaml"))
    with balancer_process(folder, "demo", *arguments) as started:
        yield started


def logged(told: BalancerProcess, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in told.child.err.read_text().splitlines()]
    return [each for each in lines if each["event"] == event]


def hang_up(told: BalancerProcess) -> None:
    told.child.process.send_signal(signal.SIGHUP)


def test_hangup_reloads_the_demo_and_keeps_its_instances(demo: BalancerProcess) -> None:
    before = len(logged(demo, "config_reloaded"))
    hang_up(demo)
    wait_for(lambda: len(logged(demo, "config_reloaded")) == before + 1)

    assert logged(demo, "config_reloaded")[-1]["changed"] is False
    assert [each["id"] for each in demo.instances()] == ["simulated-1", "simulated-2"]
    assert demo.all_usable()


def test_changed_file_of_the_demo_is_taken_over_by_itself(demo: BalancerProcess) -> None:
    path = demo.child.out.parent / "balancer.yaml"
    path.write_text("batching: {max_size: 5}\n")
    wait_for(lambda: any(each["changed"] for each in logged(demo, "config_reloaded")))
    config = logged(demo, "config_reloaded")[-1]["config"]

    assert httpx.get(f"{demo.admin}/health", trust_env=False).json()["config"] == config
    assert (
        json.loads(balancer("status", "--json", "--admin", demo.admin).stdout)["config"]["config"] == config
    )


def test_drained_instance_of_the_demo_serves_nobody(demo: BalancerProcess) -> None:
    drained = balancer("drain", "simulated-1", "--wait", "10", "--admin", demo.admin)
    with httpx.Client(base_url=demo.url, trust_env=False, timeout=20) as client:
        body = {"model": CHAT, "prompt": "Hello", "stream": False}
        served = {client.post("/api/generate", json=body).headers["X-Balancer-Instance"] for _ in range(4)}
    undrained = balancer("undrain", "simulated-1", "--admin", demo.admin)

    assert (drained.returncode, drained.stdout.count("\n"), drained.stderr) == (0, 1, "")
    assert served == {"simulated-2"}
    assert (undrained.returncode, undrained.stdout.count("\n")) == (0, 1)


def test_hangup_reloads_a_balancer_without_any_file(tmp_path: Path, demo: BalancerProcess) -> None:
    with balancer_process(tmp_path, "serve", demo.url) as started:
        hang_up(started)
        wait_for(lambda: logged(started, "config_reloaded"))

        assert [each["changed"] for each in logged(started, "config_reloaded")] == [False]
        assert started.all_usable()
        assert started.child.end() == 0


def test_file_that_breaks_is_refused_and_the_balancer_serves_on(
    tmp_path: Path, demo: BalancerProcess
) -> None:
    path = tmp_path / "balancer.yaml"
    path.write_text(f"instances: [{demo.url}]\n")
    with balancer_process(tmp_path, "serve", "--config", str(path)) as started:
        path.write_text("instances: []\n")
        emptied = balancer("reload", "--admin", started.admin)
        path.write_text("instances: [\n")
        broken = balancer("reload", "--admin", started.admin)

        assert (emptied.returncode, emptied.stdout) == (2, "")
        assert "instances: none is left, at least one instance" in emptied.stderr
        assert (broken.returncode, broken.stderr.count("\n")) == (2, 1)
        assert str(path) in broken.stderr
        assert started.all_usable()
        metrics = httpx.get(f"{started.admin}/metrics", trust_env=False).text
        assert "\nbalancer_config_reload_success 0.0\n" in metrics


@pytest.fixture
def looking(tmp_path: Path) -> Iterator[Child]:
    """A balancer that looks for an instance of its configuration, which accepts and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"gpu_instances": [{"gpu_id": 1023, "port": silent.getsockname()[1]}]}))
        with child("balancer", command("serve", "--config", str(config)), tmp_path, PATH="") as started:
            silent.settimeout(20)
            with silent.accept()[0]:
                yield started


def test_hangup_while_the_balancer_looks_for_an_instance_does_not_end_it(looking: Child) -> None:
    looking.process.send_signal(signal.SIGHUP)

    assert looking.process.wait(20) == 2
    assert "there is no GPU 1023" in looking.err.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_balancer_that_is_stopped_while_it_looks_for_an_instance_ends_in_order(
    number: signal.Signals, looking: Child
) -> None:
    assert looking.end(number) == 0
    assert looking.err.read_text() == ""
