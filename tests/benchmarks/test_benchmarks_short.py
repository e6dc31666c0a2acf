"""The benchmark itself, for a moment: what it counts, what it finds out, what it writes. Never a speed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from balancer.scheduling.strategies import STRATEGIES
from tests.benchmarks import decisions
from tests.benchmarks.__main__ import command_of, parser_of
from tests.benchmarks.clients import StreamClient, Tally, UnaryClient
from tests.benchmarks.measures import MEASURES, TINY, Measure, percentile
from tests.benchmarks.processes import ROOT, Failed
from tests.benchmarks.proxies import PROXIES, Place, Started
from tests.benchmarks.report import BEGIN, END, goals, markdown, page
from tests.benchmarks.rounds import Plan, run
from tests.benchmarks.wire import FORMS, TEXT, Path, Question, padded, read_question

# LiteLLM is not installed for a test.
_NAMES = ("relay", "nginx", "haproxy", "balancer")


def test_the_cost_of_a_decision_is_told_for_each_strategy_and_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert decisions.main(["--repetitions", "2", "--decisions", "1"]) == 0

    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        [str(instances), str(holding), name]
        for instances, holding in decisions.SIZES
        for name in ("adaptive", *STRATEGIES)
    ]


def test_a_fleet_of_that_benchmark_is_what_it_says() -> None:
    fleet, index = decisions.fleet_of(1000, 32)

    # What is asked for names a model.
    there = fleet.holding(decisions.asking().variant.model)  # type: ignore[union-attr]
    assert (len(fleet.instances()), len(there), len(index.instances())) == (1000, 32, 32)
    assert all(each.settled(1e9) for each in fleet.instances())


def test_every_proxy_that_is_there_has_its_rows_and_every_answer_is_whole() -> None:
    before = os.sched_getaffinity(0)
    plan = _plan(_NAMES, [MEASURES["unary"], MEASURES["streams"]])

    results = run(plan, lambda _: None)

    assert results.errors == []
    assert os.sched_getaffinity(0) == before
    present = [each for each in _NAMES if PROXIES[each].missing() is None]
    assert set(results.skipped) == {*_NAMES} - {*present}
    for name in present:
        (segments,) = results.series("streams", name, "segments_per_chunk")
        assert segments > 0
        # Connections to the instance are used again, or every figure would be that of connecting.
        (connects,) = results.series("unary", name, "connects")
        assert connects <= 4 * TINY.connections
    for measure in plan.measures:
        assert _rows(markdown(plan, results, "make bench"), measure.name) == present


def test_idle_streams_bad_clients_and_large_bodies_leave_everything_whole() -> None:
    plan = _plan(["balancer"], [each for each in MEASURES.values() if each.fresh])

    results = run(plan, lambda _: None)

    assert results.errors == []
    assert results.series("memory", "balancer", "streams_ended") == [TINY.idle]
    assert results.series("bounded", "balancer", "answered") == [TINY.bodies]
    assert [each.goal.measure for each in goals(results)] == ["memory", "bounded", "crowd"]
    for measure in plan.measures:
        assert _rows(markdown(plan, results, "make bench"), measure.name) == ["balancer"]


def test_a_proxy_of_others_that_fails_is_left_out_and_the_balancer_fails_the_run() -> None:
    def fails(place: Place) -> Started:
        raise Failed("no port is free")

    foreign = replace(PROXIES["nginx"], name="theirs", start=fails, missing=lambda: None)
    plan = _plan(["relay"], [MEASURES["few"], MEASURES["one"]])

    results = run(replace(plan, proxies=[*plan.proxies, foreign], rounds=2), lambda _: None)
    own = run(replace(plan, proxies=[replace(foreign, foreign=False)]), lambda _: None)

    assert (results.errors, list(results.skipped)) == ([], ["theirs"])
    assert [len(results.series(each, "relay", "p50_ms")) for each in ("few", "one")] == [2, 2]
    assert own.errors == ["theirs: no port is free"]


def test_a_row_of_other_settings_is_a_balancer_too() -> None:
    parser = parser_of()

    (plain,) = parser.parse_args(["--variant", 'plain={"strategy": "round_robin"}']).variant

    assert (plain.name, plain.own, plain.foreign) == ("balancer, plain", True, False)
    assert plain.version().endswith('{"strategy": "round_robin"}')
    for wrong in ("plain", "plain={", "=x"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--variant", wrong])


def test_figures_take_the_place_between_the_marks_of_a_page() -> None:
    before = f"# Page\n\n{BEGIN}\n\nold\n\n{END}\nafter\n"

    assert page(before, "new\n") == f"# Page\n\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    with pytest.raises(ValueError, match="no line"):
        page("# Page\n", "new\n")


def test_the_command_that_is_told_names_no_folder() -> None:
    given = ["--markdown", "docs/page.md", "--quick", "--variant", "other=/home/me/other"]

    assert command_of(given) == "make bench ARGS='--quick --variant other=FOLDER'"
    assert command_of(["--markdown=docs/page.md"]) == "make bench"


def test_the_benchmarks_page_has_its_marks() -> None:
    assert page((ROOT / "docs" / "benchmarks.md").read_text(), "x")


@pytest.mark.parametrize("path", list(Path))
@pytest.mark.parametrize("stream", [True, False])
def test_an_instance_reads_what_a_client_asks(path: Path, stream: bool) -> None:
    question = Question(path=path, stream=stream, chunks=7, chunk_bytes=50, every_ms=20)

    asked = read_question(question.body(12, padding=b"x" * 100))

    assert asked is not None
    assert (asked.marker, asked.chunks, asked.chunk_bytes) == (12, 7, 50)
    assert (asked.every_ms, asked.stream) == (20, stream)


def test_a_whole_stream_is_counted() -> None:
    tally = _streamed([0, 1, 2])

    assert tally.errors == []
    assert (tally.answers, tally.chunks) == (1, 3)
    assert all(each >= 0 for each in tally.delay_ns)


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([0, 1], id="a chunk is missing at the end"),
        pytest.param([0, 2], id="a chunk is left out"),
        pytest.param([1, 0, 2], id="chunks are out of order"),
        pytest.param([0, 1, 2, 3], id="a chunk too many"),
    ],
)
def test_a_stream_that_is_not_whole_and_in_order_is_an_error(numbers: list[int]) -> None:
    tally = _streamed(numbers)

    assert len(tally.errors) == 1
    assert tally.answers == 0


def test_a_stream_without_an_end_is_whole_with_any_number_of_chunks() -> None:
    assert _streamed([0, 1], asked=0).errors == []
    assert len(_streamed([0, 2], asked=0).errors) == 1


def test_a_stream_of_another_is_an_error() -> None:
    assert len(_streamed([0, 1, 2], marker=6).errors) == 1


def test_a_stream_whose_connection_closes_is_an_error() -> None:
    tally = _streamed([0, 1, 2], end=b"")

    assert len(tally.errors) == 1
    assert tally.answers == 0


@pytest.mark.parametrize(
    ("spoil", "errors"),
    [
        pytest.param(lambda answer: answer, 0, id="right"),
        pytest.param(lambda answer: answer.replace(b"00000001", b"00000002"), 1, id="another's"),
        pytest.param(lambda answer: answer.replace(b"200 OK", b"503 No"), 1, id="refused"),
        pytest.param(lambda answer: answer[:-1], 1, id="cut"),
        pytest.param(lambda answer: answer + b"x", 1, id="too long"),
    ],
)
async def test_an_answer_must_be_the_right_one(spoil: Callable[[bytes], bytes], errors: int) -> None:
    tally, asked = Tally(), asyncio.Event()

    class Told:
        def answered(self, client: UnaryClient) -> None:
            asked.set()

    body = FORMS[Path.GENERATE].whole(1, Question().chunk_bytes)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with _answering(spoil(answer)) as port:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(
            lambda: UnaryClient(Question(), tally, Told()), "127.0.0.1", port
        )
        client.ask(1)
        async with asyncio.timeout(5):
            await asked.wait()
        client.transport.abort()

    assert len(tally.errors) == errors
    assert tally.answers == 1 - errors


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert percentile(range(1, 101), 99) == 99
    assert percentile([5], 50) == 5
    assert percentile([], 50) == 0


def _plan(names: Sequence[str], measures: Sequence[Measure]) -> Plan:
    return Plan(proxies=[PROXIES[each] for each in names], measures=measures, rounds=1, scale=TINY, seed=3)


def _rows(page: str, measure: str) -> list[str]:
    """The proxies in the table of a measure."""
    (table,) = [each for each in page.split("\n## ") if each.startswith(f"{measure}: ")]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]


def _streamed(numbers: list[int], *, asked: int = 3, marker: int = 5, end: bytes = b"0\r\n\r\n") -> Tally:
    """What a client of marker 5 that asked for so many chunks makes of a stream."""
    question, form, tally = Question(stream=True, chunks=asked), FORMS[Path.GENERATE], Tally()
    client = StreamClient(question, 5, tally, on_begun=lambda: None, on_end=lambda: None)
    client.connection_made(_Silent())
    client.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in numbers:
        text = padded(TEXT % (marker, number, time.monotonic_ns()), question.chunk_bytes)
        client.data_received(_chunk(form.before + text + form.after))
    client.data_received(_chunk(form.end) + end)
    client.connection_lost(None)
    return tally


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class _Silent(asyncio.Transport):
    """A transport that sends nothing."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...


@asynccontextmanager
async def _answering(answer: bytes) -> AsyncIterator[int]:
    """A server that says this to whatever it reads, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
