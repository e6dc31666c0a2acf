"""How answers of instances are read: what each framing means, and which of them are refused."""

from itertools import chain

import pytest

from balancer.errors import BadResponse, ConnectionLost
from balancer.upstream.client import UpstreamRequest
from tests.fakes.asker import asking
from tests.fakes.scripted_instance import (
    DONE,
    END,
    Close,
    Send,
    Stall,
    Turn,
    chunk,
    chunked,
    head,
    whole,
)

LOOK = UpstreamRequest(method="HEAD", target="/api/blobs/x", headers=())
TAKE = UpstreamRequest(method="GET", target="/api/status", headers=())


@pytest.mark.parametrize("interim", [100, 102, 103])
async def test_interim_heads_before_the_final_one_are_skipped(interim: int) -> None:
    async with asking() as asker:
        asker.instance.play(
            Send(head(interim, "Link: </x>; rel=preload") * 3 + whole(b"{}", "X-Mark: final"))
        )

        taken = await asker.take()

        assert taken.head.status == 200
        assert ("X-Mark", "final") in taken.head.headers
        assert all(name != "Link" for name, _ in taken.head.headers)
        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 1


async def test_endless_interim_heads_are_refused() -> None:
    async with asking() as asker:
        asker.instance.play(Send(head(102) * 100 + whole()))

        with pytest.raises(BadResponse):
            await asker.exchange()


@pytest.mark.parametrize("headers", [("Upgrade: websocket", "Connection: Upgrade"), ()])
async def test_switching_protocols_is_refused(headers: tuple[str, ...]) -> None:
    async with asking() as asker:
        asker.instance.play(Send(head(101, *headers)), Stall())

        with pytest.raises(BadResponse):
            await asker.exchange()
        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 2


@pytest.mark.parametrize("framing", ["Content-Length: 500", "Transfer-Encoding: chunked"])
async def test_answer_to_head_has_no_body_whatever_it_says(framing: str) -> None:
    async with asking() as asker:
        asker.instance.play(Send(head(200, framing)))

        taken = await asker.take(LOOK)

        assert (taken.pieces, taken.error) == ((), None)
        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 1


@pytest.mark.parametrize(
    "answer",
    [
        head(200) + b"XXXXX",
        head(200, "Content-Length: 0") + b"XXXXX",
        head(200, "Content-Length: 5") + b"XXXXX",
        head(200, "Content-Length: 50") + b"XXXXX",
        head(200, "Transfer-Encoding: chunked") + chunk(b"XXXXX") + END,
    ],
)
async def test_bytes_after_the_answer_to_head_end_the_connection(answer: bytes) -> None:
    async with asking() as asker:
        asker.instance.play(Send(answer))

        taken = await asker.take(LOOK)

        assert (taken.pieces, taken.error) == ((), None)
        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 2


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("framing", [(), ("Content-Length: 500",)])
async def test_statuses_without_a_body_end_with_their_head(status: int, framing: tuple[str, ...]) -> None:
    if status == 204 and framing:
        framing = ("Content-Length: 0",)
    async with asking() as asker:
        asker.instance.play(Send(head(status, *framing)))

        taken = await asker.take(TAKE)

        assert (taken.head.status, taken.pieces, taken.error) == (status, (), None)
        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 1


async def test_body_without_framing_ends_with_the_connection() -> None:
    async with asking() as asker:
        asker.instance.play(Send(head(200, "X-A: b") + b"first, "), Send(b"second"), Close())

        taken = await asker.take()

        assert b"".join(taken.pieces) == b"first, second"
        assert taken.error is None
        assert (taken.head.content_length, taken.head.chunked) == (None, False)
        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 2


async def test_trailers_are_dropped() -> None:
    async with asking() as asker:
        opening = head(200, "Transfer-Encoding: chunked", "Trailer: X-Sum")
        asker.instance.play(Send(opening + chunk(b"abc") + b"0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n"))

        taken = await asker.take()

        assert taken.pieces == (b"abc",)
        assert taken.error is None
        assert [name for name, _ in taken.head.headers] == ["Transfer-Encoding", "Trailer"]
        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 1


async def test_connection_that_the_instance_will_close_is_not_used_again() -> None:
    async with asking() as asker:
        asker.instance.play(Send(whole(b"{}", "Connection: close")))

        await asker.take()

        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 2


@pytest.mark.parametrize(
    "answer",
    [
        head(200, "Content-Length: 2", "Transfer-Encoding: chunked") + b"2\r\n{}\r\n" + END,
        head(200, "Transfer-Encoding: chunked", "Content-Length: 2") + b"2\r\n{}\r\n" + END,
        head(200, "Content-Length: 2", "Content-Length: 3") + b"{}",
        head(200, "Content-Length: 2, 3") + b"{}",
        head(200, "Content-Length: -2") + b"{}",
        head(200, "Content-Length: two") + b"{}",
        head(200, "Content-Length: 0x2") + b"{}",
        head(200, "Transfer-Encoding: gzip") + b"{}",
        head(200, "Transfer-Encoding: gzip, chunked") + b"2\r\n{}\r\n" + END,
        head(200, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + b"2\r\n{}\r\n" + END,
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nNo colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: b\x00c\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_answer_that_is_no_clear_http_is_refused_with_its_connection(answer: bytes) -> None:
    async with asking() as asker:
        asker.instance.play(Send(answer))

        with pytest.raises(BadResponse):
            await asker.exchange()
        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 2


@pytest.mark.parametrize("size", [b"zz", b"-1", b"", b"1" * 40, b"2 2"])
async def test_bad_chunk_size_ends_the_body_with_an_error(size: bytes) -> None:
    async with asking() as asker:
        opening = head(200, "Transfer-Encoding: chunked")
        asker.instance.play(Send(opening + chunk(b"good")), Send(size + b"\r\n{}\r\n" + END))

        taken = await asker.take()

        assert taken.pieces[:1] == (b"good",)
        assert isinstance(taken.error, BadResponse)
        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 2


@pytest.mark.parametrize("line", [b"X-Long: " + b"x" * 70_000 + b"\r\n", b"X-Many: 0123456789\r\n" * 4_000])
async def test_head_beyond_its_bound_is_refused(line: bytes) -> None:
    """The bound is kept while the head comes in, not once it is complete."""
    async with asking() as asker:
        pieces = [line[at : at + 1000] for at in range(0, len(line), 1000)]
        asker.instance.play(Send(b"HTTP/1.1 200 OK\r\n"), *(Send(each) for each in pieces * 100))

        with pytest.raises(BadResponse):
            await asker.exchange()
        assert await asker.take_next() == b'{"next":true}'


async def test_large_head_within_its_bound_passes() -> None:
    async with asking() as asker:
        asker.instance.play(Send(whole(b"{}", "X-Long: " + "x" * 60_000)))

        taken = await asker.take()

        assert len(dict(taken.head.headers)["X-Long"]) == 60_000


async def test_body_cut_short_is_told_after_what_came() -> None:
    async with asking() as asker:
        asker.instance.play(Send(head(200, "Content-Length: 10") + b"12345"), Close())

        taken = await asker.take()

        assert taken.pieces == (b"12345",)
        assert isinstance(taken.error, ConnectionLost)


STREAM = chunked(b'{"a":1}\n', b'{"b":"' + b"x" * 40 + b'"}\n', DONE)
EVERY_FORM = {
    "chunked": STREAM,
    "length": whole(b'{"done":true}', "X-A: b"),
    "interim": head(100) + STREAM,
    "trailers": STREAM.removesuffix(END) + b"0\r\nX-Sum: 1\r\n\r\n",
    "no body": head(204),
}


@pytest.mark.parametrize("form", EVERY_FORM)
async def test_every_cut_into_two_segments_gives_the_same(form: str) -> None:
    answer = EVERY_FORM[form]
    async with asking() as asker:
        asker.instance.play(Send(answer))
        expected = await asker.take()
        for cut in range(1, len(answer)):
            asker.instance.play(Send(answer[:cut]), Turn(), Send(answer[cut:]))

            assert await asker.take() == expected, cut
        assert expected.error is None
        assert len(asker.instance.connections) == 1


@pytest.mark.parametrize("form", EVERY_FORM)
async def test_one_byte_at_a_time_gives_the_same(form: str) -> None:
    answer = EVERY_FORM[form]
    async with asking() as asker:
        asker.instance.play(Send(answer))
        expected = await asker.take()
        steps = ((Send(answer[at : at + 1]), Turn()) for at in range(len(answer)))
        asker.instance.play(*chain.from_iterable(steps))

        assert await asker.take() == expected
        assert len(asker.instance.connections) == 1
