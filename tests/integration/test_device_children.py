"""Real child processes that ask a fake driver: what hangs, crashes or talks nonsense stays in them."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from balancer.core.detection import DetectionOutcome, DeviceReading
from balancer.provisioning import devices
from balancer.provisioning.devices import COMMAND, DeviceWatcher, detect
from tests.fakes.gpu_machine import GpuMachine, device, gpu
from tests.fakes.running_balancer import until

PATIENCE_SECONDS = 20.0
SOON = 0.3
"""Seconds after which a child that hangs is given up; one that works has PATIENCE_SECONDS."""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    return GpuMachine(tmp_path / "machine.json", monkeypatch)


def script(body: str) -> Sequence[str]:
    """A child of its own making."""
    return (sys.executable, "-c", body)


def children() -> set[int]:
    """The processes that this one has started and that are not gone."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if parent == str(os.getpid()) and state != "Z":
                found.add(int(stat.parent.name))
    return found


@dataclass
class Seen:
    """What a watcher told."""

    readings: list[Sequence[DeviceReading]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    began: set[int] = field(default_factory=set)

    @property
    def child(self) -> int:
        (only,) = children() - self.began
        return only

    def all_lost(self) -> bool:
        return bool(self.readings) and all(each.lost for each in self.readings[-1])


@contextlib.asynccontextmanager
async def watching(
    *, command: Sequence[str] = COMMAND, within: float = PATIENCE_SECONDS, first: float = PATIENCE_SECONDS
) -> AsyncIterator[Seen]:
    """A watcher at work; on the way out it ends, and leaves no process."""
    seen = Seen(began=children())
    watcher = DeviceWatcher(
        took=seen.readings.append,
        missed=seen.problems.append,
        interval_seconds=0.01,
        within_seconds=within,
        first_within_seconds=first,
        command=command,
    )
    task = asyncio.create_task(watcher.run())
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert children() == seen.began


@pytest.fixture(autouse=True)
def _short_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_LONGEST_BACK_OFF_SECONDS", 0.01)


# -- detection


async def test_a_real_child_detects_through_the_library(machine: GpuMachine) -> None:
    machine.has(gpu(), gpu(1))
    before = children()

    found = await detect(PATIENCE_SECONDS)

    assert (found.outcome, found.devices, found.driver) == (
        DetectionOutcome.OK,
        (device(), device(1)),
        "570.86",
    )
    assert children() == before


@pytest.mark.parametrize(
    ("told", "outcome", "indices"),
    [
        ("", DetectionOutcome.ALL_HIDDEN, []),
        ("1", DetectionOutcome.OK, [1]),
        ("GPU-00000001", DetectionOutcome.OK, [1]),
        ("MIG-1", DetectionOutcome.MIG, []),
    ],
)
async def test_a_child_heeds_the_environment(
    machine: GpuMachine,
    monkeypatch: pytest.MonkeyPatch,
    told: str,
    outcome: DetectionOutcome,
    indices: list[int],
) -> None:
    machine.has(gpu(), gpu(1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)

    found = await detect(PATIENCE_SECONDS)

    assert (found.outcome, [each.index for each in found.devices]) == (outcome, indices)


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has a driver")
async def test_a_machine_without_the_library_is_one_without_a_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the installed library."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    found = await detect(PATIENCE_SECONDS)

    assert (found.outcome, found.devices) == (DetectionOutcome.NO_DRIVER, ())


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetName"])
async def test_a_driver_that_hangs_is_given_up_in_time(machine: GpuMachine, call: str) -> None:
    machine.has(gpu(calls={call: "hang"}), calls={call: "hang"})
    before = children()

    found = await detect(SOON)

    assert (found.outcome, found.devices) == (DetectionOutcome.NO_ANSWER, ())
    assert "0.3 s" in found.reason
    assert children() == before


async def test_a_library_that_crashes_takes_its_child_only(machine: GpuMachine) -> None:
    machine.has(gpu(calls={"nvmlDeviceGetMemoryInfo": "crash"}))

    found = await detect(PATIENCE_SECONDS)

    assert (found.outcome, found.devices) == (DetectionOutcome.FAILED, ())
    assert "SIGSEGV" in found.reason


@pytest.mark.parametrize(
    "body",
    [
        "print('what?')",
        "print('{}')",
        "print('[1]')",
        'print(\'{"detection": {"outcome": "splendid"}}\')',
        "import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n')",
        "import sys; sys.stdout.write('x' * 3_000_000 + chr(10))",
        "import sys; sys.stdout.write('{')",
        "pass",
        "raise SystemExit(3)",
    ],
)
async def test_a_child_that_talks_nonsense_is_a_failure(body: str) -> None:
    before = children()

    found = await detect(PATIENCE_SECONDS, command=script(body))

    assert (found.outcome, found.devices) == (DetectionOutcome.FAILED, ())
    assert found.reason
    assert children() == before


async def test_a_child_that_cannot_be_started_is_a_failure(tmp_path: Path) -> None:
    found = await detect(PATIENCE_SECONDS, command=(str(tmp_path / "nothing"),))

    assert found.outcome is DetectionOutcome.FAILED
    assert "nothing" in found.reason


async def test_what_a_library_prints_is_no_answer(machine: GpuMachine, tmp_path: Path) -> None:
    """It may write to the process's standard output at any time."""
    machine.has(gpu())
    body = (
        "import os\n"
        "from balancer.provisioning import device_reader, nvml\n"
        "init = nvml.LIBRARY.nvmlInit\n"
        "nvml.LIBRARY.nvmlInit = lambda: (os.write(1, b'NVRM: hello\\n'), init())\n"
        "device_reader.main()"
    )

    found = await detect(PATIENCE_SECONDS, command=script(body))

    assert found.outcome is DetectionOutcome.OK


# -- the watcher


async def test_a_watcher_keeps_one_child_and_reads_again_and_again(machine: GpuMachine) -> None:
    machine.has(gpu())
    async with watching() as seen:
        await until(lambda: seen.readings)
        child = seen.child
        machine.has(gpu(temperature=77))
        await until(lambda: seen.readings[-1][0].temperature_celsius == 77)

        assert seen.child == child
        assert seen.problems == []


async def test_a_child_that_hangs_is_replaced_once_and_readings_go_on(machine: GpuMachine) -> None:
    machine.has(gpu())
    async with watching(within=SOON) as seen:
        await until(lambda: seen.readings)
        child = seen.child
        machine.has(gpu(calls={"nvmlDeviceGetPowerUsage": "hang"}))
        await until(lambda: seen.problems)
        machine.has(gpu())
        told = len(seen.readings)
        await until(lambda: len(seen.readings) > told)

        assert "did not answer within 0.3 s" in seen.problems[0]
        assert child not in children()


async def test_there_is_never_more_than_one_child(machine: GpuMachine) -> None:
    machine.has(gpu(), calls={"nvmlInit": "hang"})
    most = 0
    async with watching(first=0.2) as seen:
        while len(seen.problems) < 4:
            most = max(most, len(children() - seen.began))
            await asyncio.sleep(0.005)

        assert most == 1


async def test_a_child_that_cannot_be_ended_is_waited_for_and_no_other_started(
    machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that hangs in the kernel, which no signal reaches: here the signal is never sent."""
    monkeypatch.setattr(devices, "_END_SECONDS", 0.01)
    machine.has(gpu(), calls={"nvmlInit": "hang"})
    with monkeypatch.context() as unkillable:
        unkillable.setattr(asyncio.subprocess.Process, "kill", lambda _self: None)
        async with contextlib.AsyncExitStack() as stack:
            seen = await stack.enter_async_context(watching(first=SOON))
            await until(lambda: len(seen.problems) > 5)
            child = seen.child
            machine.has(gpu())

            assert all("cannot be ended" in each for each in seen.problems[1:])

            os.kill(child, signal.SIGKILL)
            await until(lambda: seen.readings)
            unkillable.undo()


async def test_a_child_that_crashes_is_replaced(machine: GpuMachine) -> None:
    machine.has(gpu())
    async with watching() as seen:
        await until(lambda: seen.readings)
        os.kill(seen.child, signal.SIGSEGV)
        await until(lambda: seen.problems)
        told = len(seen.readings)
        await until(lambda: len(seen.readings) > told)

        assert "SIGSEGV" in seen.problems[0]


def test_a_child_that_dies_between_two_readings_is_replaced_on_the_loop_of_serve(machine: GpuMachine) -> None:
    machine.has(gpu())

    async def watched() -> None:
        seen = Seen(began=children())
        watcher = DeviceWatcher(took=seen.readings.append, missed=seen.problems.append)
        await watcher.run_once()
        os.kill(child := seen.child, signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{child}").exists())  # the loop has heard of it
        await watcher.run_once()
        await watcher.run_once()

        assert len(seen.readings) == 2
        assert "SIGKILL" in seen.problems[0]
        task = asyncio.create_task(watcher.run())
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert children() == seen.began

    uvloop.run(watched())


@pytest.mark.parametrize("body", ["print('what?')", "print('x' * 3_000_000)", "pass"])
async def test_a_watcher_outlives_children_that_talk_nonsense(body: str) -> None:
    async with watching(command=script(body)) as seen:
        await until(lambda: len(seen.problems) > 2)

        assert seen.readings == []


async def test_a_driver_that_refuses_is_told_and_asked_again(machine: GpuMachine) -> None:
    machine.has(gpu(), calls={"nvmlInit": "LIB_RM_VERSION_MISMATCH"})
    async with watching() as seen:
        await until(lambda: seen.problems)
        machine.has(gpu())
        await until(lambda: seen.readings)

        assert "LIB_RM_VERSION_MISMATCH" in seen.problems[0]


async def test_a_slow_driver_is_waited_for(machine: GpuMachine) -> None:
    body = (
        "import time\n"
        "from balancer.provisioning import device_reader, nvml\n"
        "power = nvml.LIBRARY.nvmlDeviceGetPowerUsage\n"
        "nvml.LIBRARY.nvmlDeviceGetPowerUsage = lambda handle: (time.sleep(0.1), power(handle))[1]\n"
        "device_reader.main()"
    )
    machine.has(gpu())
    async with watching(command=script(body)) as seen:
        await until(lambda: len(seen.readings) > 2)

        assert seen.problems == []


async def test_a_lost_gpu_is_told_beside_the_others_and_looked_for_anew(
    machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_ANSWERS_WITH_A_LOST_GPU", 3)
    machine.has(gpu(), gpu(1))
    async with watching() as seen:
        await until(lambda: seen.readings)
        child = seen.child
        machine.has(gpu(), gpu(1, calls={"*": "GPU_IS_LOST"}))
        await until(lambda: seen.readings[-1][-1].lost)

        assert [each.lost for each in seen.readings[-1]] == [None, "NVML_ERROR_GPU_IS_LOST"]

        await until(lambda: len(seen.readings[-1]) == 1)  # a new child does not find it any more
        assert child not in children()

        machine.has(gpu(), gpu(1))
        await until(lambda: len(seen.readings[-1]) == 2)  # and another one finds it

        assert seen.readings[-1][-1].lost is None
        assert seen.problems == []


async def test_xids_reach_the_balancer(machine: GpuMachine) -> None:
    machine.has(gpu())
    async with watching() as seen:
        await until(lambda: seen.readings)
        machine.has(gpu(xids=[48, 79]))
        await until(lambda: any(each[0].xids for each in seen.readings))

        assert [each[0].xids for each in seen.readings if each[0].xids] == [(48, 79)]


# -- a parent that goes


@pytest.mark.parametrize("fate", [None, "hang"])
async def test_a_child_ends_when_its_parent_is_gone(machine: GpuMachine, fate: str | None) -> None:
    """The parent dies without a word, while its child waits or is in the middle of a call."""
    machine.has(gpu(), calls={"nvmlInit": fate} if fate else {})
    body = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({list(COMMAND)!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdin.write(b'read\\n'); child.stdin.flush()\n"
        "print(child.pid, flush=True); time.sleep(3600)"
    )
    parent = await asyncio.create_subprocess_exec(*script(body), stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    child = Path("/proc") / (await parent.stdout.readline()).decode().strip()
    assert child.exists()

    parent.kill()
    await parent.communicate()

    await until(lambda: not child.exists() or "\nState:\tZ" in (child / "status").read_text())
