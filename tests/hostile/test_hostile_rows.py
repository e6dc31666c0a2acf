"""Every row of hostile input, sent whole, cut in two and byte by byte: one answer, and nothing smuggled."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from balancer.core.operation import Dialect
from tests.fakes.raw_client import Answer
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import ScriptedInstance, SeenRequest
from tests.hostile.rows import BODY_LIMIT, Row, Told
from tests.hostile.table import TABLE
from tests.hostile.talk import talk

CONFIGURATIONS: dict[str, dict[str, Any]] = {"fast": {}, "plain": {"fast_path": False}}
"""Settings under each of which every row is answered alike, by what they are called in the test's name."""

UNPARSED = ["01-length-then-chunked", "16-9-KB", "17-9-KB", "20-1-MB"]
_OF_ONE_ANSWER = frozenset({"date", "x-request-id", "x-balancer-request", "x-balancer-queue-ms"})

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Scene:
    """One balancer for all rows, and the instance behind it."""

    instance: ScriptedInstance
    running: Running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=CONFIGURATIONS)
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    limits = {"body_bytes": BODY_LIMIT, "body_idle_seconds": 2}
    settings = {"limits": limits, **CONFIGURATIONS[request.param]}
    async with ScriptedInstance().running() as one, balancing(one, **settings) as running:
        yield Scene(one, running)


@pytest.mark.parametrize("row", TABLE, ids=[row.id for row in TABLE])
async def test_row_is_answered_as_it_must_be_however_it_is_cut(scene: Scene, row: Row) -> None:
    whole = await _outcome(scene, row, (row.sent,))

    _check(row, whole)
    for pieces in row.cut():
        came = await _outcome(scene, row, pieces)
        assert came == whole, f"in {len(pieces)} pieces, the first of {len(pieces[0])} bytes"


async def test_every_row_has_a_name_of_its_own() -> None:
    assert len({row.id for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("row", [row for row in TABLE if row.id in UNPARSED], ids=UNPARSED)
async def test_refusal_of_what_cannot_be_parsed_is_dressed_as_any_other(scene: Scene, row: Row) -> None:
    heard = await talk(scene.running.address, (row.sent,), row.told)

    (answer,) = heard.answers
    assert answer.header("x-request-id")
    assert answer.header("connection") == "close"
    assert answer.header("server") is None
    assert answer.head.version == "HTTP/1.1"


# -- sending


@dataclass(frozen=True)
class Outcome:
    """What came of a row: its answers without what is of one answer alone, whether the connection served
    on, and what the instance saw."""

    answers: tuple[tuple[int, tuple[tuple[str, str], ...], bytes], ...]
    served_on: bool
    seen: tuple[tuple[str, bytes, tuple[str, ...]], ...]
    heard: tuple[Answer, ...] = field(compare=False)


async def _outcome(scene: Scene, row: Row, pieces: tuple[bytes, ...]) -> Outcome:
    """Send it, and hold what came to all that holds for every row."""
    before = len(scene.instance.requests)
    heard = await talk(scene.running.address, pieces, row.told)
    await until(lambda: scene.running.idle, "a balancer with nothing under way")
    _check_log(scene.running)
    for answer in heard.answers:
        _check_answer(answer, scene.instance)
    return Outcome(
        tuple(map(_comparable, heard.answers)),
        heard.served_on,
        tuple(map(_seen, scene.instance.requests[before:])),
        heard.answers,
    )


def _comparable(answer: Answer) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
    headers = sorted((name.casefold(), value) for name, value in answer.head.headers)
    own_id = (answer.header("x-request-id") or "").encode()
    body = answer.body.replace(own_id, b"ID") if own_id else answer.body
    return answer.status, tuple(each for each in headers if each[0] not in _OF_ONE_ANSWER), body


def _seen(request: SeenRequest) -> tuple[str, bytes, tuple[str, ...]]:
    names = tuple(sorted(name.casefold() for name, _ in request.headers))
    return f"{request.method} {request.target}", request.body, names


# -- what holds for every answer, and for this row


def _check_answer(answer: Answer, instance: ScriptedInstance) -> None:
    if answer.status < 400 or not answer.body:
        return
    assert answer.framing == "length"
    assert (answer.header("content-type") or "").startswith("application/json")
    assert b"Traceback" not in answer.body
    assert instance.url.rpartition(":")[2].encode() not in answer.body


def _check_log(running: Running) -> None:
    """Every event is one line of JSON, and none is of a defect of ours."""
    events = [json.loads(line)["event"] for line in running.log_text.getvalue().splitlines()]
    running.log_text.seek(0)
    running.log_text.truncate()
    assert "request_failed" not in events


def _check(row: Row, outcome: Outcome) -> None:
    assert len(outcome.heard) == len(row.told), outcome.heard
    for answer, told in zip(outcome.heard, row.told, strict=True):
        assert answer.status in told.statuses, answer
        assert [name for name in told.lacks if answer.header(name) is not None] == []
        for name, value in told.headers:
            assert answer.header(name) == value
        if answer.status >= 400 and not told.bodiless:
            _check_error(told, answer.json)
    if row.closes is not None:
        assert outcome.served_on is not row.closes
    _check_upstream(row, outcome)


def _check_error(told: Told, error: Any) -> None:
    match told.dialect:
        case Dialect.OPENAI:
            assert error["error"].keys() == {"message", "type", "param", "code"}
            message = error["error"]["message"]
        case Dialect.ANTHROPIC:
            assert error.keys() == {"type", "error", "request_id"}
            message = error["error"]["message"]
        case _:
            assert error.keys() == {"error"}
            message = error["error"]
    assert message
    assert told.says in message


def _check_upstream(row: Row, outcome: Outcome) -> None:
    assert [f"POST {each.target}" for each in row.upstream] == [line for line, _, _ in outcome.seen]
    for wanted, (_, body, names) in zip(row.upstream, outcome.seen, strict=True):
        assert wanted.body == body
        assert not set(names) & set(wanted.lacks)
