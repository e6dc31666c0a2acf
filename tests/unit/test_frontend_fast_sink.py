"""The fast sink over a transport of the test's own: when what is written, and who is cut."""

import asyncio
from typing import Any, cast

import pytest

from balancer.errors import BalancerError, ClientLeft, SlowReader
from balancer.frontend.fast_sink import FastSink
from balancer.upstream.stream_memory import StreamMemory
from tests.unit.unit_support import LoopClock, run_virtually

HIGH_WATER = 300
BUFFER = 1000
JSON = (("Content-Type", "application/json"),)


class Client:
    """Request, connection and transport in one; `take` is the client's reading."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.untaken_bytes = 0
        self.closing = False
        self.aborted = False
        self.keep_alive = True
        self.resumed = asyncio.Event()

    @property
    def protocol(self) -> "Client":
        return self

    @property
    def transport(self) -> "Client":
        return self

    @property
    def writing_paused(self) -> bool:
        return self.untaken_bytes > HIGH_WATER

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.writes.append(data)
        self.untaken_bytes += len(data)
        if self.writing_paused:
            self.resumed.clear()

    def take(self, count: int) -> None:
        self.untaken_bytes = max(0, self.untaken_bytes - count)
        if not self.writing_paused:
            self.resumed.set()

    def get_write_buffer_size(self) -> int:
        return self.untaken_bytes

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True
        self.untaken_bytes = 0

    async def drained(self) -> None:
        await self.resumed.wait()


class Stream:
    """A sink with a stream under way: `give` is a piece of it, `ends` what it was ended with."""

    def __init__(self, memory: StreamMemory) -> None:
        self.client = Client()
        self.ends: list[BalancerError] = []
        self.sink = sink(self.client, memory)

    async def begin(self) -> "Stream":
        await self.sink.start(200, (), content_length=None)
        self.give = self.sink.outlet(self.ends.append)
        await asyncio.sleep(0)
        self.client.take(1 << 20)
        return self


def sink(client: Client, memory: StreamMemory | None = None) -> FastSink:
    return FastSink(
        cast("Any", client),
        buffer_bytes=BUFFER,
        stall_seconds=5.0,
        memory=memory or StreamMemory(1 << 20),
    )


async def test_head_goes_out_with_the_first_piece() -> None:
    client = Client()
    it = sink(client)
    await it.start(200, JSON, content_length=2)
    await it.write(b"{}")
    await it.finish()
    await asyncio.sleep(0)

    (whole,) = client.writes
    assert whole.startswith(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nDate: "
    )
    assert whole.endswith(b"\r\n\r\n{}")


async def test_head_waits_for_no_piece_longer_than_a_turn() -> None:
    client = Client()
    it = sink(client)
    await it.start(200, JSON, content_length=None)
    assert client.writes == []
    await asyncio.sleep(0)

    (head,) = client.writes
    assert head.endswith(b"\r\n\r\n")
    await it.write(b"ab")
    await it.finish()
    assert client.sent.endswith(b"\r\n\r\n2\r\nab\r\n0\r\n\r\n")


@pytest.mark.parametrize("end", ["abort", "break_off"])
async def test_head_that_was_not_sent_before_the_end_goes_out_once_at_most(end: str) -> None:
    client = Client()
    it = sink(client)
    await it.start(200, JSON, content_length=None)
    if end == "abort":
        it.abort()
    else:
        await it.break_off(b"told")
    await asyncio.sleep(0)

    assert client.sent.count(b"HTTP/1.1") == (end == "break_off")
    assert (client.closing, it.keep_alive) == (True, False)


async def test_piece_of_no_bytes_is_not_the_last_chunk() -> None:
    client = Client()
    it = sink(client)
    await it.start(200, JSON, content_length=None)
    await it.write(b"")
    await it.write(b"a")

    assert client.sent.endswith(b"\r\n\r\n1\r\na\r\n")


async def test_client_that_leaves_while_it_is_waited_for_is_told_so() -> None:
    client = Client()
    it = sink(client)
    await it.start(200, JSON, content_length=500)
    waiting = asyncio.create_task(it.write(b"x" * 500))
    await asyncio.sleep(0)
    assert not waiting.done()
    client.abort()
    client.resumed.set()
    await waiting

    with pytest.raises(ClientLeft):
        await it.finish()


def test_client_that_takes_nothing_is_waited_for_no_longer_than_it_may_stall() -> None:
    async def main(_clock: LoopClock) -> None:
        client = Client()
        it = sink(client)
        await it.start(200, JSON, content_length=500)
        with pytest.raises(ClientLeft):
            await it.write(b"x" * 500)
        assert client.aborted

    run_virtually(main)


def test_reader_that_takes_little_but_ever_more_is_cut_only_far_behind() -> None:
    """What frames small pieces is taken as well: by their bytes alone it would seem to take nothing."""

    async def main(_clock: LoopClock) -> None:
        stream = await Stream(StreamMemory(1 << 20)).begin()
        most = 0
        while not stream.ends:
            stream.give(b"x")
            most = max(most, stream.client.untaken_bytes)
            stream.client.take(3)
            await asyncio.sleep(0.5)

        assert most > 4 * BUFFER - 10
        assert isinstance(stream.ends[0], SlowReader)

    run_virtually(main)


def test_reader_that_takes_nothing_for_a_while_is_cut_beyond_the_bound() -> None:
    async def main(_clock: LoopClock) -> None:
        stream = await Stream(StreamMemory(1 << 20)).begin()
        while not stream.ends:
            stream.give(b"x" * 100)
            await asyncio.sleep(0.5)
            assert len(stream.client.sent) < 2 * BUFFER

        assert stream.client.aborted
        assert [type(each) for each in stream.ends] == [SlowReader]

    run_virtually(main)


async def test_what_is_left_is_counted_until_it_is_taken() -> None:
    memory = StreamMemory(1 << 20)
    stream = await Stream(memory).begin()
    stream.give(b"x" * 50)
    assert memory.held_bytes == 0
    stream.give(b"x" * 350)
    assert memory.held_bytes == stream.client.untaken_bytes > 400

    stream.client.take(1 << 20)
    stream.give(b"x")
    assert memory.held_bytes == 0


@pytest.mark.parametrize("end", ["finish", "break_off"])
async def test_what_is_left_is_counted_to_its_end_though_the_stream_is_over(end: str) -> None:
    memory = StreamMemory(1 << 20)
    stream = await Stream(memory).begin()
    stream.give(b"x" * 900)
    ending = asyncio.create_task(stream.sink.finish() if end == "finish" else stream.sink.break_off(b"told"))
    await asyncio.sleep(0)

    assert not ending.done()
    assert memory.held_bytes > 900
    stream.client.take(1 << 20)
    await ending
    assert stream.client.closing is (end == "break_off")
    assert stream.client.sent.endswith(b"0\r\n\r\n" if end == "finish" else b"4\r\ntold\r\n")


@pytest.mark.parametrize("end", ["close", "abort", "cut"])
async def test_nothing_is_counted_once_it_is_over(end: str) -> None:
    memory = StreamMemory(1 << 20)
    stream = await Stream(memory).begin()
    stream.give(b"x" * 500)
    assert memory.held_bytes
    match end:
        case "abort":
            stream.sink.abort()
        case "cut":
            stream.sink.cut()
    stream.give(b"late")
    stream.sink.close()

    assert memory.held_bytes == 0
    stream.sink.close()
    assert memory.held_bytes == 0


async def test_the_largest_of_all_streams_is_cut_and_the_others_go_on() -> None:
    memory = StreamMemory(1000)
    small, large = await Stream(memory).begin(), await Stream(memory).begin()
    large.give(b"x" * 700)
    small.give(b"x" * 400)

    assert (len(small.ends), len(large.ends)) == (0, 1)
    assert isinstance(large.ends[0], SlowReader)
    assert large.client.aborted
    assert not small.client.closing


async def test_stream_of_a_client_that_left_much_unread_ends_with_its_next_piece() -> None:
    """What was left keeps the transport from telling that its other end is closed."""
    stream = await Stream(StreamMemory(1 << 20)).begin()
    stream.give(b"x" * 500)
    stream.client.close()
    stream.give(b"x")
    assert [type(each) for each in stream.ends] == [ClientLeft]

    done = await Stream(StreamMemory(1 << 20)).begin()
    done.client.close()
    done.give(b"x")
    assert done.ends == []
