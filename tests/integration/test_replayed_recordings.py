"""Recorded answers of a real server, played again through the balancer, arrive as they were recorded.

What the balancer answers itself is listed in `OWN`, with the reason; everything else must reach the
instance byte for byte and come back so, chunk by chunk.
"""

import base64
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.raw_client import Answer
from tests.fakes.running_balancer import Running, balancing
from tests.fakes.scripted_instance import END, ScriptedInstance, Send, Step, Turn, chunk

RECORDINGS = Path(__file__).parent.parent / "recordings" / "exchanges.jsonl"
pytestmark = [
    pytest.mark.both_sinks,
    pytest.mark.skipif(not RECORDINGS.exists(), reason="no recordings of a real server at hand"),
]

# For the listener: what is malformed, what a browser asks, what a Host header names.
NOT_FOR_RELAYING = ("malformed/*", "host/*", "origin/*", "preflight/*")

# The names of exchanges that the balancer answers itself, as patterns, with the reason.
OWN = {
    "query/get /": "says itself that it runs",
    "query/head /": "says itself that it runs",
    "query/* /api/version": "the lowest version of all instances",
    "query/* /api/tags": "the models of all instances",
    "query/get /api/ps*": "the runners of all instances",
    "query/get /v1/models*": "the models of all instances",
    "models/*": "the models of all instances",
    "connection close": "the lowest version of all instances",
    "options without origin": "has an answer of its own for browsers",
    "v1 messages/count tokens": "estimates where Ollama has no such route",
    "blobs/bad digest": "a path that no instance needs to see",
    "blobs/create with bad digest": "a path that no instance needs to see",
    "create/bad name": "there is no model of such a name to place",
    "pull/bad name": "there is no model of such a name to place",
    "delete/a b": "there is no model of such a name to place",
    "refused/empty model *": "there is no model to place",
    "refused/bad name *": "there is no model of such a name to place",
    "refused/malformed *": "there is no model to be read",
    "refused/no body *": "there is no model to be read",
    "refused/wrong types *": "there is no model to be read",
    "refused/array": "there is no model to be read",
    "refused/delete without body": "there is no model to be read",
    "refused/method *": "the path has no such method",
    "refused/path *": "there is no such path",
    "refused/trailing slash": "there is no such path; Ollama redirects",
    "refused/post to trailing slash": "there is no such path; Ollama redirects",
    "refused/unknown model /v1/models": "the models of all instances",
    "refused/web *": "would act for the account of one instance",
}

# Of those, the ones that are answered otherwise on purpose, or since the model is listed here.
OTHER_STATUS = {
    "v1 messages/count tokens",
    "refused/trailing slash",
    "refused/post to trailing slash",
    "refused/unknown model /v1/models",
}

# Headers of a connection or of the balancer's own, which say nothing of what was relayed.
OF_NO_MATTER = {"date", "connection", "transfer-encoding", "x-request-id"}


@dataclass(frozen=True)
class Recorded:
    """One exchange, as bytes."""

    name: str
    method: str
    path: str
    body: bytes
    request: bytes
    status: int
    headers: tuple[tuple[str, str], ...]
    framing: str
    chunks: tuple[bytes, ...]
    head: bytes

    @property
    def steps(self) -> tuple[Step, ...]:
        """How it was answered, each chunk in a segment of its own."""
        parts = [chunk(each) for each in self.chunks] if self.framing == "chunked" else self.chunks
        end = (Send(END),) if self.framing == "chunked" else ()
        return (Send(self.head), *(Send(each) for each in parts), *end)


def as_bytes(text: Any) -> bytes:
    return base64.b64decode(text["base64"]) if isinstance(text, dict) else str(text).encode()


def block(first: str, headers: list[list[str]]) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode()


def recorded(line: bytes) -> Recorded:
    exchange = json.loads(line)
    asked, answered = exchange["request"], exchange["response"]
    body = as_bytes(asked["body"])
    sent = chunk(body) + END if ["Transfer-Encoding", "chunked"] in asked["headers"] else body
    return Recorded(
        name=exchange["name"],
        method=asked["method"],
        path=asked["path"],
        body=body,
        request=block(f"{asked['method']} {asked['path']} HTTP/1.1", asked["headers"]) + sent,
        status=answered["status"],
        headers=tuple((name, value) for name, value in answered["headers"]),
        framing=answered["framing"],
        chunks=tuple(as_bytes(each) for each in answered["chunks"]),
        head=block(f"HTTP/1.1 {answered['status']} {answered['reason']}", answered["headers"]),
    )


@cache
def exchanges() -> tuple[Recorded, ...]:
    """All that are for relaying, in the order in which they were recorded."""
    every = (recorded(line) for line in RECORDINGS.read_bytes().splitlines())
    return tuple(each for each in every if not _is_one_of(each, NOT_FOR_RELAYING))


def _is_one_of(exchange: Recorded, patterns: Any) -> bool:
    return any(fnmatchcase(exchange.name, pattern) for pattern in patterns)


def every_model() -> list[str]:
    """Every name that a body gives to a model, so that the instance can list it."""
    names = {"none": True}  # named in a multipart form
    for exchange in exchanges():
        try:
            body = json.loads(exchange.body)
        except ValueError:
            continue
        named = [body.get(key) for key in ("model", "name", "source")] if isinstance(body, dict) else []
        names |= {name: True for name in named if isinstance(name, str) and name}
    return list(names)


async def replay(running: Running, exchange: Recorded) -> Answer:
    async with running.client() as client:
        await client.send(exchange.request)
        return await client.answer(method=exchange.method)


def that_matter(headers: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    lowered = ((name.casefold(), value) for name, value in headers)
    return sorted(
        each for each in lowered if each[0] not in OF_NO_MATTER and not each[0].startswith("x-balancer-")
    )


def differences(exchange: Recorded, answer: Answer, seen: Any) -> dict[str, tuple[object, object]]:
    """What is not as it was recorded: what was expected, and what came."""
    pairs: dict[str, tuple[object, object]] = {
        "status": (exchange.status, answer.status),
        "headers": (that_matter(exchange.headers), that_matter(answer.head.headers)),
        "framing": (exchange.framing, answer.framing),
        "chunks": (exchange.chunks, answer.chunks),
        "end": (True, answer.whole),
        "request": ((exchange.method, exchange.path, exchange.body), (seen.method, seen.target, seen.body)),
    }
    return {what: pair for what, pair in pairs.items() if pair[0] != pair[1]}


@pytest.mark.parametrize("apart", [False, True])
async def test_relayed_exchanges_are_as_they_were_recorded(apart: bool) -> None:
    """`apart`: each chunk is read by itself, as from an instance that makes one token at a time."""
    differing = {}
    relayed = [each for each in exchanges() if not _is_one_of(each, OWN)]
    one = ScriptedInstance()
    # Without lists it is believed to have every model, and none is loaded first.
    one.lies = dict.fromkeys(("/api/tags", "/api/ps"), b"no list")
    async with one.running(), balancing(one) as running:
        for count, exchange in enumerate(relayed, start=1):
            steps = exchange.steps
            one.play(*((each for step in steps for each in (step, Turn())) if apart else steps))
            answer = await replay(running, exchange)
            assert len(one.requests) == count, f"{exchange.name} did not reach the instance"
            if found := differences(exchange, answer, one.requests[-1]):
                differing[exchange.name] = found

    assert differing == {}
    assert len(relayed) > 300


async def test_exchanges_that_need_no_instance_reach_none_and_mean_the_same() -> None:
    differing = []
    own = [each for each in exchanges() if _is_one_of(each, OWN)]
    async with ScriptedInstance(*every_model()).running() as one, balancing(one) as running:
        for exchange in own:
            answer = await replay(running, exchange)
            alike = answer.status // 100 == exchange.status // 100
            if alike is (exchange.name in OTHER_STATUS):
                differing.append((exchange.name, exchange.status, answer.status))
        reached = [each.target for each in one.requests]

    assert differing == []
    assert reached == []


def test_every_reason_to_answer_oneself_is_used() -> None:
    unused = [pattern for pattern in OWN if not any(_is_one_of(each, (pattern,)) for each in exchanges())]

    assert unused == []
