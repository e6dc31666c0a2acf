"""What all streams together may hold: the bound is kept, by cutting whoever leaves most."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from balancer.upstream.stream_memory import StreamMemory

LIMIT = 100
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["note", "note", "forget", "read", "limit"]), st.integers(0, 4), st.integers(0, 130)
    ),
    max_size=60,
)


@dataclass(eq=False)
class Stream:
    """A stream that holds what the test says, and what it was cut for."""

    memory: StreamMemory
    held_bytes: int = 0
    cut_at: list[int] = field(default_factory=list)
    last_piece: int = 0
    """What comes in while it is being cut, as a piece begun is handed on then."""

    def cut(self) -> None:
        self.cut_at.append(self.held_bytes)
        if self.last_piece:
            self.held_bytes, self.last_piece = self.held_bytes + self.last_piece, 0
            self.memory.note(self)
        self.held_bytes = 0
        self.memory.forget(self)


@given(ACTS)
def test_the_sum_is_that_of_what_was_noted_and_never_beyond_the_limit(
    acts: list[tuple[str, int, int]],
) -> None:
    memory = StreamMemory(LIMIT)
    streams = [Stream(memory) for _ in range(5)]
    for act, index, amount in acts:
        stream = streams[index]
        cut = [len(each.cut_at) for each in streams]
        match act:
            case "note":
                stream.held_bytes = amount
                memory.note(stream)
                assert memory.held_bytes <= memory.limit_bytes
            case "forget":
                memory.forget(stream)
            case "read":  # and not told yet
                stream.held_bytes = min(stream.held_bytes, amount)
            case _:
                memory.limit_bytes = amount

        assert memory.held_bytes == sum(memory._held.values())
        assert all(noted >= each.held_bytes or each.cut_at for each, noted in memory._held.items())
        gone = [
            each.cut_at[-1] for each, before in zip(streams, cut, strict=True) if len(each.cut_at) > before
        ]
        assert not gone or min(gone) >= max(each.held_bytes for each in memory._held or [Stream(memory)])
    for stream in streams:
        memory.forget(stream)
    assert (memory.held_bytes, memory._held) == (0, {})


def test_the_largest_is_cut_and_no_more_than_must_be() -> None:
    memory = StreamMemory(LIMIT)
    small, large, last = (Stream(memory, held) for held in (20, 70, 30))
    for each in (small, large, last):
        memory.note(each)

    assert (small.cut_at, large.cut_at, last.cut_at) == ([], [70], [])
    assert memory.held_bytes == 50


def test_what_was_read_since_it_was_noted_is_not_cut_for() -> None:
    memory = StreamMemory(LIMIT)
    first, second = Stream(memory, 90), Stream(memory, 60)
    memory.note(first)
    first.held_bytes = 10

    memory.note(second)

    assert (first.cut_at, second.cut_at) == ([], [])
    assert memory.held_bytes == 70


def test_who_asks_may_be_the_one_that_is_cut() -> None:
    memory = StreamMemory(LIMIT)
    stream = Stream(memory, LIMIT + 1)

    memory.note(stream)

    assert stream.cut_at == [LIMIT + 1]
    assert memory.held_bytes == 0


def test_a_piece_that_comes_in_by_the_cut_is_not_counted_for_good() -> None:
    memory = StreamMemory(LIMIT)
    first, second = Stream(memory, 80, last_piece=90), Stream(memory, 60)
    memory.note(first)

    memory.note(second)

    assert first.cut_at
    assert memory.held_bytes == sum(memory._held.values()) <= LIMIT
    memory.forget(second)
    assert memory.held_bytes == 0
