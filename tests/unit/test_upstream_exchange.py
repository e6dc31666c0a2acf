"""An exchange as a connection feeds it: what it counts, what it hands on at once, and what outlives it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import ConnectionLost, InstanceStalled, SlowReader
from balancer.upstream.exchange import Exchange, ResponseHead
from balancer.upstream.stream_memory import COUNTED_FROM_BYTES, StreamMemory
from tests.unit.unit_support import LoopClock, VirtualLoop, run_virtually

BUFFER = 1 << 20
PIECE = b"x" * 40_000
LOST = ConnectionLost("lost")


def begun(memory: StreamMemory) -> Exchange:
    """A stream whose head is in."""
    it = Exchange(buffer_bytes=BUFFER, cancel=lambda: None, read=lambda _on: None, memory=memory)
    it.receive_head(
        ResponseHead(
            status=200,
            reason="OK",
            headers=(),
            media_type="application/x-ndjson",
            content_length=None,
            chunked=True,
        )
    )
    return it


def give(it: Exchange, *pieces: bytes) -> None:
    for piece in pieces:
        it.receive(piece)
        it.end_chunk()


def timers() -> int:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return sum(1 for each in loop._scheduled if not each.cancelled())  # type: ignore[attr-defined]


async def test_what_is_held_flows_first_and_the_rest_in_the_very_moment() -> None:
    it, came = begun(StreamMemory(BUFFER)), list[bytes]()
    give(it, b"1", b"2")
    assert await it.next_chunk() == b"1"
    flowing = asyncio.create_task(it.flow(came.append))
    await asyncio.sleep(0)
    assert came == [b"2"]

    give(it, b"3")
    assert came == [b"2", b"3"]
    assert it.held_bytes == 0
    it.receive(b"4")
    it.finish()
    await flowing

    assert came == [b"2", b"3", b"4"]
    assert (await it.next_chunk(), it.taken_bytes) == (None, 4)


async def test_failure_ends_the_flow_behind_all_that_came() -> None:
    it, came = begun(StreamMemory(BUFFER)), list[bytes]()
    give(it, b"1")
    it.receive(b"2")
    it.fail(LOST)

    with pytest.raises(ConnectionLost):
        await it.flow(came.append)
    assert came == [b"1", b"2"]


async def test_exchange_that_is_cut_though_it_was_whole_says_so() -> None:
    memory = StreamMemory(BUFFER)
    it, told = begun(memory), list[str]()
    it.when_overflowed(lambda: told.append("overflowed"))
    give(it, PIECE, PIECE)
    it.finish()
    assert memory.held_bytes == 2 * len(PIECE)
    memory.limit_bytes = 1
    memory.note(it)

    assert (it.overflowed, it.left, told) == (True, False, ["overflowed"])
    assert (it.held_bytes, memory.held_bytes) == (0, 0)


async def test_exchange_ended_for_its_own_outlet_says_so() -> None:
    it = begun(StreamMemory(BUFFER))
    flowing = asyncio.create_task(it.flow(lambda _piece: it.cancel(SlowReader("slow"))))
    await asyncio.sleep(0)
    give(it, b"1", b"2")

    with pytest.raises(SlowReader):
        await flowing
    assert it.overflowed


@pytest.mark.parametrize("end", ["finish", "fail", "cancel", "cut"])
@pytest.mark.parametrize("first", [False, True])
def test_no_timer_outlives_an_exchange(end: str, first: bool) -> None:
    """Nor is one begun where it is over already: it would keep the exchange in memory."""

    async def main(_clock: LoopClock) -> None:
        before = timers()
        it = begun(StreamMemory(BUFFER))
        if not first:
            it.end_when_silent(60.0)
            assert timers() == before + 1
        match end:
            case "fail":
                it.fail(LOST)
            case _:
                getattr(it, end)()
        if first:
            it.end_when_silent(60.0)

        assert timers() == before

    run_virtually(main)


def test_silence_while_it_is_read_ends_it() -> None:
    async def main(_clock: LoopClock) -> None:
        it = begun(StreamMemory(BUFFER))
        it.end_when_silent(60.0)
        await asyncio.sleep(50)
        give(it, b"1")
        await asyncio.sleep(59)
        assert await it.next_chunk() == b"1"
        with pytest.raises(InstanceStalled):
            await it.next_chunk()

    run_virtually(main)


ACTS = st.lists(
    st.tuples(st.sampled_from(["give", "give", "give", "part", "take", "end"]), st.integers(0, 2)),
    max_size=40,
)


@given(ACTS, st.sampled_from([0, 100_000, 1 << 30]))
def test_the_memory_of_all_streams_is_that_of_each_and_nothing_in_the_end(
    acts: list[tuple[str, int]], limit_bytes: int
) -> None:
    async def main(_clock: LoopClock) -> None:
        memory = StreamMemory(limit_bytes)
        streams = [begun(memory) for _ in range(3)]
        for act, index in acts:
            it = streams[index]
            match act:
                case "give":
                    give(it, PIECE)
                case "part":
                    it.receive(PIECE[:10])
                case "take" if it.has_begun and not it.overflowed:
                    await it.next_chunk()
                case "end":
                    it.finish()
            counted = [each.held_bytes for each in streams if each.held_bytes > COUNTED_FROM_BYTES]
            assert memory.held_bytes == sum(counted) <= limit_bytes
        for it in streams:
            it.cancel()

        assert (memory.held_bytes, memory._held) == (0, {})

    run_virtually(main)
