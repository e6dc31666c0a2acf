"""What passes through the whole balancer unchanged, what is added and what is kept back, both ways."""

import asyncio
import re

import pytest

from tests.fakes.raw_client import request
from tests.fakes.running_balancer import balancing
from tests.fakes.scripted_instance import (
    DONE,
    END,
    Close,
    ScriptedInstance,
    Send,
    Turn,
    Wait,
    chunk,
    chunked,
    head,
    whole,
)

pytestmark = pytest.mark.both_sinks

GENERATE = {"model": "m", "prompt": "hi"}
LINES = tuple(b'{"model":"m","response":"%d","done":false}\n' % number for number in range(20))
STREAMED = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
OWN_HEADERS = {"x-request-id", "x-balancer-request"}


async def test_chunks_come_through_as_the_instance_cut_them() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(chunked(*LINES, DONE)))

        answer = await running.ask("/api/generate", GENERATE)

        assert (answer.status, answer.framing, answer.whole) == (200, "chunked", True)
        assert answer.chunks == (*LINES, DONE)
        assert answer.header("content-type") == "application/x-ndjson"


@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_chunks_keep_their_cuts_however_the_segments_fall(step: int) -> None:
    raw = chunked(*LINES[:5], b"x" * 30_000 + b"\n", DONE)
    raw = raw if step > 7 else chunked(*LINES[:5], DONE)
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(*(each for at in range(0, len(raw), step) for each in (Send(raw[at : at + step]), Turn())))

        answer = await running.ask("/api/generate", GENERATE)

        assert answer.whole
        assert answer.chunks[:5] == LINES[:5]
        assert answer.chunks[-1] == DONE
        assert len(answer.chunks) == (7 if step > 7 else 6)


async def test_chunk_too_large_to_hold_comes_through_in_parts() -> None:
    """The bytes are the same; only an HTTP chunk of 64 KiB and more may be cut."""
    large = b'{"response":"' + b"x" * 300_000 + b'"}\n'
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(chunked(LINES[0], large, DONE)))

        answer = await running.ask("/api/generate", GENERATE)

        assert answer.whole
        assert answer.body == LINES[0] + large + DONE
        assert (answer.chunks[0], answer.chunks[-1]) == (LINES[0], DONE)


async def test_unary_answer_keeps_its_length() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(whole(DONE.strip())))

        answer = await running.ask("/api/generate", {**GENERATE, "stream": False})

        assert (answer.framing, answer.body) == ("length", DONE.strip())


async def test_unary_answer_that_is_chunked_stays_chunked() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(chunked(b'{"embeddings":[', b"[1]]}", content_type="application/json")))

        answer = await running.ask("/api/embed", {"model": "m", "input": "hi"})

        assert answer.chunks == (b'{"embeddings":[', b"[1]]}")


async def test_body_that_ends_with_the_connection_comes_through_whole() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(head(200, "Content-Type: application/json") + b'{"a":1}'), Close())

        answer = await running.ask("/api/show", {"model": "m"})

        assert (answer.status, answer.body, answer.whole) == (200, b'{"a":1}', True)


@pytest.mark.parametrize("status", [200, 201, 202, 400, 401, 404, 418, 429, 500, 501, 503])
async def test_status_and_body_of_every_kind_of_answer_come_through(status: int) -> None:
    """What an instance answers is its word: only the lack of an answer is tried elsewhere."""
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(whole(b'{"error":"so it is"}', status=status)))

        answer = await running.ask("/api/chat", {"model": "m", "messages": []})

        assert (answer.status, answer.body) == (status, b'{"error":"so it is"}')
        assert len(one.requests) == 1


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_come_through_without(status: int) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(head(status)))
        async with running.client() as client:
            await client.send(request("/api/show", {"model": "m"}))
            answer = await client.answer()
            await client.send(request("/", method="GET"))
            following = await client.answer()

        assert answer.status == status
        assert answer.header("transfer-encoding") is None
        assert following.body == b"Ollama is running"


# -- time


async def test_head_comes_through_before_any_of_the_body() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        go_on = asyncio.Event()
        one.play(Send(STREAMED), Wait(go_on), Send(chunk(DONE) + END))
        async with running.client() as client:
            await client.send(request("/api/generate", GENERATE))

            opening = await client.head()

            go_on.set()
            assert (await client.body_of(opening)).chunks == (DONE,)


async def test_each_chunk_comes_through_before_the_next_is_there() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        turns = [asyncio.Event() for _ in LINES]
        steps = [
            each for line, turn in zip(LINES, turns, strict=True) for each in (Send(chunk(line)), Wait(turn))
        ]
        one.play(Send(STREAMED), *steps, Send(chunk(DONE) + END))
        async with running.client() as client:
            await client.send(request("/api/generate", GENERATE))
            await client.head()
            for line, turn in zip(LINES, turns, strict=True):
                assert await client.chunk() == line
                turn.set()

            assert await client.chunk() == DONE
            assert await client.chunk() is None


async def test_bytes_of_an_unchunked_body_are_not_held_back() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        go_on = asyncio.Event()
        opening = head(200, "Content-Type: application/json", "Content-Length: 10")
        one.play(Send(opening + b"[1,2"), Wait(go_on), Send(b",3,45]"))
        async with running.client() as client:
            await client.send(request("/api/show", {"model": "m"}))
            await client.head()

            assert await client._exactly(4) == b"[1,2"
            go_on.set()
            assert await client._exactly(6) == b",3,45]"


# -- headers


async def test_headers_of_the_instance_come_through_but_those_of_its_connection() -> None:
    lines = ("X-Custom: a", "X-Custom: b", "Cache-Control: no-store", "Date: Sat, 01 Jan 2000 00:00:00 GMT",
             "Vary: X", "Keep-Alive: timeout=5", "Connection: keep-alive, X-Private", "X-Private: 1",
             "Proxy-Authenticate: Basic", "X-Balancer-Instance: forged", "X-Text: Grüße")  # fmt: skip
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(whole(DONE.strip(), *(line.encode().decode("latin-1") for line in lines))))

        answer = await running.ask("/api/show", {"model": "m"})

        told = [(name.casefold(), value) for name, value in answer.head.headers]
        own = OWN_HEADERS | {name for name, _ in told if name.startswith("x-balancer-")}
        assert [each for each in told if each[0] not in own] == [
            ("content-type", "application/json; charset=utf-8"),
            ("x-custom", "a"),
            ("x-custom", "b"),
            ("cache-control", "no-store"),
            ("date", "Sat, 01 Jan 2000 00:00:00 GMT"),
            ("vary", "X"),
            ("x-text", "Grüße"),
            ("content-length", str(len(DONE.strip()))),
        ]
        assert answer.header("x-balancer-instance") == "a"


@pytest.mark.parametrize("content_type", [None, "text/event-stream", "application/json"])
async def test_content_type_is_the_instances_or_none(content_type: str | None) -> None:
    typed = () if content_type is None else (f"Content-Type: {content_type}",)
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(head(200, "Content-Length: 2", *typed) + b"{}"))

        answer = await running.ask("/api/show", {"model": "m"})

        assert answer.header("content-type") == content_type
        assert answer.header("server") is None


async def test_what_identifies_a_caller_or_its_connection_never_goes_to_an_instance() -> None:
    hidden = ("Origin: http://localhost:3000", "Authorization: Bearer secret", "Cookie: a=b", "X-Api-Key: k",
              "Api-Key: k", "Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: 5", "TE: trailers",
              "Proxy-Authorization: Basic x", "Proxy-Connection: close", "X-Balancer-Session: s",
              "Upgrade: h2c", "HTTP2-Settings: x")  # fmt: skip
    shown = ("User-Agent: ollama/0.33", "Accept: application/x-ndjson", "Accept-Encoding: gzip",
             "Content-Type: application/json", "anthropic-version: 2023-06-01",
             "X-Text: Grüße 世界")  # fmt: skip
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await running.ask("/api/generate", GENERATE, *hidden, *shown, "X-Request-ID: mine")

        (seen,) = one.requests
        lines = seen.raw_head.decode().split("\r\n")[:-2]
        assert answer.status == 200
        assert lines == [
            "POST /api/generate HTTP/1.1",
            f"Host: {one.url.removeprefix('http://')}",
            *shown,
            "X-Request-ID: mine",
            f"Content-Length: {len(seen.body)}",
        ]


@pytest.mark.parametrize("asked", ["run-1", "a/b:c=d@e.f+g_h", "x" * 128])
async def test_request_id_goes_to_the_instance_and_back(asked: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await running.ask("/api/generate", GENERATE, f"X-Request-ID: {asked}")

        assert answer.header("x-request-id") == asked
        assert one.requests[0].header("x-request-id") == asked


@pytest.mark.parametrize("asked", ["two words", "x" * 129, "", "a;b", "<script>", "ä"])
async def test_malformed_request_id_is_replaced(asked: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await running.ask("/api/generate", GENERATE, f"X-Request-ID: {asked}")

        given = answer.header("x-request-id") or ""
        assert re.fullmatch(r"[0-9a-f]{32}", given)
        assert one.requests[0].header("x-request-id") == given


async def test_query_goes_to_the_instance_as_it_came() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        await running.ask("/v1/messages?beta=true&x=%20%2F+&x", {"model": "m", "messages": []})

        assert one.requests[0].target == "/v1/messages?beta=true&x=%20%2F+&x"


async def test_body_goes_to_the_instance_byte_for_byte() -> None:
    body = b' {"prompt" : "\\u00e9\xc3\xa9", "model":"M:Latest" , "options":{"seed":1e3} }\n'
    async with ScriptedInstance("m:latest").running() as one, balancing(one) as running:
        await running.ask("/api/generate", body)

        assert one.requests[0].body == body


# -- old clients, and connections kept


async def test_client_of_http_1_0_gets_an_answer_that_ends_with_the_connection() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(chunked(*LINES, DONE)))
        async with running.client() as client:
            await client.send(request("/api/generate", GENERATE, version="1.0"))
            opening = await client.head()

            assert opening.version == "HTTP/1.0"
            assert opening.header("transfer-encoding") is None
            assert opening.header("content-length") is None
            assert await client.rest() == b"".join(LINES) + DONE


async def test_connection_serves_one_request_after_another() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        async with running.client() as client:
            for number in range(10):
                answer_body = b'{"done":true,"n":%d}' % number
                one.play(Send(chunked(answer_body + b"\n") if number % 2 else whole(answer_body)))
                await client.send(request("/api/generate", GENERATE))

                assert (await client.answer()).body.strip() == answer_body

        assert len(one.connections) == 1
