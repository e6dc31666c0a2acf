"""What becomes of managed instances when the balancer is killed, or the keeper, or both."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from balancer.provisioning import keeper_link
from balancer.provisioning.keeper import FOLDER_VARIABLE, INSTANCE_VARIABLE
from balancer.provisioning.process_table import command, environment
from balancer.provisioning.state_folder import FolderTaken
from tests.fakes.supervised import (
    ROOT,
    a_port,
    alive,
    end_keeper,
    keeper_of,
    misbehaving,
    simulated,
    supervising,
    until,
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "state"
    yield path
    end_keeper(path)


@dataclass
class Killable:
    """A supervisor in a process of its own, with the pids of its instances."""

    process: subprocess.Popen[str]
    pids: dict[str, int]

    async def end(self, number: int) -> int:
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 60)


@contextlib.asynccontextmanager
async def elsewhere(folder: Path, grace: float, *ports: int | str) -> AsyncIterator[Killable]:
    """A supervisor of simulated instances in another process, once all of them are up."""
    arguments = [str(folder), str(grace), *map(str, ports)]
    with started("-m", "tests.fakes.supervised", *arguments, cwd=ROOT) as process:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        yield Killable(process, json.loads(line))


@contextlib.contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python process for the length of a `with` block."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def leave_lock(folder: Path, pid: int) -> None:
    """What a keeper leaves that was killed long ago."""
    folder.mkdir(mode=0o700)
    (folder / "keeper.lock").write_text(f"{pid}\n")


def sleeping(**options: Any) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """A process that has nothing to do with it."""
    return started("-c", "import time; time.sleep(1000)", **options)


async def test_next_balancer_adopts_what_a_killed_one_has_started(folder: Path) -> None:
    ports = [a_port(), a_port()]
    async with elsewhere(folder, 60, *ports) as killed:
        await killed.end(signal.SIGKILL)
    async with supervising(folder, *(simulated(f"s{port}", port) for port in ports)) as rig:
        await rig.usable(*killed.pids)
        told = {name: (rig.pid(name), rig.told(name)["adopted"]) for name in killed.pids}

        assert told == {name: (pid, True) for name, pid in killed.pids.items()}
        assert rig.logged("instance_started") == []
        assert {each["pid"] for each in rig.logged("instance_adopted")} == set(killed.pids.values())

    assert not any(alive(pid) for pid in killed.pids.values())


async def test_adopted_instance_is_healed_like_any_other(folder: Path) -> None:
    port = a_port()
    async with elsewhere(folder, 60, port) as killed:
        await killed.end(signal.SIGKILL)
    (pid,) = killed.pids.values()
    async with supervising(folder, simulated(f"s{port}", port)) as rig:
        await rig.usable(f"s{port}")
        os.kill(pid, signal.SIGKILL)
        await until(lambda: rig.restarts(f"s{port}", "exited") == 1)
        await rig.usable(f"s{port}")

        assert rig.pid(f"s{port}") != pid
        assert not rig.told(f"s{port}")["adopted"]


async def test_nothing_is_left_once_the_grace_is_over(folder: Path) -> None:
    async with elsewhere(folder, 0.3, a_port(), a_port()) as killed:
        keeper = keeper_of(folder)
        await killed.end(signal.SIGKILL)
        await until(lambda: not any(alive(pid) for pid in (*killed.pids.values(), keeper)))


async def test_grace_ends_in_a_kill_for_those_that_ignore_a_term(folder: Path) -> None:
    async with elsewhere(folder, 0.1, f"{a_port()}:ignores_term") as killed:
        keeper = keeper_of(folder)
        await killed.end(signal.SIGKILL)
        await until(lambda: not any(alive(pid) for pid in (*killed.pids.values(), keeper)))


async def test_stopped_balancer_leaves_nothing_without_any_grace(folder: Path) -> None:
    async with elsewhere(folder, 3600, a_port()) as stopped:
        keeper = keeper_of(folder)
        code = await stopped.end(signal.SIGTERM)

        assert code == 0
        assert not any(alive(pid) for pid in (*stopped.pids.values(), keeper))


async def test_leftovers_of_a_killed_keeper_are_ended_by_the_next_start(folder: Path) -> None:
    port = a_port()
    async with elsewhere(folder, 60, port) as killed:
        os.kill(keeper_of(folder), signal.SIGKILL)
        await killed.end(signal.SIGKILL)
    (pid,) = killed.pids.values()
    orphaned = alive(pid)
    async with supervising(folder, simulated(f"s{port}", port)) as rig:
        await rig.usable(f"s{port}")

        assert orphaned
        assert not alive(pid)
        assert rig.pid(f"s{port}") != pid
        assert [each["pid"] for each in rig.logged("leftover_ended")] == [pid]
        assert "balancer.simulator" in rig.logged("leftover_ended")[0]["command"]


async def test_only_what_carries_the_folder_is_a_leftover(folder: Path, tmp_path: Path) -> None:
    """Neither processes of another folder, nor this very process and those that started it."""
    other = {**os.environ, FOLDER_VARIABLE: str(tmp_path / "another"), INSTANCE_VARIABLE: "a"}
    with sleeping(env=other) as innocent, sleeping() as unmarked:
        async with supervising(folder, simulated("a", a_port())) as rig:
            await rig.usable("a")

            assert [alive(innocent.pid), alive(unmarked.pid)] == [True, True]
            assert rig.logged("leftover_ended") == []


async def test_the_folder_alone_makes_no_leftover(folder: Path) -> None:
    """Whoever takes its variable for a setting keeps the balancer that was given it."""
    with sleeping(env={**os.environ, FOLDER_VARIABLE: str(folder)}) as innocent:
        async with supervising(folder, simulated("a", a_port())) as rig:
            await rig.usable("a")

            assert alive(innocent.pid)


async def test_instances_that_have_written_much_are_adopted(folder: Path) -> None:
    ports = [a_port() for _ in range(4)]
    async with elsewhere(folder, 60, *(f"{port}:babbles" for port in ports)) as killed:
        await killed.end(signal.SIGKILL)
    async with supervising(folder, *(misbehaving(f"s{port}", port, "babbles") for port in ports)) as rig:
        await rig.usable(*killed.pids)

        assert {name: rig.pid(name) for name in killed.pids} == killed.pids


async def test_instance_that_is_to_run_otherwise_is_started_anew(folder: Path) -> None:
    port = a_port()
    name = f"s{port}"
    async with elsewhere(folder, 60, port) as killed:
        await killed.end(signal.SIGKILL)
    changed = simulated(name, port, environment={"OLLAMA_NUM_PARALLEL": "2"})
    async with supervising(folder, changed) as rig:
        await rig.usable(name)

        assert rig.pid(name) != killed.pids[name]
        assert not alive(killed.pids[name])
        assert rig.restarts(name, "changed") == 1
        assert [each["pid"] for each in rig.logged("instance_not_adopted")] == [killed.pids[name]]


async def test_keeper_killed_while_it_ends_what_is_not_adopted_holds_up_nobody(folder: Path) -> None:
    port = a_port()
    async with elsewhere(folder, 60, f"{port}:ignores_term") as killed:
        await killed.end(signal.SIGKILL)
    ((name, pid),) = killed.pids.items()
    async with supervising(folder, simulated(name, port)) as rig:
        os.kill(keeper_of(folder), signal.SIGKILL)
        await rig.usable(name)

        assert not alive(pid)


async def test_state_folder_that_is_removed_is_made_anew(folder: Path) -> None:
    async with supervising(folder, simulated("a", a_port())) as rig:
        await rig.usable("a")
        before, keeper = rig.pid("a"), keeper_of(folder)
        shutil.rmtree(folder)
        os.kill(keeper, signal.SIGKILL)
        await until(lambda: rig.restarts("a", "keeper_lost") == 1)
        await rig.usable("a")

        assert not alive(before)
        assert alive(keeper_of(folder))


async def test_environment_that_is_not_utf8_is_passed_and_adopted(folder: Path) -> None:
    launch = simulated("a", a_port(), environment={"LANG": os.fsdecode(b"de\xff")})
    async with supervising(folder, launch) as first:
        await first.usable("a")
        pid = first.pid("a")
        assert environment(pid)["LANG"].startswith("de")


async def test_instance_that_nobody_wants_any_more_is_ended(folder: Path) -> None:
    port = a_port()
    async with elsewhere(folder, 60, port) as killed:
        await killed.end(signal.SIGKILL)
    async with supervising(folder, simulated("another", port)) as rig:
        await rig.usable("another")

        assert not any(alive(pid) for pid in killed.pids.values())


async def test_keeper_that_does_not_answer_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = a_port()
    async with elsewhere(folder, 60, port) as killed:
        keeper = keeper_of(folder)
        os.kill(keeper, signal.SIGSTOP)
        await killed.end(signal.SIGKILL)
    monkeypatch.setattr(keeper_link, "_HELLO_SECONDS", 6.0)
    async with supervising(folder, simulated(f"s{port}", port)) as rig:
        await rig.usable(f"s{port}")

        assert not alive(keeper)
        assert [each["pid"] for each in rig.logged("leftover_ended")] == [*killed.pids.values()]


async def test_process_that_has_the_pid_of_an_old_keeper_is_left_alone(folder: Path) -> None:
    with sleeping() as innocent:
        leave_lock(folder, innocent.pid)
        async with supervising(folder, simulated("a", a_port())) as rig:
            await rig.usable("a")

            assert alive(innocent.pid)


async def test_second_balancer_of_a_folder_is_refused_and_told_of_the_first(folder: Path) -> None:
    async with elsewhere(folder, 60, a_port()) as first:
        with pytest.raises(
            FolderTaken, match=rf"{folder} is in use by another balancer \(process \d+\)"
        ) as told:
            async with supervising(folder):
                pass

        assert f"process {first.process.pid}" in str(told.value)
        assert all(alive(pid) for pid in first.pids.values())
        await first.end(signal.SIGTERM)


async def test_folder_that_cannot_be_written_costs_the_adoption_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with supervising(tmp_path / "file" / "state", simulated("a", a_port())) as rig:
        await rig.usable("a")
        (event,) = rig.logged("instances_not_adoptable")
        pid = rig.pid("a")
        assert rig.supervisor._folder is not None
        place = rig.supervisor._folder.path

        assert event["problem"] == f"{tmp_path}/file/state: Not a directory"

    assert not alive(pid)
    assert not place.exists()


async def test_folder_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    async with supervising(shared, simulated("a", a_port())) as rig:
        await rig.usable("a")
        (event,) = rig.logged("instances_not_adoptable")

        assert event["problem"] == f"{shared}: other users may write to it"
        assert list(shared.iterdir()) == []


async def test_path_longer_than_a_socket_may_have_is_no_hindrance(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / "state"
    async with supervising(deep, simulated("a", a_port())) as rig:
        await rig.usable("a")

        assert rig.logged("instances_not_adoptable") == []
        assert str(deep) in command(keeper_of(deep))
