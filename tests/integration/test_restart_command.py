"""`balancer restart` and the admin paths behind it, against a balancer with managed instances."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from balancer.admin.listener import AdminListener
from balancer.admin.operations import Operations
from balancer.cli import main
from balancer.control.back_off import BackOffPolicy
from balancer.control.lifecycle import SupervisorPolicy
from balancer.control.supervisor import Supervisor
from balancer.core.ticket import InstanceId
from balancer.provisioning.launch import Launch
from balancer.settings import Address
from tests.fakes.running_balancer import Running, balancing
from tests.fakes.supervised import QUICK, a_port, misbehaving, until


@dataclass(frozen=True)
class Managing:
    """A balancer, the supervisor of its instances, and an admin listener that knows both."""

    running: Running
    supervisor: Supervisor
    admin: str
    capsys: pytest.CaptureFixture[str]

    def pid(self, name: str) -> Any:
        told = self.supervisor.told(InstanceId(name))
        assert told is not None
        return told["pid"]

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """A command's exit code, and what it wrote."""

        def ran() -> int:
            with pytest.raises(SystemExit) as ended:
                main([*arguments, "--admin", self.admin])
            assert isinstance(ended.value.code, int)
            return ended.value.code

        self.capsys.readouterr()
        code = await asyncio.to_thread(ran)
        shown = self.capsys.readouterr()
        return code, shown.out, shown.err


@contextlib.asynccontextmanager
async def managing(
    folder: Path, capsys: pytest.CaptureFixture[str], *launches: Launch, back_off: BackOffPolicy = QUICK
) -> AsyncIterator[Managing]:
    instances = [{"name": each.name, "url": f"http://127.0.0.1:{each.port}"} for each in launches]
    attached = {"name": "attached", "url": "http://127.0.0.1:1"}
    async with balancing(up=0, instances=[*instances, attached]) as running:
        balancer = running.balancer
        supervisor = Supervisor(
            launches,
            state_dir=folder,
            policy=SupervisorPolicy(back_off=back_off),
            fleet=balancer.fleet,
            client=balancer.control,
            metrics=balancer.metrics,
            clock=balancer.clock,
            log=balancer.log,
            on_up=balancer.prober.look,
        )
        balancer.report._managed = supervisor.told
        operations = Operations(
            drain=balancer.drain,
            reload=balancer.reloader.reload,
            restart=supervisor.restart,
            restart_all=supervisor.rolling_restart,
        )
        listener = AdminListener(
            address=Address("127.0.0.1", 0), report=balancer.report, operations=operations
        )
        await listener.open()
        await supervisor.open()
        loop = asyncio.create_task(supervisor.run())
        try:
            yield Managing(running, supervisor, listener.url, capsys)
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            await supervisor.close()
            await listener.close()


async def up(managing: Managing, *names: str) -> list[int]:
    """Wait until they are; their pids."""
    for name in names:
        managed = managing.supervisor._managed[InstanceId(name)]
        await until(lambda each=managed: each.state == "up")  # type: ignore[misc]
    return [managing.pid(name) for name in names]


async def test_one_instance_is_restarted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launches = [misbehaving(name, a_port(), "serves") for name in "ab"]
    async with managing(tmp_path / "state", capsys, *launches) as here:
        before = await up(here, "a", "b")
        told = await here.run("restart", "a")
        after = [here.pid("a"), here.pid("b")]

        assert told == (0, "a is up\n", "")
        assert after[0] not in {before[0], None}
        assert after[1] == before[1]


async def test_all_instances_are_restarted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launches = [misbehaving(name, a_port(), "serves") for name in "ab"]
    async with managing(tmp_path / "state", capsys, *launches) as here:
        before = await up(here, "a", "b")
        code, out, _ = await here.run("restart", "--all", "--json")
        rows = json.loads(out)["instances"]

        assert code == 0
        assert [each["id"] for each in rows] == ["a", "b"]
        assert [each["managed"]["state"] for each in rows] == ["up", "up"]
        assert {each["managed"]["pid"] for each in rows}.isdisjoint(before)


async def test_instance_that_does_not_come_up_is_told_of_with_its_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = misbehaving("a", a_port(), "exits")
    async with managing(tmp_path / "state", capsys, launch, back_off=BackOffPolicy(failures=1)) as here:
        managed = here.supervisor._managed[InstanceId("a")]
        await until(lambda: managed.state == "quarantined")
        status = json.loads((await here.run("status", "--json"))[1])["instances"][0]["managed"]
        shown = (await here.run("status"))[1]
        code, out, err = await here.run("restart", "a")

        assert "process quarantined" in shown
        assert (status["state"], status["lines"]) == ("quarantined", ["error: this never works"])
        assert (code, out) == (1, "")
        assert err == "a is quarantined: its process ended with code 3\n    error: this never works\n"
        assert managed.restarts == 1


async def test_wait_that_is_too_short_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch = misbehaving("a", a_port(), "ignores_term")
    async with managing(tmp_path / "state", capsys, launch) as here:
        await up(here, "a")
        code, out, err = await here.run("restart", "a", "--wait", "0.2")

        assert (code, out) == (1, "")
        assert err == "a is not up after 0.2 s: it is stopping\n"


async def test_attached_and_unknown_instances_are_bad_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with managing(tmp_path / "state", capsys) as here:
        attached = await here.run("restart", "attached")
        unknown = await here.run("restart", "x")
        none = await here.run("restart", "--all")

        assert attached == (
            2,
            "",
            "'attached' was not started by this balancer; restart it where it runs\n",
        )
        assert unknown == (2, "", "there is no instance 'x'; there are attached\n")
        assert none == (0, "no instance was started by this balancer: there is nothing to restart\n", "")


async def test_balancer_that_manages_nothing_refuses_a_restart() -> None:
    async with balancing(up=0, instances=[{"name": "a", "url": "http://127.0.0.1:1"}]) as running:
        answers = [
            await running.balancer.control.try_post(running.addresses.admin, path, {}, timeout_seconds=20)
            for path in ("/admin/v1/instances/a/restart", "/admin/v1/restart")
        ]

        assert [status for status, _ in answers] == [409, 200]


@pytest.mark.parametrize("arguments", [(), ("a", "--all"), ("a", "--wait", "0")])
def test_what_is_to_be_restarted_must_be_said(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["restart", *arguments])

    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err
