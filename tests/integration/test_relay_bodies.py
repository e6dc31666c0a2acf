"""Request bodies: how they may come, what they are bounded by, and what of them reaches an instance."""

import asyncio
import gzip
import json
import tracemalloc

import pytest
import zstandard

from tests.fakes.raw_client import Answer, RawClient, request
from tests.fakes.running_balancer import balancing
from tests.fakes.scripted_instance import (
    DONE,
    ScriptedInstance,
    Send,
    Stall,
    Wait,
    chunk,
    chunked,
    head,
    whole,
)

pytestmark = pytest.mark.both_sinks

GENERATE = {"model": "m", "prompt": "hi"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
SMALL = {"body_bytes": "4KiB"}
DIGEST = "sha256:" + "0" * 64
CHUNKED = "Transfer-Encoding: chunked"
END = b"0\r\n\r\n"


def large(size: int) -> bytes:
    return json.dumps({**GENERATE, "prompt": "x" * size}).encode()


async def ended(client: RawClient) -> bool:
    """Whether the balancer closes the connection."""
    return await client.rest() == b""


# -- forms


async def test_client_that_waits_to_be_asked_for_the_body_is_asked() -> None:
    body = json.dumps(GENERATE).encode()
    async with ScriptedInstance().running() as one, balancing(one) as running, running.client() as client:
        await client.send(
            request("/api/generate", None, "Expect: 100-continue", f"Content-Length: {len(body)}")
        )
        interim = await client.head()
        await client.send(body)
        answer = await client.answer()

        assert (interim.status, interim.headers) == (100, ())
        assert answer.status == 200
        assert one.requests[0].body == body
        assert one.requests[0].header("expect") is None


async def test_client_that_waits_to_be_asked_is_not_asked_for_what_is_refused() -> None:
    lines = ("Expect: 100-continue", "Content-Length: 5000")
    async with ScriptedInstance().running() as one, balancing(one, limits=SMALL) as running:
        answer = await running.ask("/api/generate", None, *lines)

        assert answer.status == 413
        assert one.requests == []


async def test_client_of_http_1_0_is_sent_no_interim_head() -> None:
    body = json.dumps(GENERATE).encode()
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await running.ask("/api/generate", body, "Expect: 100-continue", version="1.0")

        assert answer.status == 200


@pytest.mark.parametrize("step", [1, 10, 10_000])
async def test_chunked_body_goes_to_the_instance_in_one_piece(step: int) -> None:
    body = json.dumps(GENERATE).encode()
    pieces = b"".join(chunk(body[at : at + step]) for at in range(0, len(body), step))
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await running.ask("/api/generate", pieces + END, CHUNKED)

        (seen,) = one.requests
        assert answer.status == 200
        assert (seen.body, seen.header("content-length")) == (body, str(len(body)))
        assert seen.header("transfer-encoding") is None


@pytest.mark.parametrize("requests_in_one_read", [1, 3])
async def test_body_may_come_in_chunks_of_one_byte(requests_in_one_read: int) -> None:
    body = large(40_000)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + END
    head = request("/api/generate", None, CHUNKED)
    async with ScriptedInstance().running() as one, balancing(one) as running, running.client() as client:
        await client.send((head + chunks) * requests_in_one_read)
        answers = [await client.answer() for _ in range(requests_in_one_read)]

        assert [answer.status for answer in answers] == [200] * requests_in_one_read
        assert [each.body for each in one.requests] == [body] * requests_in_one_read


async def test_body_that_stands_still_is_told_408() -> None:
    limits = {"body_idle_seconds": 0.1}
    async with (
        ScriptedInstance().running() as one,
        balancing(one, limits=limits) as running,
        running.client() as client,
    ):
        await client.send(request("/api/generate", b'{"model":', "Content-Length: 100"))

        answer = await client.answer()

        assert (answer.status, answer.header("connection")) == (408, "close")
        assert one.requests == []


# -- codings


@pytest.mark.parametrize("path", ["/api/pull", "/api/show", "/v1/messages/count_tokens"])
async def test_coding_that_is_not_read_is_told_on_every_path(path: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await running.ask(path, gzip.compress(b'{"model":"m"}'), "Content-Encoding: gzip")

        assert (answer.status, one.requests) == (415, [])


async def test_tokens_of_a_zstd_body_are_estimated_too() -> None:
    plain = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello there"}]}).encode()
    async with ScriptedInstance().running() as one, balancing(one) as running:
        path = "/v1/messages/count_tokens"
        counts = [
            await running.ask(path, plain),
            await running.ask(path, zstandard.compress(plain), "Content-Encoding: zstd"),
        ]

        assert [each.status for each in counts] == [200, 200]
        assert counts[0].json == counts[1].json


async def test_zstd_body_goes_to_the_instance_as_it_came() -> None:
    body = zstandard.compress(json.dumps(CHAT).encode())
    async with ScriptedInstance("m").running() as one, balancing(one) as running:
        answer = await running.ask("/v1/chat/completions", body, "Content-Encoding: zstd")

        (seen,) = one.requests
        assert answer.status == 200
        assert (seen.body, seen.header("content-encoding")) == (body, "zstd")
        assert running.logged("request_finished")[-1]["model"] == "m:latest"


async def test_model_in_a_zstd_body_is_looked_for() -> None:
    body = zstandard.compress(json.dumps({**CHAT, "model": "other"}).encode())
    async with ScriptedInstance("m").running() as one, balancing(one) as running:
        answer = await running.ask("/v1/chat/completions", body, "Content-Encoding: zstd")

        assert answer.status == 404
        assert one.requests == []


async def test_zstd_bomb_is_refused() -> None:
    body = zstandard.compress(b"[" * 100_000_000)
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await running.ask("/v1/chat/completions", body, "Content-Encoding: zstd")

        assert len(body) < 100_000
        assert answer.status == 413
        assert one.requests == []


@pytest.mark.parametrize("body", [b"no zstd", zstandard.compress(json.dumps(CHAT).encode())[:-9]])
async def test_body_that_is_no_whole_zstd_is_refused(body: bytes) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await running.ask("/v1/chat/completions", body, "Content-Encoding: zstd")

        assert answer.status == 400
        assert one.requests == []


@pytest.mark.parametrize(
    ("path", "coding"),
    [
        ("/api/chat", "zstd"),
        ("/api/generate", "gzip"),
        ("/v1/chat/completions", "gzip"),
        ("/v1/messages", "br"),
        ("/v1/chat/completions", "zstd, gzip"),
    ],
)
async def test_coding_that_is_not_read_on_a_path_is_refused(path: str, coding: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await running.ask(path, CHAT, f"Content-Encoding: {coding}")

        assert answer.status == 415
        assert one.requests == []


# -- bounds


def is_refused(answer: Answer) -> bool:
    return answer.status == 413 and "larger than 4096 bytes" in answer.json["error"]


async def test_body_beyond_the_limit_is_refused_by_its_length() -> None:
    async with ScriptedInstance().running() as one, balancing(one, limits=SMALL) as running:
        async with running.client() as client:
            await client.send(request("/api/generate", None, "Content-Length: 4097"))

            answer = await client.answer()

            assert is_refused(answer)
            assert answer.header("connection") == "close"
            await client.send(b"x" * 4097)
            assert await ended(client)
        assert one.requests == []


async def test_chunked_body_beyond_the_limit_is_refused_as_it_comes() -> None:
    async with ScriptedInstance().running() as one, balancing(one, limits=SMALL) as running:
        async with running.client() as client:
            await client.send(request("/api/generate", chunk(large(4097)), CHUNKED))

            assert is_refused(await client.answer())
            await client.send(END)
            assert await ended(client)
        assert one.requests == []


async def test_body_at_the_limit_passes() -> None:
    body = large(4096 - len(large(0)))
    async with ScriptedInstance().running() as one, balancing(one, limits=SMALL) as running:
        by_length = await running.ask("/api/generate", body)
        by_chunks = await running.ask("/api/generate", chunk(body) + END, CHUNKED)

        assert (len(body), by_length.status, by_chunks.status) == (4096, 200, 200)


@pytest.mark.parametrize("chunks", [False, True])
async def test_bodies_beyond_the_budget_are_refused_until_others_are_answered(chunks: bool) -> None:
    """A body is held until its request has an answer; only then is it certain not to be sent again."""
    limits = {"body_bytes": "64KiB", "body_memory_bytes": "100KiB"}
    body = large(60_000)
    lines, raw = ((CHUNKED,), chunk(body) + END) if chunks else ((), body)
    async with ScriptedInstance().running() as one, balancing(one, limits=limits) as running:
        go_on = asyncio.Event()
        opening = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
        one.play(Wait(go_on), Send(opening), Stall())
        async with running.client() as client:
            await client.send(request("/api/generate", raw, *lines))
            await one.seen(1)
            refused = await running.ask("/api/show", raw, *lines)
            go_on.set()
            await client.head()
            served = await running.ask("/api/show", raw, *lines)

        assert (refused.status, served.status) == (503, 200)
        assert int(refused.header("retry-after") or "0") >= 1


# -- uploads


async def test_upload_passes_the_body_limit_and_is_never_held_whole() -> None:
    piece = b"\0" * 65_536
    count = 1024
    lines = (f"Content-Length: {count * len(piece)}", "Content-Type: application/octet-stream")
    async with ScriptedInstance().running() as one, balancing(one, limits=SMALL) as running:
        one.discarding = True
        one.play(Send(head(201, "Content-Length: 0")))
        async with running.client() as client:
            tracemalloc.start()
            try:
                await client.send(request(f"/api/blobs/{DIGEST}", None, *lines))
                for _ in range(count):
                    await client.send(piece)
                answer = await client.answer()
                _, peak_bytes = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()

        (seen,) = one.requests
        assert answer.status == 201
        assert seen.connection.received_bytes > count * len(piece)
        assert seen.target == f"/api/blobs/{DIGEST}"
        assert seen.header("content-length") == str(count * len(piece))
        assert peak_bytes < count * len(piece) / 4


async def test_upload_waits_for_the_instance_to_read() -> None:
    """What the instance does not take, the client does not get rid of, but for what sockets hold."""
    size = 64 * 1024 * 1024
    async with ScriptedInstance().running() as one, balancing(one) as running, running.client() as client:
        one.deaf = one.discarding = True
        one.play(Send(head(201, "Content-Length: 0")))
        client.writer.write(request(f"/api/blobs/{DIGEST}", None, f"Content-Length: {size}") + b"\0" * size)
        seen = await one.seen(1)
        left = await _comes_to_rest(client)

        assert left > size / 4
        seen.connection.transport.resume_reading()
        assert (await client.answer()).status == 201
        assert client.unsent_bytes == 0


async def _comes_to_rest(client: RawClient) -> int:
    """What is unsent when nothing has moved for a while."""
    unsent, still = -1, 0
    while still < 20:
        await asyncio.sleep(0.005)
        still = still + 1 if client.unsent_bytes == unsent else 0
        unsent = client.unsent_bytes
    return unsent


async def test_chunked_upload_stays_chunked() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running, running.client() as client:
        one.play(Send(head(201, "Content-Length: 0")))
        await client.send(request(f"/api/blobs/{DIGEST}", chunk(b"first"), CHUNKED))
        await one.seen(1)
        await client.send(chunk(b"second") + END)

        assert (await client.answer()).status == 201
        (seen,) = one.requests
        assert seen.body == b"firstsecond"
        assert (seen.header("transfer-encoding"), seen.header("content-length")) == ("chunked", None)


async def test_upload_that_is_asked_for_is_asked_for_by_the_balancer() -> None:
    lines = ("Expect: 100-continue", "Content-Length: 4")
    async with ScriptedInstance().running() as one, balancing(one) as running, running.client() as client:
        one.play(Send(head(201, "Content-Length: 0")))
        await client.send(request(f"/api/blobs/{DIGEST}", None, *lines))

        assert (await client.head()).status == 100
        await client.send(b"blob")
        assert (await client.answer()).status == 201


async def test_answer_before_the_end_of_an_upload_reaches_a_client_that_still_sends() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running, running.client() as client:
        one.play_early(Send(whole(b'{"error":"no space"}', status=507)), Stall())
        await client.send(request(f"/api/blobs/{DIGEST}", b"begun", "Content-Length: 1000"))

        answer = await client.answer()

        assert (answer.status, answer.json) == (507, {"error": "no space"})


async def test_head_of_a_blob_has_the_instances_status_and_no_body() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        for status in (200, 404):
            one.play(Send(head(status, "Content-Length: 0")))

            answer = await running.ask(f"/api/blobs/{DIGEST}", method="HEAD")

            assert (answer.status, answer.chunks) == (status, ())
        assert [each.method for each in one.requests] == ["HEAD", "HEAD"]


async def test_same_connection_serves_on_after_an_upload() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running, running.client() as client:
        one.play(Send(head(201, "Content-Length: 0")))
        await client.send(request(f"/api/blobs/{DIGEST}", b"blob"))
        assert (await client.answer()).status == 201

        one.play(Send(chunked(DONE)))
        await client.send(request("/api/generate", GENERATE))
        assert (await client.answer()).chunks == (DONE,)
