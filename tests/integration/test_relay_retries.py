"""Requests whose instance fails before an answer began are tried elsewhere; none is told twice."""

import asyncio
import json
from typing import Any

import pytest

from balancer.core.ticket import InstanceId
from tests.fakes.raw_client import Answer, request
from tests.fakes.running_balancer import balancing, until
from tests.fakes.scripted_instance import (
    DONE,
    Close,
    ReadBody,
    Reset,
    Script,
    ScriptedInstance,
    SeenRequest,
    Send,
    Stall,
    Turn,
    chunk,
    chunked,
    head,
    whole,
)

pytestmark = pytest.mark.both_sinks

GENERATE = {"model": "m", "prompt": "hi"}
FAILURES: dict[str, Script] = {
    "closed before it read": (Close(),),
    "closed before its head": (ReadBody(), Close()),
    "reset before its head": (ReadBody(), Reset()),
    "closed inside its head": (ReadBody(), Send(b"HTTP/1.1 200 OK\r\nContent-"), Turn(), Close()),
    "no HTTP": (ReadBody(), Send(b"SSH-2.0-OpenSSH\r\n")),
    "unclear framing": (ReadBody(), Send(head(200, "Content-Length: 1", "Content-Length: 2"))),
    "endless head": (ReadBody(), Send(b"HTTP/1.1 200 OK\r\nX-A: " + b"x" * 70_000)),
}


def fails_first(failure: Script, *others: ScriptedInstance) -> None:
    """Whichever of them is asked first fails so; the next one answers."""
    asked: list[SeenRequest] = []

    def answer(seen: SeenRequest) -> Script:
        asked.append(seen)
        return failure if len(asked) == 1 else (ReadBody(), Send(chunked(DONE)))

    for each in others:
        each.otherwise = answer


def error_of(path: str, answer: Answer) -> str:
    """The message of an error body, whose shape is that of the path's dialect."""
    told: dict[str, Any] = answer.json
    if path.startswith("/api/"):
        assert set(told) == {"error"}
        return str(told["error"])
    if path == "/v1/messages":
        assert told["type"] == "error"
        assert told["request_id"] == answer.header("x-request-id")
    else:
        assert set(told["error"]) == {"message", "type", "param", "code"}
    assert told["error"]["type"] == "api_error"
    return str(told["error"]["message"])


@pytest.mark.parametrize("failure", FAILURES)
async def test_request_without_an_answer_is_tried_on_another_instance(failure: str) -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two) as running,
    ):
        fails_first(FAILURES[failure], one, two)

        answer = await running.ask("/api/generate", GENERATE)

        assert (answer.status, answer.chunks) == (200, (DONE,))
        assert answer.header("x-balancer-attempts") == "2"
        assert len(one.requests) == len(two.requests) == 1
        served = two if one.requests[0].connection.closed.is_set() else one
        assert served.requests[0].body == json.dumps(GENERATE).encode()


async def test_refused_connection_is_tried_elsewhere_and_marks_the_instance_down() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, strategy="weighted_round_robin", health={"interval_seconds": 3600}) as running,
    ):
        one.refuse()

        answers = [await running.ask("/api/generate", GENERATE) for _ in range(4)]

        assert [each.status for each in answers] == [200] * 4
        attempts = sorted(each.header("x-balancer-attempts") or "" for each in answers)
        assert attempts == ["1", "1", "1", "2"]
        assert {each.header("x-balancer-instance") for each in answers} == {"b"}
        assert not running.balancer.fleet.get(InstanceId("a")).usable


@pytest.mark.parametrize(
    "path", ["/api/generate", "/api/chat", "/api/show", "/v1/chat/completions", "/v1/messages"]
)
@pytest.mark.parametrize("failure", ["closed before its head", "no HTTP"])
async def test_failure_of_every_instance_is_told_in_the_dialect(path: str, failure: str) -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two) as running,
    ):
        one.otherwise = two.otherwise = lambda _request: FAILURES[failure]

        answer = await running.ask(path, {"model": "m", "messages": [], "prompt": "hi"})

        assert (answer.status, answer.whole) == (502, True)
        assert answer.header("content-type") == "application/json; charset=utf-8"
        assert error_of(path, answer)
        assert len(one.requests) == len(two.requests) == 1


async def test_no_instance_that_accepts_is_told_as_502() -> None:
    async with (
        ScriptedInstance().running() as one,
        balancing(one, health={"interval_seconds": 3600}) as running,
    ):
        one.refuse()

        answer = await running.ask("/api/generate", GENERATE)

        assert answer.status == 502
        assert error_of("/api/generate", answer) == "the instance refused the connection"


async def test_failure_tells_no_address() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Close())

        answer = await running.ask("/api/generate", GENERATE)

        assert answer.status == 502
        assert "127.0.0.1" not in answer.body.decode()


async def test_answer_that_began_is_never_tried_again() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two) as running,
    ):
        opening = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
        fails_first((ReadBody(), Send(opening + chunk(b'{"done":false}\n')), Turn(), Close()), one, two)

        answer = await running.ask("/api/generate", GENERATE)

        assert (answer.status, answer.whole) == (200, False)
        assert len(one.requests) + len(two.requests) == 1


async def test_error_status_that_every_instance_gives_is_the_answer() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two) as running,
    ):
        for each in (one, two):
            each.play(Send(whole(b'{"error":"broken"}', status=500)))

        answer = await running.ask("/api/generate", GENERATE)

        assert (answer.status, answer.json) == (500, {"error": "broken"})
        assert [len(one.requests), len(two.requests)] == [1, 1]


async def test_retry_goes_ahead_of_those_that_came_later() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, health={"interval_seconds": 3600}) as running,
    ):
        one.otherwise = two.otherwise = lambda _request: (ReadBody(), Stall())
        async with running.client() as first, running.client() as second, running.client() as third:
            for number, client in enumerate((first, second, third)):
                await client.send(request("/api/generate", {**GENERATE, "number": number}))
                await until(lambda: len(running.balancer.ledger.live()) == number + 1)  # noqa: B023
            await until(lambda: len(one.requests) + len(two.requests) == 2)
            at_first = one if b'"number": 0' in one.requests[0].body else two
            other = two if at_first is one else one
            other.play(Send(whole(b'{"second":true}')))
            other.otherwise = lambda seen: (ReadBody(), Send(whole(seen.body)))
            at_first.refuse()

            at_first.requests[0].connection.reset()
            await until(lambda: len(running.balancer.queue) == 2)
            other.requests[0].connection.reset()
            answers = [await client.answer() for client in (first, second, third)]

        assert [each.status for each in answers] == [200, 502, 200]
        assert [b'"number": 0' in each.body for each in other.requests] == [False, True, False]


async def test_hung_instance_that_is_judged_down_gives_its_waiting_request_away() -> None:
    """It accepts and never answers, its probes neither; the request moves without the client's doing."""
    health = {"interval_seconds": 0.1, "timeout_seconds": 0.1, "unhealthy_threshold": 2}
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, health=health) as running,
    ):
        one.otherwise = two.otherwise = lambda _request: (ReadBody(), Stall())
        async with running.client() as client:
            await client.send(request("/api/generate", GENERATE))
            await until(lambda: one.requests or two.requests)
            hung, sane = (one, two) if one.requests else (two, one)
            sane.otherwise = lambda _request: (ReadBody(), Send(chunked(DONE)))
            hung.hanging = True

            answer = await client.answer()

        assert (answer.status, answer.chunks) == (200, (DONE,))
        assert answer.header("x-balancer-attempts") == "2"
        await asyncio.wait_for(hung.requests[0].connection.closed.wait(), 20)
