"""Large answers: whole for whoever reads them, however fast they come and however slowly they are read."""

import pytest

from balancer.upstream.exchange import Exchange
from tests.fakes.raw_client import request
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import (
    DONE,
    END,
    ReadBody,
    ScriptedInstance,
    Send,
    chunk,
    chunked,
    head,
    whole,
)

pytestmark = pytest.mark.both_sinks

EMBED = {"model": "m", "input": ["a", "b"]}
GENERATE = {"model": "m", "prompt": "hi"}
LARGE = b'{"model":"m","embeddings":[' + b"[0.25]," * 3_000_000 + b"[1]]}"
"""Some 21 MB, five times what is held of a stream."""
PIECE = b'{"model":"m","response":"%b","done":false}\n' % (b"x" * 60_000)


def exchanges(running: Running) -> list[Exchange]:
    pools = running.balancer.client._pools.values()
    return [each._exchange for pool in pools for each in pool._open if each._exchange is not None]


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_large_answer_in_one_piece_comes_whole(framing: str) -> None:
    answer = whole(LARGE) if framing == "length" else chunked(LARGE, content_type="application/json")
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.otherwise = lambda _request: (ReadBody(), Send(answer))

        answers = [await running.ask("/api/embed", EMBED) for _ in range(2)]

        assert [(each.status, each.whole, each.body == LARGE) for each in answers] == [(200, True, True)] * 2
        assert len({id(each.connection) for each in one.requests}) == 1


async def test_reading_a_large_answer_waits_for_its_reader() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.otherwise = lambda _request: (ReadBody(), Send(whole(LARGE)))
        async with running.client() as client:
            client.pause()
            await client.send(request("/api/embed", EMBED))
            await one.seen(1)
            await until(lambda: any(not each.reading for each in exchanges(running)))

            assert all(each.held_bytes < len(LARGE) // 2 for each in exchanges(running))
            client.resume()
            answer = await client.answer()

        assert (answer.whole, answer.body == LARGE) == (True, True)


async def test_burst_of_a_stream_cuts_off_nobody_who_reads() -> None:
    pieces = [PIECE] * 30
    streamed = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
    limits = {"stream_buffer_bytes": "1MiB"}
    async with ScriptedInstance().running() as one, balancing(one, limits=limits) as running:
        one.play(Send(streamed + b"".join(chunk(each) for each in pieces) + chunk(DONE) + END))

        answer = await running.ask("/api/generate", GENERATE)

        assert (answer.whole, answer.body == b"".join(pieces) + DONE) == (True, True)
