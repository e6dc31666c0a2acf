"""Instances that lie, stammer or say too much harm themselves alone."""

import json
from collections.abc import Mapping

import pytest

from balancer.fleet.health import HealthState
from tests.fakes.running_balancer import balancing, until
from tests.fakes.scripted_instance import ScriptedInstance

pytestmark = pytest.mark.both_sinks

GENERATE = {"model": "m", "prompt": "hi", "stream": False}
ROW = {"name": "m", "model": "m", "digest": "d"}
DEEP = b"[" * 100_000 + b"]" * 100_000


def liar(lies: Mapping[str, bytes]) -> ScriptedInstance:
    one = ScriptedInstance()
    one.lies = dict(lies)
    return one


LIES = {
    "deep lists": {"/api/tags": b'{"models":' + DEEP + b"}"},
    "half a character": {"/api/tags": b'{"models":[{"name":"a\\ud800"}]}'},
    "a number beyond all": {"/api/ps": json.dumps({"models": [ROW | {"size_vram": 10**400}]}).encode()},
    "rows that are none": {"/api/tags": b'{"models":[1,null,{"name":7},{"name":"m"}]}'},
    "no list": {"/api/tags": b'{"models":7}'},
    "a version beyond all": {"/api/version": b'{"version":"' + b"9" * 5000 + b'"}'},
}


@pytest.mark.parametrize("name", LIES)
async def test_lies_of_one_instance_harm_no_other(name: str) -> None:
    async with (
        liar(LIES[name]).running() as lying,
        ScriptedInstance().running() as honest,
        balancing(lying, honest, up=2) as running,
    ):
        answers = [await running.ask(path, method="GET") for path in ("/api/tags", "/api/ps", "/api/version")]
        chats = [await running.ask("/api/generate", GENERATE) for _ in range(4)]

        assert [each.status for each in answers] == [200] * 3
        assert [each.status for each in chats] == [200] * 4
        assert running.balancer.report.metrics()
        assert running.logged("probe_failed") == []


async def test_version_too_deep_to_read_is_no_answer() -> None:
    async with (
        liar({"/api/version": b'{"version":' + DEEP + b"}"}).running() as lying,
        ScriptedInstance().running() as honest,
        balancing(lying, honest, up=1) as running,
    ):
        await until(lambda: running.balancer.fleet.instances()[1].usable)

        assert running.balancer.fleet.instances()[0].health.state is not HealthState.UP
        assert running.logged("probe_failed") == []
