"""A whole balancer that watches GPUs through a real child, and instances whose models fell to the CPU."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from balancer.control import device_watch
from balancer.provisioning import devices
from balancer.provisioning.devices import DeviceWatcher
from tests.fakes.gpu_machine import GIB, GpuMachine, device, gpu
from tests.fakes.raw_client import connected, request
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import ScriptedInstance

KEY = device().key
PATIENCE_SECONDS, SOON = 20.0, 0.3
"""Seconds that a driver has that answers, and one that is to be given up."""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    machine = GpuMachine(tmp_path / "machine.json", monkeypatch)
    machine.has(gpu(), gpu(1, name="Tesla T4", milliwatts=None, ecc=None))
    patient(monkeypatch, PATIENCE_SECONDS)
    return machine


def patient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on watches give the driver so long."""
    watcher = partial(DeviceWatcher, interval_seconds=0.02, within_seconds=seconds)
    monkeypatch.setattr(device_watch, "DeviceWatcher", watcher)


async def asked(running: Running, path: str) -> Any:
    """What the admin listener answers."""
    host, port = running.addresses.admin.removeprefix("http://").split(":")
    async with connected(host, int(port)) as client:
        await client.send(request(path, method="GET"))
        answer = await client.answer(method="GET")
    assert answer.status == 200
    return answer.json if path != "/metrics" else answer.body.decode()


async def sample(running: Running, name: str, **labels: str) -> float | None:
    """One value of the metrics."""
    told = ",".join(f'{key}="{value}"' for key, value in labels.items())
    lines = (await asked(running, "/metrics")).splitlines()
    values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{{told}}} ")]
    return values[0] if values else None


def states(running: Running) -> list[str]:
    now = running.balancer.clock.monotonic()
    return [each.state(now).value for each in running.balancer.devices.devices()]


async def test_readings_become_metrics_and_rows(machine: GpuMachine) -> None:
    async with ScriptedInstance().running() as one, balancing(one, devices=[device(), device(1)]) as running:
        await until(lambda: states(running) == ["ok", "ok"])

        first, second = (await asked(running, "/admin/v1/devices"))["devices"]
        assert (first["key"], first["state"], first["health"]) == (KEY, "ok", 1.0)
        assert (first["memory_used_bytes"], first["compute_capability"]) == (4 * GIB, "8.9")
        assert 0 <= first["reading_age_seconds"] < 20
        assert (second["power_watts"], second["temperature_celsius"]) == (None, 50)
        for name, value in {
            "memory_used_bytes": 4 * GIB,
            "memory_total_bytes": 24 * GIB,
            "utilization_ratio": 0.4,
            "temperature_celsius": 50,
            "power_watts": 120.5,
            "health": 1,
        }.items():
            assert await sample(running, f"balancer_gpu_{name}", device=KEY) == value
        assert await sample(running, "balancer_gpu_power_watts", device=device(1).key) is None
        age = await sample(running, "balancer_gpu_reading_age_seconds", device=KEY)
        assert age is not None
        assert 0 <= age < 20


async def test_a_lost_gpu_is_told_and_its_instance_loses_its_health(machine: GpuMachine) -> None:
    settings = {"devices": [device(), device(1)], "each": {"device": KEY}}
    async with ScriptedInstance().running() as one, balancing(one, **settings) as running:
        await until(lambda: states(running) == ["ok", "ok"])
        assert await sample(running, "balancer_instance_health", instance="a") == 1

        machine.has(gpu(calls={"*": "GPU_IS_LOST"}, xids=[79]), gpu(1))
        await until(lambda: states(running)[0] == "lost")

        assert states(running)[1] in {"ok", "stale"}
        assert await sample(running, "balancer_instance_health", instance="a") == 0
        assert await sample(running, "balancer_gpu_faults_total", device=KEY, kind="lost") == 1
        assert await sample(running, "balancer_gpu_memory_used_bytes", device=KEY) is None
        assert [each["device"] for each in running.logged("device_lost")] == [KEY]


async def test_a_driver_that_hangs_leaves_the_balancer_serving(
    machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_LONGEST_BACK_OFF_SECONDS", 0.01)
    patient(monkeypatch, SOON)
    async with ScriptedInstance().running() as one, balancing(one, devices=[device()]) as running:
        await until(lambda: states(running) == ["ok"])
        machine.has(gpu(), calls={"*": "hang"})
        await until(lambda: states(running) == ["stale"])

        assert (await running.ask("/api/version", method="GET")).status == 200
        assert await sample(running, "balancer_gpu_memory_used_bytes", device=KEY) == 4 * GIB
        assert running.logged("devices_unread")

        machine.has(gpu())
        await until(lambda: states(running) == ["ok"])


async def test_no_child_is_started_where_there_is_no_gpu_to_watch(machine: GpuMachine) -> None:
    machine.has(calls={"*": "crash"})
    async with ScriptedInstance().running() as one, balancing(one) as running:
        assert (await asked(running, "/admin/v1/devices"))["devices"] == []
        assert running.logged("devices_unread") == []


@pytest.mark.parametrize(
    ("where", "health", "percent"),
    [({}, 0.125, 50.0), ({"device": "0"}, 0.125, 50.0), ({"device": "cpu"}, 1, None)],
)
async def test_a_model_half_on_the_cpu_is_told_of_any_instance_not_meant_to_be_there(
    where: dict[str, str], health: float, percent: float | None
) -> None:
    row = {"name": "m:latest", "digest": "d", "size": 10 * GIB, "size_vram": 5 * GIB}
    async with ScriptedInstance().running() as one:
        one.lies["/api/ps"] = json.dumps({"models": [row]}).encode()
        async with balancing(one, each=where) as running:
            (told,) = (await asked(running, "/admin/v1/instances"))["instances"]

            assert told["health"] == health
            assert [each["cpu_percent"] for each in told["runners"]] == [percent]
            assert await sample(running, "balancer_instance_health", instance="a") == health
            events = running.logged("runner_fell_to_cpu")
            assert [each["model"] for each in events] == (["m:latest"] if percent else [])


async def test_gpus_that_could_not_be_asked_for_are_told_and_looked_for(
    machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_LONGEST_BACK_OFF_SECONDS", 0.01)
    machine.has(gpu(), calls={"*": "crash"})
    async with ScriptedInstance().running() as one, balancing(one, undetected="no answer") as running:
        assert [each["error"] for each in running.logged("devices_undetected")] == ["no answer"]
        assert "\nbalancer_gpu_detection_success 0.0\n" in await asked(running, "/metrics")
        assert await asked(running, "/admin/v1/devices") == {"devices": [], "undetected": "no answer"}
        health = await asked(running, "/health")
        assert (health["status"], health["devices_undetected"]) == ("degraded", "no answer")

        machine.has(gpu(), gpu(1))
        await until(lambda: running.logged("devices_turned_up"))

        assert [each["devices"] for each in running.logged("devices_turned_up")] == [[KEY, device(1).key]]
        told = (await asked(running, "/health"))["devices_undetected"]
        assert told == "no answer; by now 2 can be read: restart the balancer to use them"


async def test_a_machine_whose_gpus_are_known_is_not_degraded(machine: GpuMachine) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        assert "\nbalancer_gpu_detection_success 1.0\n" in await asked(running, "/metrics")
        assert (await asked(running, "/health"))["status"] == "ok"
        assert running.logged("devices_undetected") == []
