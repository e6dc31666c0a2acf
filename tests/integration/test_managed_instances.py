"""Managed instances as real processes: how each dies, and what becomes of it."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer.core.names import canonical_name
from balancer.core.variant import Variant
from balancer.errors import BadResponse
from balancer.fleet.breaker import BreakerState
from balancer.provisioning.launch import Launch
from balancer.upstream.control_client import ControlClient
from tests.fakes.supervised import (
    Rig,
    a_port,
    alive,
    keeper_of,
    lives,
    misbehaving,
    modes,
    peak_memory_bytes,
    simulated,
    supervising,
    until,
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "state"
    yield path
    if (path / "keeper.lock").exists():
        assert not alive(keeper_of(path)), "a keeper was left behind"


async def test_instance_is_started_in_a_group_of_its_own_and_serves(folder: Path) -> None:
    port = a_port()
    async with supervising(folder, simulated("a", port)) as rig:
        await rig.usable("a")
        pid = rig.pid("a")
        keeper = keeper_of(folder)
        groups = os.getpgid(pid), os.getsid(pid)

        assert (pid, pid) == groups
        assert rig.logged("instance_started")[0]["port"] == port
        assert [each["instance"] for each in rig.logged("instance_ready")] == ["a"]
        assert rig.told("a")["restarts"] == 0
        assert modes(folder) == {
            "state 700",
            "balancer.lock 600",
            "keeper.lock 600",
            "keeper.log 600",
            "keeper.sock 600",
        }

    assert not alive(pid)
    assert not alive(keeper)


async def test_killed_instance_is_down_at_once_and_started_anew(folder: Path) -> None:
    async with supervising(folder, simulated("a", a_port())) as rig:
        await rig.usable("a")
        first, incarnation = rig.pid("a"), rig.instance("a").incarnation
        os.kill(first, signal.SIGKILL)
        await until(lambda: rig.logged("instance_exited"))
        breaker = rig.instance("a").breakers.state(rig.supervisor._clock.monotonic())
        await rig.usable("a")

        assert breaker is BreakerState.OPEN
        assert rig.instance("a").breakers.state(rig.supervisor._clock.monotonic()) is BreakerState.HALF_OPEN
        assert rig.logged("instance_exited")[0]["error"] == "its process ended with signal 9"
        assert rig.pid("a") != first
        assert rig.instance("a").incarnation >= incarnation + 2
        assert rig.restarts("a", "exited") == 1
        assert rig.told("a")["restarts"] == 1


async def test_hung_instance_is_found_and_started_anew(folder: Path) -> None:
    async with supervising(folder, simulated("a", a_port()), policy={"term_seconds": 60.0}) as rig:
        await rig.usable("a")
        first = rig.pid("a")
        os.kill(first, signal.SIGSTOP)
        await until(lambda: rig.restarts("a", "hung") == 1, "hung")
        await rig.usable("a")

        assert not alive(first)
        assert rig.logged("instance_restarting")[0]["reason"] == "hung"
        assert rig.logged("instance_exited")[0]["error"] == "its process ended with code 0"


async def test_instance_that_answers_with_errors_is_down_and_does_not_hang(
    folder: Path, tmp_path: Path
) -> None:
    launch = misbehaving("a", a_port(), "turns_bad", str(tmp_path), ready_path="/ready")
    asked = tmp_path / "asked"
    async with supervising(folder, launch, policy={"probes": 2}) as rig:
        await rig.usable("a")
        first = rig.pid("a")
        (tmp_path / "bad").touch()
        await until(lambda: asked.exists() and asked.read_text().count("/ready") > 4, "asked what is wrong")

        assert not rig.instance("a").usable
        assert (rig.told("a")["state"], rig.told("a")["pid"]) == ("up", first)
        assert rig.restarts("a", "hung") == 0


async def test_instance_that_never_works_is_quarantined_with_its_last_lines(folder: Path) -> None:
    async with supervising(folder, misbehaving("a", a_port(), "exits")) as rig:
        await rig.reach("a", "quarantined")
        told = rig.told("a")

        assert told["lines"] == ["error: this never works"]
        assert told["error"] == "its process ended with code 3"
        assert rig.restarts("a", "exited") == 4
        assert len(rig.logged("instance_exited")) == 5
        (event,) = rig.logged("instance_quarantined")
        assert (event["reason"], event["lines"]) == ("exited", ["error: this never works"])
        assert {each["level"] for each in rig.logged("instance_output")} == {"warning"}


async def test_operator_ends_a_quarantine(folder: Path, tmp_path: Path) -> None:
    port = a_port()
    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    launch = simulated("a", port)
    broken = Launch(
        name="a",
        arguments=(str(program), *launch.arguments),
        environment=launch.environment,
        port=port,
        ready_path="/api/version",
        ready_seconds=60,
    )
    async with supervising(folder, broken) as rig:
        await rig.reach("a", "quarantined")
        program.write_text('#!/bin/sh\nexec "$@"\n')
        rig.supervisor.restart(rig.instance("a").id)
        await rig.usable("a")

        assert (rig.told("a")["lines"], rig.told("a")["error"]) == ([], None)
        first = rig.pid("a")
        os.kill(first, signal.SIGKILL)
        await until(lambda: rig.told("a")["pid"] not in {first, None}, "another try: the past is forgotten")


async def test_program_that_is_missing_is_named(folder: Path) -> None:
    port = a_port()
    launch = Launch(
        name="a",
        arguments=("no-such-program",),
        environment={},
        port=port,
        ready_path="/",
        ready_seconds=5,
    )
    async with supervising(folder, launch) as rig:
        await rig.reach("a", "quarantined")

        assert rig.told("a")["error"] == "no-such-program: there is no such program"
        assert rig.restarts("a", "refused") == 4


async def test_port_that_someone_else_has_names_its_holder(folder: Path) -> None:
    port = a_port()
    with socket.socket() as thief:
        thief.bind(("0.0.0.0", port))
        thief.listen()
        async with supervising(folder, simulated("a", port)) as rig:
            await rig.reach("a", "quarantined")
            told = rig.told("a")["error"]
            thief.close()
            rig.supervisor.restart(rig.instance("a").id)
            await rig.usable("a")

            assert told.startswith(f"port {port} is held by process {os.getpid()} (")
            assert rig.restarts("a", "port_taken") == 5
            assert rig.logged("instance_quarantined")[0]["reason"] == "port_taken"


async def test_port_that_is_stolen_while_the_instance_starts_names_its_holder(folder: Path) -> None:
    """Somebody answers in its place, so that it looks ready while its own process does something else."""
    port, other = a_port(), a_port()
    launch = misbehaving("a", other, "serves")
    stolen = Launch(
        name="a",
        arguments=launch.arguments,
        environment=launch.environment,
        port=port,
        ready_path="/api/version",
        ready_seconds=60,
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with supervising(folder, stolen) as rig:
        await until(lambda: rig.told("a")["pid"])
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        await rig.reach("a", "quarantined")
        server.close()

        assert rig.told("a")["error"].startswith(f"port {port} is held by process {os.getpid()} (")


def _told_of(rig: Rig) -> int:
    lost = sum(each["lines"] for each in rig.logged("instance_output_lost"))
    return len(rig.logged("instance_output")) + lost


async def test_flood_of_output_blocks_and_fills_nothing(folder: Path) -> None:
    async with supervising(folder, misbehaving("a", a_port(), "floods")) as rig:
        await rig.usable("a")
        await until(lambda: _told_of(rig) >= 100_000_000 // 101, "all lines, told or counted")
        peak = peak_memory_bytes(keeper_of(folder))

        assert len(rig.logged("instance_output")) < 10_000
        assert peak < 60_000_000


async def test_instance_that_ignores_term_is_killed(folder: Path) -> None:
    async with supervising(
        folder, misbehaving("a", a_port(), "ignores_term"), policy={"term_seconds": 0.3}
    ) as rig:
        await rig.usable("a")
        first = rig.pid("a")
        rig.supervisor.restart(rig.instance("a").id)
        await until(lambda: rig.told("a")["pid"] not in {first, None})
        await rig.usable("a")
        second = rig.pid("a")

        assert not alive(first)
        assert rig.logged("instance_exited")[0]["error"] == "its process ended with signal 9"
        assert rig.restarts("a", "operator") == 1

    assert not alive(second)


async def test_nothing_that_an_instance_leaves_behind_outlives_it(folder: Path, tmp_path: Path) -> None:
    children = tmp_path / "children"
    children.mkdir()
    names = ("in_group", "left_group", "forgot")
    launch = misbehaving("a", a_port(), "leaves_children", str(children))
    async with supervising(folder, launch) as rig:
        await rig.usable("a")
        before = [int((children / each).read_text()) for each in names]
        all_alive = [alive(pid) for pid in before]
        os.kill(rig.pid("a"), signal.SIGKILL)
        await until(lambda: rig.logged("instance_exited"))

        assert [alive(pid) for pid in before] == [False, False, False]
        await rig.usable("a")
        after = [int((children / each).read_text()) for each in names]

    assert all_alive == [True, True, True]
    assert [alive(pid) for pid in after] == [False, False, False]


async def test_children_of_another_instance_are_left_alone(folder: Path, tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    launches = [misbehaving(each.name, a_port(), "leaves_children", str(each)) for each in places]
    async with supervising(folder, *launches) as rig:
        await rig.usable("a", "b")
        others = [int((places[1] / each).read_text()) for each in ("in_group", "left_group", "forgot")]
        own = [int((places[0] / each).read_text()) for each in ("in_group", "left_group")]
        os.kill(rig.pid("a"), signal.SIGKILL)
        await until(lambda: rig.logged("instance_exited"))

        assert [alive(pid) for pid in own] == [False, False]
        assert [alive(pid) for pid in others] == [True, True, True]


async def test_warm_up_that_fails_is_a_failed_start(folder: Path) -> None:
    calls: list[str] = []

    async def warm_up(launch: Launch) -> None:
        calls.append(launch.name)
        if len(calls) == 1:
            raise BadResponse("no runner")

    async with supervising(folder, simulated("a", a_port()), warm_up=warm_up) as rig:
        await rig.usable("a")

        assert calls == ["a", "a"]
        assert rig.restarts("a", "warm_up") == 1
        assert rig.logged("instance_restarting")[0]["error"] == "its first load failed: no runner"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, None], ids=["ends", "hangs", "restart"])
async def test_warm_up_is_cut_short_where_the_process(folder: Path, number: int | None) -> None:
    calls: list[str] = []

    async def warm_up(launch: Launch) -> None:
        calls.append(launch.name)
        if len(calls) == 1:
            await asyncio.sleep(3600)

    async with supervising(folder, simulated("a", a_port()), warm_up=warm_up) as rig:
        await rig.reach("a", "ready")
        await until(lambda: rig.instance("a").usable)
        first = rig.pid("a")
        if number is None:
            rig.supervisor.restart(rig.instance("a").id)
        else:
            os.kill(first, number)
        await until(lambda: len(calls) == 2)
        await rig.usable("a")

        assert rig.pid("a") != first
        assert len(rig.logged("instance_ready")) == 1


async def test_instance_that_is_not_ready_in_time_is_started_anew(folder: Path) -> None:
    launch = simulated("a", a_port(), ready_path="/nothing/here", ready_seconds=0.5)
    async with supervising(folder, launch) as rig:
        await until(lambda: rig.restarts("a", "not_ready") == 1)

        assert "not ready in 0.5 s" in rig.logged("instance_restarting")[0]["error"]


async def test_instances_of_one_device_start_one_after_the_other(folder: Path) -> None:
    warming: set[str] = set()
    together: list[set[str]] = []

    async def warm_up(launch: Launch) -> None:
        warming.add(launch.name)
        together.append(set(warming))
        for _ in range(10):
            await asyncio.sleep(0.01)
            together.append(set(warming))
        warming.remove(launch.name)

    launches = [
        misbehaving("a", a_port(), "serves", devices=("GPU-0",)),
        misbehaving("b", a_port(), "serves", devices=("GPU-0",)),
        misbehaving("c", a_port(), "serves", devices=("GPU-0", "GPU-1")),
    ]
    async with supervising(folder, *launches, warm_up=warm_up) as rig:
        await rig.usable("a", "b", "c")

        assert {len(each) for each in together} == {1}
        assert [each["instance"] for each in rig.logged("instance_started")] == ["a", "b", "c"]


async def test_restart_drains_first_and_gives_requests_again(folder: Path) -> None:
    policy = {"drain_seconds": 60.0}
    async with supervising(folder, simulated("a", a_port()), policy=policy) as rig:
        await rig.usable("a")
        instance, first = rig.instance("a"), rig.pid("a")
        model = canonical_name("m")
        now = rig.supervisor._clock.monotonic()
        instance.take_slot(model, now)
        rig.supervisor.restart(instance.id)
        await until(lambda: instance.drained)
        while_running = (alive(first), rig.told("a")["state"], rig.told("a")["restart_pending"])
        instance.give_slot_back(model, now, now)
        await until(lambda: not rig.told("a")["restart_pending"])
        await rig.usable("a")

        assert while_running == (True, "stopping", True)
        assert rig.pid("a") != first
        assert not instance.drained
        assert instance.breakers.allows(Variant(model), rig.supervisor._clock.monotonic())
        assert rig.logged("instance_exited")[0]["level"] == "info"


async def test_restart_ends_no_drain_that_began_meanwhile(folder: Path) -> None:
    policy = {"drain_seconds": 60.0}
    async with supervising(folder, simulated("a", a_port()), policy=policy) as rig:
        await rig.usable("a")
        instance, model = rig.instance("a"), canonical_name("m")
        now = rig.supervisor._clock.monotonic()
        instance.take_slot(model, now)
        rig.supervisor.restart(instance.id)
        await until(lambda: instance.drained)

        rig.fleet.drain(instance, drained=True)
        instance.give_slot_back(model, now, now)
        await until(lambda: not rig.told("a")["restart_pending"])

        assert instance.drained


async def test_restart_leaves_an_instance_drained_that_was_drained_before(folder: Path) -> None:
    async with supervising(folder, simulated("a", a_port())) as rig:
        await rig.usable("a")
        rig.fleet.drain(rig.instance("a"), drained=True)
        rig.supervisor.restart(rig.instance("a").id)
        await until(lambda: not rig.told("a")["restart_pending"])

        assert rig.instance("a").drained


async def test_rolling_restart_takes_one_after_the_other(folder: Path) -> None:
    launches = [misbehaving(name, a_port(), "serves") for name in "abc"]
    async with supervising(folder, *launches) as rig:
        await rig.usable("a", "b", "c")
        before = [rig.pid(name) for name in "abc"]
        rig.supervisor.rolling_restart()
        pending = [rig.told(name)["restart_pending"] for name in "abc"]
        await until(lambda: not any(rig.told(name)["restart_pending"] for name in "abc"))

        assert pending == [True, True, True]
        assert not any(alive(pid) for pid in before)
        expected = ("instance_exited", "instance_started", "instance_ready")
        assert lives(rig.log.getvalue())[6:] == [(event, name) for name in "abc" for event in expected]


async def test_rolling_restart_ends_at_one_that_fails(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\nexec "$@"\n')
    program.chmod(0o755)
    launches = [misbehaving(name, a_port(), "serves") for name in "ab"]
    launches[0] = Launch(
        name="a",
        arguments=(str(program), *launches[0].arguments),
        environment=launches[0].environment,
        port=launches[0].port,
        ready_path="/",
        ready_seconds=60,
    )
    async with supervising(folder, *launches) as rig:
        await rig.usable("a", "b")
        second = rig.pid("b")
        program.write_text("#!/bin/sh\nexit 1\n")
        rig.supervisor.rolling_restart()
        await until(lambda: rig.logged("rolling_restart_ended"))

        assert rig.pid("b") == second
        assert not rig.told("b")["restart_pending"]


async def test_keeper_that_is_killed_is_replaced_and_what_it_held_ended(folder: Path) -> None:
    async with supervising(folder, simulated("a", a_port())) as rig:
        await rig.usable("a")
        first, keeper = rig.pid("a"), keeper_of(folder)
        os.kill(keeper, signal.SIGKILL)
        await until(lambda: rig.logged("keeper_lost"))
        await until(lambda: rig.told("a")["pid"] not in {first, None})
        await rig.usable("a")

        assert keeper_of(folder) != keeper
        assert not alive(first)
        assert [each["pid"] for each in rig.logged("leftover_ended")] == [first]
        assert rig.restarts("a", "keeper_lost") == 1


async def test_instance_answers_models_like_any_other(folder: Path) -> None:
    port, client = a_port(), ControlClient()
    async with supervising(folder, simulated("a", port, "--model", "tiny:1b:500MB:chat")) as rig:
        await rig.usable("a")
        told = await client.get(f"http://127.0.0.1:{port}", "/api/tags", timeout_seconds=20)
        await client.close()

        assert "tiny:1b" in str(told)
