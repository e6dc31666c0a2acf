"""What clients get when real runners and servers are killed, or are too busy to take a request.

The words are those of `m` at temperature 0, which are always the same and go on for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import http, until
from real_ollama import Behind, RealOllama, gate, in_front_of, needs_ollama, serving

pytestmark = needs_ollama

HELLO = [{"role": "user", "content": "hi"}]
WHOLE = ('"done":true', "[DONE]", "message_stop", "response.completed", "response.incomplete")
RUNNER_DIED = "an error was encountered while running the model: unexpected EOF"
BUSY = "server busy, please try again.  maximum pending requests exceeded"


@dataclass(frozen=True, slots=True)
class Talk:
    """How one path is asked; `limit` is the field that bounds the answer, `bounds` where it stands."""

    path: str
    asked: Mapping[str, Any]
    limit: str

    @property
    def native(self) -> bool:
        return self.path.startswith("/api")

    def body(self, tokens: int, *, model: str = "m", stream: bool = False) -> dict[str, Any]:
        """A request for so many tokens."""
        bounds = {"temperature": 0, self.limit: tokens}
        named = {"model": model, "stream": stream, **self.asked}
        return {**named, "options": bounds} if self.native else {**named, **bounds}


TALKS = (
    Talk("/api/chat", {"messages": HELLO}, "num_predict"),
    Talk("/api/generate", {"prompt": "hi"}, "num_predict"),
    Talk("/v1/chat/completions", {"messages": HELLO}, "max_tokens"),
    Talk("/v1/completions", {"prompt": "hi"}, "max_tokens"),
    Talk("/v1/messages", {"messages": HELLO}, "max_tokens"),
    Talk("/v1/responses", {"input": "hi"}, "max_output_tokens"),
)
EMBED = {"/api/embed": "input", "/v1/embeddings": "input", "/api/embeddings": "prompt"}
ENDLESS = 100_000

each_talk = pytest.mark.parametrize("talk", TALKS, ids=lambda talk: talk.path)


@dataclass(slots=True)
class Heard:
    """What a client reads of a stream; `cut` where its body had no proper end."""

    status: int
    headers: Mapping[str, str]
    text: str = ""
    cut: bool = False

    @property
    def id(self) -> str:
        return self.headers["X-Balancer-Request"]

    @property
    def looks_whole(self) -> bool:
        return any(mark in self.text for mark in WHOLE)

    def records(self) -> list[dict[str, Any]]:
        """The records, without the names of events."""
        lines = (line.removeprefix("data: ") for line in self.text.splitlines())
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def rest(self, parts: AsyncIterator[bytes]) -> None:
        """Read on to the end."""
        try:
            async for part in parts:
                self.text += part.decode()
        except httpx.RemoteProtocolError:
            self.cut = True


@contextlib.asynccontextmanager
async def begun(client: httpx.AsyncClient, talk: Talk) -> AsyncIterator[tuple[Heard, AsyncIterator[bytes]]]:
    """An endless answer of which the beginning is there, and what is still to be read of it."""
    async with client.stream("POST", talk.path, json=talk.body(ENDLESS, stream=True)) as stream:
        parts = stream.aiter_raw()
        heard = Heard(stream.status_code, stream.headers)
        heard.text += (await anext(parts)).decode()
        yield heard, parts


def assert_told_to_fail(heard: Heard) -> None:
    """Something was sent, then an error as the last record, and nothing that ends an answer."""
    records = heard.records()
    assert heard.status == 200
    assert not any("error" in each for each in records[:1])
    assert records[-1]["error"]
    assert not heard.looks_whole


async def at_once(client: httpx.AsyncClient, path: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """The answers to these, all asked for at the same time."""
    return await asyncio.gather(*(client.post(path, json=body) for body in bodies))


def words(path: str) -> dict[str, Any]:
    """Enough to embed for a while; the older path takes one text only."""
    text = "word " * 200
    return {"model": "e", EMBED[path]: text if EMBED[path] == "prompt" else [text] * 2}


def load(url: str, *models: str) -> None:
    """Have models loaded at a server."""
    for model in models:
        path = "/api/embed" if model == "e" else "/api/generate"
        assert httpx.post(f"{url}{path}", json={"model": model}, trust_env=False).status_code == 200


@pytest.fixture(scope="module")
def servers(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RealOllama]]:
    """Two servers with one slot a runner, which outlive their runners."""
    folder = tmp_path_factory.mktemp("servers")
    with serving("one", store, folder) as one, serving("two", store, folder) as two:
        yield [one, two]


@contextlib.contextmanager
def warmed(servers: list[RealOllama], folder: Path, *, slots: int | None = None) -> Iterator[Behind]:
    """A balancer with a retry budget that nobody has spent, which finds the models loaded."""
    for server in servers:
        load(server.url, "m", "e")
    with in_front_of(servers, folder, slots=slots) as started:
        yield started


@pytest.fixture
def alone(servers: list[RealOllama], tmp_path: Path) -> Iterator[Behind]:
    """One server with one slot."""
    with warmed(servers[:1], tmp_path) as started:
        yield started


@pytest.fixture
def two(servers: list[RealOllama], tmp_path: Path) -> Iterator[Behind]:
    """Two servers of one slot, of which the balancer believes that they have two: so one request runs
    there and one waits inside, where a dying runner meets both."""
    with warmed(servers, tmp_path, slots=2) as started:
        yield started


@pytest.fixture
def mortal(store: Path, tmp_path: Path) -> Iterator[Behind]:
    """As `two`, with servers of the test's own, so that one can be killed."""
    with (
        serving("one", store, tmp_path) as one,
        serving("two", store, tmp_path) as two,
        warmed([one, two], tmp_path, slots=2) as started,
    ):
        yield started


@each_talk
async def test_answer_of_a_killed_runner_never_looks_whole(alone: Behind, talk: Talk) -> None:
    """Ollama ends such a body properly: with an error of its own on native paths, else with none."""
    async with http(alone.url) as client:
        async with begun(client, talk) as (heard, parts):
            alone.servers[0].kill_runners()
            await heard.rest(parts)
        await until(lambda: alone.outcome(heard.id))
        returned = alone.running()
        after = await client.post(talk.path, json=talk.body(2))

    assert_told_to_fail(heard)
    assert heard.cut is not talk.native
    assert (RUNNER_DIED in heard.text) is talk.native
    assert alone.outcome(heard.id) == ("error_record" if talk.native else "unfinished")
    assert returned == [0]
    assert after.status_code == 200


@each_talk
async def test_answer_of_a_killed_server_never_looks_whole(mortal: Behind, talk: Talk) -> None:
    async with http(mortal.url) as client:
        async with begun(client, talk) as (heard, parts):
            victim = mortal.server(heard.headers)
            victim.kill()
            await heard.rest(parts)
        await until(lambda: mortal.outcome(heard.id))
        returned = mortal.running()
        after = [await client.post(talk.path, json=talk.body(2)) for _ in range(3)]

    assert_told_to_fail(heard)
    assert heard.cut
    assert mortal.outcome(heard.id) == "truncated"
    assert returned == [0, 0]
    assert [each.status_code for each in after] == [200] * 3
    assert victim not in [mortal.server(each.headers) for each in after]


async def test_requests_without_an_answer_leave_a_killed_server(mortal: Behind) -> None:
    """One of its two had begun to run, the other waited inside it."""
    victim, other = mortal.servers
    async with http(mortal.url) as client:
        asked = asyncio.create_task(at_once(client, "/api/chat", [TALKS[0].body(60)] * 4))
        await until(lambda: mortal.running() == [2, 2] and victim.busy_ticks())
        victim.kill()
        answers = await asked

    assert [each.status_code for each in answers] == [200] * 4
    assert all(each.json()["eval_count"] == 60 for each in answers)
    assert {other.url} == {mortal.server(each.headers).url for each in answers}
    assert sorted(each.headers["X-Balancer-Attempts"] for each in answers) == ["1", "1", "2", "2"]


@each_talk
async def test_requests_without_an_answer_leave_a_killed_runner(two: Behind, talk: Talk) -> None:
    """Ollama answers 500 to the one that ran and to the one that waited, in different words."""
    await assert_nobody_met_a_crash(two, talk.path, talk.body(300))


@pytest.mark.parametrize("path", EMBED)
async def test_embeddings_leave_a_killed_runner(two: Behind, path: str) -> None:
    """Ollama answers 400 to most of these, as if the client were to blame. A model that only embeds has one
    slot."""
    await assert_nobody_met_a_crash(two, path, words(path), slots=1)


async def assert_nobody_met_a_crash(two: Behind, path: str, body: dict[str, Any], *, slots: int = 2) -> None:
    """Kill a runner under one of four requests and beside a second, all without a byte of an answer."""
    victim = two.servers[0]
    before = victim.busy_ticks()
    async with http(two.url) as client:
        asked = asyncio.create_task(at_once(client, path, [body] * 4))
        await until(
            lambda: (two.running() == [slots] * 2 and victim.busy_ticks() > before + 2) or asked.done()
        )
        victim.kill_runners()
        answers = await asked
        after = await at_once(client, path, [body] * 2)

    assert [each.text for each in answers + after if each.status_code != 200] == []
    assert "2" in [each.headers["X-Balancer-Attempts"] for each in answers]
    assert two.running() == [0, 0]


@contextlib.asynccontextmanager
async def busy(store: Path, folder: Path) -> AsyncIterator[tuple[RealOllama, Callable[[], None]]]:
    """A server that turns down whatever needs a load: one load does not end, and its one place to wait
    is taken, even after the request in it has left. The balancer has no part in either. With what makes
    room in it."""
    gated = gate(folder / "gate")
    with serving("busy", store, folder, binary=gated.binary, OLLAMA_MAX_QUEUE="1") as server:
        async with http(server.url) as direct, asyncio.TaskGroup() as group:
            loading = group.create_task(direct.post("/api/generate", json={"model": "t"}))
            await until(gated.loads)
            with contextlib.suppress(httpx.ReadTimeout):
                await direct.post("/api/generate", json={"model": "think"}, timeout=0.2)
            refused = await direct.post("/api/generate", json={"model": "think"})
            yield server, gated.open
            gated.open()
    assert (refused.status_code, refused.json()) == (503, {"error": BUSY})
    assert loading.result().status_code == 200


async def test_busy_server_turns_its_requests_over_to_another(store: Path, tmp_path: Path) -> None:
    """The balancer's own load is turned down there, before it lends a slot to anyone."""
    async with busy(store, tmp_path) as (turning_down, _):
        with serving("idle", store, tmp_path) as idle:
            first = json.dumps([{"url": turning_down.url, "weight": 100}, {"url": idle.url}])
            with in_front_of([turning_down, idle], tmp_path, BALANCER_INSTANCES=first) as started:
                async with http(started.url) as client:
                    answers = [await client.post(each.path, json=each.body(2, model="say")) for each in TALKS]
                returned, loads = started.running(), started.loads()

    assert [each.text for each in answers if each.status_code != 200] == []
    assert {idle.url} == {started.server(each.headers).url for each in answers}
    assert "busy" in loads[turning_down.url]
    assert loads[idle.url] == ["ok"]
    assert returned == [0, 0]


async def test_requests_wait_out_a_server_that_is_full(store: Path, tmp_path: Path) -> None:
    """The balancer's own load is turned down until there is room; nobody is told anything of it."""
    async with busy(store, tmp_path) as (turning_down, make_room):
        with in_front_of([turning_down], tmp_path) as started:
            async with http(started.url) as client:
                asked = [
                    asyncio.create_task(client.post(each.path, json=each.body(2, model="say")))
                    for each in TALKS
                ]
                await until(lambda: len(started.loads()[turning_down.url]) >= 2)
                make_room()
                answers = await asyncio.gather(*asked)
                await until(lambda: "ok" in started.loads()[turning_down.url])
            *before, last = started.loads()[turning_down.url]

    assert [each.text for each in answers if each.status_code != 200] == []
    assert (set(before), last) == ({"busy"}, "ok")
