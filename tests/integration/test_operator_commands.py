"""The operator's commands against a running balancer: what they do, say, and exit with."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from balancer.cli import main
from balancer.control.config_files import ConfigFiles
from balancer.control.reloader import ConfigSource
from balancer.core.ticket import InstanceId
from balancer.fleet.instance_spec import DrainedBy
from balancer.settings import Settings, load
from tests.fakes.raw_client import Answer
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import DONE, ScriptedInstance, Send, Wait, chunked

GENERATE = {"model": "m", "prompt": "hi"}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Operator:
    """Runs commands against a balancer of this process, in a thread that has a loop of its own."""

    capsys: pytest.CaptureFixture[str]

    async def run(self, running: Running, *arguments: str) -> Ran:
        def ran() -> int:
            with pytest.raises(SystemExit) as ended:
                main([*arguments, "--admin", running.addresses.admin])
            assert isinstance(ended.value.code, int)
            return ended.value.code

        self.capsys.readouterr()
        code = await asyncio.to_thread(ran)
        shown = self.capsys.readouterr()
        return Ran(code, shown.out, shown.err)


@pytest.fixture
def operator(capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(capsys)


async def begin(running: Running, instance: ScriptedInstance, gate: asyncio.Event) -> asyncio.Task[Answer]:
    """A request that is at the instance until the gate opens."""
    before = len(instance.requests)
    instance.play(Wait(gate), Send(chunked(DONE)))
    task = asyncio.create_task(running.ask("/api/generate", GENERATE))
    await instance.seen(before + 1)
    return task


async def test_instance_is_drained_and_put_back(operator: Operator) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        drained = await operator.run(running, "drain", "a")
        status = await operator.run(running, "status")
        undrained = await operator.run(running, "undrain", "a")

        assert drained == Ran(0, "a takes no new requests; none runs there\n", "")
        assert "up, drained" in status.out
        assert undrained == Ran(0, "a takes requests again; it is up\n", "")


@pytest.mark.parametrize(
    ("by", "why"), [(DrainedBy.LOST_DEVICE, "its GPU is lost"), (DrainedBy.RESTART, "it is being restarted")]
)
async def test_an_instance_that_is_put_back_and_waits_is_told_for_what(
    by: DrainedBy, why: str, operator: Operator
) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        running.balancer.drain(InstanceId("a"), True, by)

        told = await operator.run(running, "undrain", "a")
        as_json = await operator.run(running, "undrain", "a", "--json")

        assert told == Ran(0, f"a takes no requests yet: {why}\n", "")
        assert (as_json.json["drained"], as_json.json["drained_by"]) == (True, [by.value])


async def test_draining_waits_until_nothing_runs_there(operator: Operator) -> None:
    gate = asyncio.Event()
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await begin(running, one, gate)
        at_once = await operator.run(running, "drain", "a")
        waiting = asyncio.create_task(operator.run(running, "drain", "a", "--wait", "20"))
        await asyncio.sleep(0.5)
        still = waiting.done()
        gate.set()

        assert at_once.out == "a takes no new requests; 1 still runs there\n"
        assert (still, await waiting) == (False, Ran(0, "a takes no new requests; none runs there\n", ""))
        assert (await answer).body == DONE


async def test_draining_that_takes_too_long_fails_and_tells_how_many_run(operator: Operator) -> None:
    gate = asyncio.Event()
    async with ScriptedInstance().running() as one, balancing(one, each={"slots": 4}) as running:
        answers = [await begin(running, one, gate) for _ in range(2)]
        told = await operator.run(running, "drain", "a", "--wait", "0.4")
        as_json = await operator.run(running, "drain", "a", "--wait", "0.1", "--json")
        gate.set()
        await asyncio.gather(*answers)

        assert told == Ran(1, "", "a takes no new requests, but after 0.4 s 2 still run there\n")
        assert (as_json.code, as_json.json["drained"], as_json.json["running"]) == (1, True, 2)


async def test_waiting_ends_where_someone_puts_the_instance_back(operator: Operator) -> None:
    gate = asyncio.Event()
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await begin(running, one, gate)
        waiting = asyncio.create_task(operator.run(running, "drain", "a", "--wait", "20"))
        (instance,) = running.balancer.fleet.instances()
        await until(lambda: instance.drained)
        running.balancer.fleet.drain(instance, drained=False)
        told = await waiting
        gate.set()
        await answer

        assert (told.code, told.out) == (1, "")
        assert "drained no longer" in told.err


@pytest.mark.parametrize("name", ["127.0.0.1:11434", "a b", "50%", "a%2Fb", "..", ".", "a?b#c", "~[x]{y}|\\"])
async def test_instance_is_found_by_its_name_however_odd_it_is(operator: Operator, name: str) -> None:
    async with balancing(up=0, instances=[{"url": "http://127.0.0.1:1", "name": name}]) as running:
        drained = await operator.run(running, "drain", "--json", name)

        assert (drained.code, drained.json["id"], drained.json["drained"]) == (0, name, True)


@pytest.mark.parametrize("command", ["drain", "undrain"])
async def test_unknown_instance_is_bad_usage_and_names_those_that_there_are(
    operator: Operator, command: str
) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        told = await operator.run(running, command, "gpu/1")
        as_json = await operator.run(running, command, "gpu/1", "--json")

        assert told == Ran(2, "", "there is no instance 'gpu/1'; there are a\n")
        assert (as_json.code, as_json.json["error"]) == (2, "there is no instance 'gpu/1'; there are a")


async def test_reload_tells_whether_anything_changed(operator: Operator, tmp_path: Path) -> None:
    path = tmp_path / "balancer.yaml"
    write(path, "batching: {max_size: 4}\n")

    def source(settings: Settings) -> ConfigSource:
        fixed = settings.model_dump(mode="json", include={"listen", "admin_listen", "health", "instances"})
        return ConfigSource(load=lambda: load([path], environ={}, overrides=fixed), files=ConfigFiles([path]))

    async with ScriptedInstance().running() as one, balancing(one, source=source) as running:
        same = await operator.run(running, "reload")
        write(path, "batching: {max_size: 5}\n")
        changed = await operator.run(running, "reload")
        as_json = await operator.run(running, "reload", "--json")
        write(path, "batching: {max_size: -1}\nstrategi: random\n")
        refused = await operator.run(running, "reload")
        refused_json = await operator.run(running, "reload", "--json")
        status = await operator.run(running, "status")
        config = running.balancer.reloader.config

        assert (same.code, same.out.endswith(" stays in force: nothing changed\n")) == (0, True)
        assert changed == Ran(0, f"configuration {config} is in force now\n", "")
        assert as_json.json == {"config": config, "changed": False}
        assert (refused.code, refused.out) == (2, "")
        assert [line.startswith(f"{path}: ") for line in refused.err.splitlines()] == [True, True]
        assert (refused_json.code, refused_json.json["faults"]) == (2, refused.err.splitlines())
        assert f"configuration {config}, loaded" in status.out
        assert "a newer one is refused" in status.out


async def test_status_tells_queue_live_requests_and_configuration(operator: Operator) -> None:
    gate = asyncio.Event()
    async with ScriptedInstance().running() as one, balancing(one, each={"slots": 1}) as running:
        first = await begin(running, one, gate)
        second = asyncio.create_task(running.ask("/api/generate", GENERATE))
        await until(lambda: len(running.balancer.queue) == 1)
        told = (await operator.run(running, "status", "--json")).json
        shown = (await operator.run(running, "status")).out
        gate.set()
        await asyncio.gather(first, second)

        assert [each["id"] for each in told["instances"]] == ["a"]
        assert told["config"]["config"] == running.balancer.reloader.config
        assert [(each["stage"], each.get("instance")) for each in told["live"]] == [
            ("waiting", "a"),
            ("queued", None),
        ]
        assert [(each["position"], each["client"]) for each in told["queue"]["requests"]] == [
            (1, "127.0.0.1")
        ]
        assert "1 of at most 1000 requests wait" in shown
        assert "2 requests are under way" in shown


def write(path: Path, text: str) -> None:
    path.write_text(text)
