"""What an instance writes is read always, kept in part, and told at a bounded rate."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from balancer.provisioning.output import LINE_BYTES, LINES_A_SECOND, LINES_KEPT, Output


@dataclass
class Pipe:
    """An output and the end that an instance would have."""

    writing: int
    output: Output
    told: list[str] = field(default_factory=list)
    lost: int = 0

    def write(self, data: bytes) -> None:
        os.write(self.writing, data)


@asynccontextmanager
async def pipe() -> AsyncIterator[Pipe]:
    reading, writing = os.pipe()
    made: list[Pipe] = []

    def tell(lines: list[str], lost: int) -> None:
        made[0].told += lines
        made[0].lost += lost

    made.append(Pipe(writing, Output(reading, asyncio.get_running_loop(), tell)))
    try:
        yield made[0]
    finally:
        made[0].output.close()
        with suppress(OSError):
            os.close(writing)


async def test_lines_are_told_whole_however_they_were_written() -> None:
    async with pipe() as made:
        for piece in (b"fi", b"rst\nsec", b"ond\n\n  \nthi"):
            made.write(piece)
        made.output.close()

        assert made.told == ["first", "second"]
        assert made.output.lines() == ["first", "second", "thi"]


async def test_newest_lines_are_kept_and_what_is_beyond_the_rate_is_counted() -> None:
    async with pipe() as made:
        lines = [f"line {number}" for number in range(1000)]
        made.write("\n".join(lines).encode() + b"\n")
        made.output.close()

        assert made.told == lines[:LINES_A_SECOND]
        assert made.lost == 1000 - LINES_A_SECOND
        assert made.output.lines() == lines[-LINES_KEPT:]


async def test_line_without_an_end_is_cut_and_what_follows_it_is_not() -> None:
    async with pipe() as made:
        for _ in range(10):
            made.write(b"x" * 4096)
            made.output._read()
        made.write(b"\nnext\n")
        made.output.close()

        assert made.told == ["x" * LINE_BYTES, "next"]


async def test_bytes_that_are_no_text_are_told_as_well_as_they_can_be() -> None:
    async with pipe() as made:
        made.write(b"caf\xc3\xa9 \xff\n")
        made.output.close()

        assert made.told == ["café \ufffd"]


async def test_instance_that_closes_its_output_is_read_no_more() -> None:
    async with pipe() as made:
        made.write(b"last\n")
        os.close(made.writing)
        made.output.close()
        made.output.close()

        assert made.told == ["last"]
