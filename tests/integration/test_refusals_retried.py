"""Error answers that another instance may do better than are tried there; others go through as they are."""

import asyncio
from collections.abc import Sequence

import pytest

from balancer.core.ticket import InstanceId
from tests.fakes.running_balancer import Running, balancing
from tests.fakes.scripted_instance import (
    DONE,
    ReadBody,
    Script,
    ScriptedInstance,
    SeenRequest,
    Send,
    chunked,
    head,
    whole,
)

GENERATE = {"model": "m", "prompt": "hi"}
CRASH = "an error was encountered while running the model: unexpected EOF"
ENDED = "llama-server process no longer running: unknown "
FULL = "server busy, please try again.  maximum pending requests exceeded"
QUIET = {"interval_seconds": 3600}

ELSEWHERE: dict[str, tuple[int, str, str]] = {
    "busy": (503, FULL, "busy"),
    "not there": (404, "model 'm' not found", "model_missing"),
    "out of memory": (500, "model requires more system memory (9 GiB) than is available (3 GiB)", "oom"),
    "running one crashed": (500, CRASH, "crash"),
    "waiting one crashed": (500, ENDED, "crash"),
    "embedding crashed": (
        400,
        'do embedding request: Post \\"http://127.0.0.1:1/v1/embeddings\\": EOF',
        "crash",
    ),
    "would not load": (500, "llama-server process has terminated: signal: killed", "load"),
    "unknown": (500, "nobody has seen this", "status"),
    "gateway": (502, "bad gateway", "status"),
}
AS_IT_IS: dict[str, tuple[int, str]] = {
    "option": (500, 'option \\"num_ctx\\" must be of type integer'),
    "format": (500, 'invalid format: \\"xml\\"; expected \\"json\\" or a valid JSON Schema object'),
    "template": (500, "template: :1: unclosed action"),
    "no embedder": (501, "This server does not support embeddings. Start it with `--embeddings`"),
    "too long": (400, "the input length exceeds the context length"),
    "unknown path": (404, "404 page not found"),
    "forbidden": (403, "ollama cloud is disabled"),
}


def error(status: int, text: str) -> Script:
    return (ReadBody(), Send(whole(b'{"error":"%b"}' % text.encode(), status=status)))


def refuse(instances: Sequence[ScriptedInstance], script: Script, *, times: int) -> None:
    """The first so many requests, wherever they come, are answered so; all others well."""
    seen: list[SeenRequest] = []

    def answer(request: SeenRequest) -> Script:
        seen.append(request)
        return script if len(seen) <= times else (ReadBody(), Send(chunked(DONE)))

    for each in instances:
        each.otherwise = answer


def counted(running: Running, name: str, **labels: str) -> float:
    return running.balancer.metrics.registry.get_sample_value(f"balancer_{name}_total", labels) or 0.0


@pytest.mark.parametrize("row", ELSEWHERE)
async def test_refusal_of_one_instance_is_made_good_by_another(row: str) -> None:
    status, text, kind = ELSEWHERE[row]
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, health=QUIET) as running,
    ):
        refuse((one, two), error(status, text), times=1)

        answer = await running.ask("/api/generate", GENERATE)

        assert (answer.status, answer.chunks) == (200, (DONE,))
        assert answer.header("x-balancer-attempts") == "2"
        assert [len(one.requests), len(two.requests)] == [1, 1]
        assert one.requests[0].body == two.requests[0].body
        assert counted(running, "retries", reason=kind) == 1


@pytest.mark.parametrize("row", AS_IT_IS)
async def test_refusal_of_the_request_itself_is_told_at_once(row: str) -> None:
    status, text = AS_IT_IS[row]
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, health=QUIET, circuit_breaker={"threshold": 1}) as running,
    ):
        refuse((one, two), error(status, text), times=99)

        answers = [await running.ask("/api/generate", GENERATE) for _ in range(3)]

        assert [each.status for each in answers] == [status] * 3
        assert {each.body for each in answers} == {b'{"error":"%b"}' % text.encode()}
        assert len(one.requests) + len(two.requests) == 3
        for each in running.balancer.fleet.instances():
            assert each.breakers.models == set()


@pytest.mark.parametrize("row", ELSEWHERE)
async def test_last_refusal_of_all_is_told_byte_for_byte(row: str) -> None:
    status, _, _ = ELSEWHERE[row]
    body = b'{"error":"%b", "odd" : [ ]}\n' % ELSEWHERE[row][1].encode()
    refusal = head(status, "Content-Type: application/json", "X-Odd: one", f"Content-Length: {len(body)}")
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, health=QUIET) as running,
    ):
        refuse((one, two), (ReadBody(), Send(refusal + body)), times=99)

        answer = await running.ask("/api/generate", GENERATE)

        assert (answer.status, answer.body, answer.header("x-odd")) == (status, body, "one")
        assert [len(one.requests), len(two.requests)] == [1, 1]
        assert (answer.header("retry-after") is not None) == (status == 503)


async def test_request_is_sent_to_each_instance_at_most_once() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        ScriptedInstance().running() as three,
        balancing(one, two, three, health=QUIET, each={"slots": 4}) as running,
    ):
        refuse((one, two, three), error(503, FULL), times=99)

        answers = await asyncio.gather(
            *(running.ask("/api/generate", {**GENERATE, "number": number}) for number in range(4))
        )

        assert {each.status for each in answers} <= {503}
        for each in (one, two, three):
            bodies = [seen.body for seen in each.requests]
            assert len(bodies) == len(set(bodies))


async def test_spent_budget_lets_the_refusal_through_and_is_counted() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, health=QUIET, circuit_breaker={"enabled": False}) as running,
    ):
        refuse((one, two), error(500, CRASH), times=999)

        answers = [await running.ask("/api/generate", GENERATE) for _ in range(4)]
        assert [each.header("x-balancer-attempts") for each in answers] == ["2", "2", "2", "1"]

        assert answers[-1].body == b'{"error":"%b"}' % CRASH.encode()
        assert counted(running, "retries", reason="crash") == 3
        assert counted(running, "retries_refused") == 1


async def test_busy_instance_costs_no_budget() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, health=QUIET) as running,
    ):
        one.otherwise = lambda _request: error(503, FULL)

        answers = [await running.ask("/api/generate", GENERATE) for _ in range(8)]

        assert [each.status for each in answers] == [200] * 8
        assert counted(running, "retries_refused") == 0


async def test_instance_that_says_it_is_full_is_left_alone_for_a_moment() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, health=QUIET) as running,
    ):
        refuse((one, two), error(503, FULL), times=1)
        assert (await running.ask("/api/generate", GENERATE)).header("x-balancer-attempts") == "2"
        full = next(
            each
            for each in running.balancer.fleet.instances()
            if each.paused_until(running.balancer.clock.monotonic()) is not None
        )

        answer = await running.ask("/api/generate", GENERATE)

        assert answer.header("x-balancer-instance") != full.id
        assert full.breakers.models == set()


async def test_model_that_is_missing_at_one_instance_is_held_back_there_alone() -> None:
    async with (
        ScriptedInstance("m", "n").running() as one,
        ScriptedInstance("m", "n").running() as two,
        balancing(one, two, strategy="round_robin", health=QUIET) as running,
    ):
        one.otherwise = lambda _request: error(404, "model 'm' not found")

        answers = [await running.ask("/api/generate", GENERATE) for _ in range(6)]
        assert [each.status for each in answers] == [200] * 6
        assert len(one.requests) == 1

        one.otherwise = lambda _request: (ReadBody(), Send(whole(DONE.strip())))
        running.balancer.drain(InstanceId("b"), True)
        assert (await running.ask("/api/generate", {**GENERATE, "model": "n"})).status == 200
        held_back = await running.ask("/api/generate", GENERATE)
        assert held_back.status == 503
        assert "model 'm' not found" in held_back.json["error"]
        assert 50 < int(held_back.header("retry-after") or 0) <= 60
