"""Fuzz targets of the readers of answers: how streams end, what errors say, how lists are merged."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import zstandard
from hypothesis import strategies as st

from balancer.core.operation import Dialect, Kind, Operation, Wire
from balancer.core.ticket import Verdict
from balancer.errors import BodyTooLarge, MalformedRequest
from balancer.protocol.encoding import inflate_zstd
from balancer.protocol.endings import TAIL_BYTES, Counters, Ending, Tail, judge, read_counters
from balancer.protocol.errors import error_body, error_record
from balancer.protocol.failures import Retry, classify, error_message
from balancer.protocol.lists import lowest_version, merge_ps, merge_tags, openai_models
from balancer.protocol.progress import ProgressMerge
from tests.fuzz.recorded import exchanges
from tests.fuzz.target import Target, byte_at, cut, one_line

_LIMIT_BYTES = 65536


def _streaming(kind: Kind, dialect: Dialect) -> Operation:
    return Operation(kind=kind, dialect=dialect, upstream_path="/", stream=True)


_STREAMS = (
    _streaming(Kind.CHAT, Dialect.OLLAMA),
    _streaming(Kind.MANAGE, Dialect.OLLAMA),
    _streaming(Kind.CHAT, Dialect.OPENAI),
    _streaming(Kind.RESPONSE, Dialect.OPENAI),
    _streaming(Kind.CHAT, Dialect.ANTHROPIC),
)


def examine_ending(data: bytes) -> None:
    """Byte 0 chooses the stream, bytes 1 and 2 how it is cut and where it breaks off; then comes the body."""
    operation, seed, body = _STREAMS[byte_at(data, 0) % len(_STREAMS)], data[1:3], data[3:]
    number = int.from_bytes(seed, "big")
    whole = _fed([body] if body else [])
    pieces = _fed(cut(body, number))
    assert pieces.data == whole.data == body[-TAIL_BYTES:]
    assert pieces.last_line == whole.last_line
    ending, counters = judge(operation, whole), read_counters(operation, whole)
    assert judge(operation, pieces) is ending
    assert read_counters(operation, pieces) == counters
    if operation.wire is Wire.NDJSON:
        _examine_lines(operation, body, ending, counters)
        _examine_cut(operation, body, number)


def _examine_lines(operation: Operation, body: bytes, ending: Ending, counters: Counters) -> None:
    """The verdict and the counters against the last record, where there is one to be read."""
    last = _last_record(body)
    if last is None:
        return
    if ending is Ending.WHOLE and operation.kind is not Kind.MANAGE:
        assert last.get("done") is True, last
    if ending is Ending.WHOLE and operation.kind is Kind.MANAGE:
        assert last.get("status") == "success", last
    if ending is Ending.ERROR:
        assert "error" in last, last
    for told, name, unit in (
        (counters.prompt_tokens, "prompt_eval_count", 1),
        (counters.generated_tokens, "eval_count", 1),
        (counters.load_seconds, "load_duration", 1e9),
        (counters.prompt_seconds, "prompt_eval_duration", 1e9),
        (counters.generation_seconds, "eval_duration", 1e9),
    ):
        assert told is None or told == (last[name] if unit == 1 else last[name] / unit), (name, told, last)


def _examine_cut(operation: Operation, body: bytes, number: int) -> None:
    """A stream of whole records that breaks off within one is not whole."""
    lines = body.split(b"\n")
    if any(line and _record(line) is None for line in lines):
        return
    begun = body[: number % (len(body) + 1)]
    if _record(begun.rpartition(b"\n")[2]) is None and begun and not begun.endswith(b"\n"):
        assert judge(operation, _fed([begun])) is not Ending.WHOLE, begun


def _fed(pieces: Sequence[bytes]) -> Tail:
    tail = Tail()
    for each in pieces:
        tail.feed(each)
    return tail


def _last_record(body: bytes) -> dict[str, Any] | None:
    lines = [line for line in re.split(rb"\n", body) if line.strip(b"\r\n")]
    return _record(lines[-1]) if lines else None


def _record(line: bytes) -> dict[str, Any] | None:
    """A line that is one JSON object as Go writes them: no key twice, no blanks."""
    try:
        value = json.loads(line.decode(), object_pairs_hook=_distinct, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    blanks = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", line.rstrip(b"\r"))
    return value if isinstance(value, dict) and not re.search(rb"\s", blanks) else None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key came twice")
    return dict(pairs)


def _refuse(name: str) -> Any:
    raise ValueError(name)


def examine_error(data: bytes) -> None:
    """Bytes 0 and 1 are the status, byte 2 the dialect; the rest is the body of an error answer."""
    status = 300 + int.from_bytes(data[:2], "big") % 300
    dialect = tuple(Dialect)[byte_at(data, 2) % len(Dialect)]
    body = data[3:]
    text = error_message(body)
    assert len(text) <= 300
    assert one_line(text)
    try:
        told = json.loads(body.decode())
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict) and isinstance(told.get("error"), str) and len(told["error"]) < 300:
        assert text == " ".join(told["error"].splitlines()).strip() or "\\ud" in body.decode().casefold()
    for has_model in (False, True):
        failure = classify(status, text, has_model=has_model)
        if failure is not None:
            assert failure.outcome(text).error == text
            assert failure.verdict is Verdict.FAILURE or failure.retry in {Retry.FREE, Retry.NO}
    for wire in Wire:
        record = error_record(dialect, wire, text, "id")
        assert (wire is Wire.JSON) == (record == b"")
        if wire is Wire.NDJSON:
            assert judge(_STREAMS[0], _fed([b'{"done":false}\n', record])) is (
                Ending.ERROR if dialect is not Dialect.ANTHROPIC else Ending.UNFINISHED
            )
    value = json.loads(error_body(dialect, status, text, "id"))["error"]
    assert text == (value if dialect is Dialect.OLLAMA else value["message"])


def examine_lists(data: bytes) -> None:
    """Lists of several instances, each on a line, as the prober gives them on: they can be told again."""
    lists = [_rows(line) for line in data.split(b"\n")]
    tags, running = merge_tags(lists), merge_ps(lists)
    for told in (tags, running, openai_models([row for rows in lists for row in rows])):
        json.loads(msgspec.json.encode(told))
    assert len(running["models"]) == sum(len(rows) for rows in lists)  # type: ignore[arg-type]
    lowest_version(str(row.get("digest")) for rows in lists for row in rows)


def _rows(line: bytes) -> list[dict[str, object]]:
    try:
        rows = msgspec.json.decode(line, type=dict[str, object]).get("models")
        msgspec.json.encode(rows)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
        return []
    listed = rows if isinstance(rows, list) else []
    return [row for row in listed if isinstance(row, dict) and isinstance(row.get("name"), str)]


def examine_progress(data: bytes) -> None:
    """Records of three stores, in turn, a line each: what is merged of them can be told, in one line."""
    merge = ProgressMerge(("one", "two", "three"))
    for number, line in enumerate(data.split(b"\n")):
        try:
            record = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        if not isinstance(record, dict):
            continue
        merged = merge.feed(number % 3, record)
        if merged is not None:
            assert b"\n" not in msgspec.json.encode(merged)
    last = merge.last()
    assert ("error" in last) != merge.whole
    msgspec.json.encode(last)


def examine_zstd(data: bytes) -> None:
    """A body that says it is compressed: what comes out is bounded, else it is refused."""
    try:
        assert len(inflate_zstd(data, limit_bytes=_LIMIT_BYTES)) <= _LIMIT_BYTES
    except (MalformedRequest, BodyTooLarge):
        return


# -- inputs

_texts = st.text(max_size=12) | st.sampled_from(
    ['"done":true}', '{"done":true}', "data: [DONE]", '"usage":{"prompt_tokens":9}']
)
_numbers = st.integers(0, 10**12) | st.integers(0, 10**400)
_leaf = st.one_of(st.none(), st.booleans(), _numbers, _texts)
_any = st.recursive(
    _leaf,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["done", "error", "x", "eval_count", "status", "usage"]) | _texts,
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
_COUNTS = [
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
]


@st.composite
def _records(draw: st.DrawFn) -> bytes:
    """A native record in the order in which Go writes them, or any other."""
    record: dict[str, Any] = {"model": "m", "created_at": "2026-01-01T00:00:00Z"}
    record |= draw(
        st.sampled_from([{"response": "x"}, {"message": {"role": "assistant", "content": "x" * 600}}, {}])
    )
    record |= draw(
        st.dictionaries(st.sampled_from(["error", "context", "tool_calls", "status"]), _any, max_size=2)
    )
    if draw(st.booleans()):
        record |= {"done": draw(st.booleans() | _any), "done_reason": draw(_texts)}
    for name in draw(st.lists(st.sampled_from(_COUNTS), max_size=6, unique=True)):
        record[name] = draw(_numbers | _any)
    order = list(record.items())
    if draw(st.booleans()):
        order = draw(st.permutations(order))
    return json.dumps(dict(order), separators=(",", ":"), ensure_ascii=False).encode()


@st.composite
def _bodies(draw: st.DrawFn) -> bytes:
    """NDJSON, or events, as servers write them and as they do not."""
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
    body = b""
    for _ in range(draw(st.integers(0, 4))):
        record = draw(_records())
        name = draw(
            st.sampled_from([b"", b"", b"event: message_stop", b"event: error", b"event: x", b"data: [DONE]"])
        )
        match draw(st.integers(0, 3)):
            case 0:
                body += b"data: " + record + end + end
            case 1:
                body += name + end + b"data: " + record + end + end
            case _:
                body += record + end
    return body + draw(st.sampled_from([b"", b"", b"\n", b"\r", b" ", b'{"done":true', b"data: [DONE]\n\n"]))


_json_line = _any.map(lambda value: json.dumps(value).encode())
_progress = st.fixed_dictionaries(
    {"status": _texts | st.sampled_from(["success", "pulling"])},
    optional={"digest": _any, "total": _any, "completed": _any, "error": _any},
)
_row = st.fixed_dictionaries(
    {"name": _texts},
    optional={
        "modified_at": _any
        | st.sampled_from(["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999-23:59"]),
        "expires_at": st.datetimes().map(str) | _any,
        "digest": _any,
    },
)
_lists = st.lists(st.lists(_row, max_size=4).map(lambda rows: json.dumps({"models": rows})), max_size=3)


def _ending_seeds() -> Sequence[bytes]:
    wanted = {
        "/api/chat": 0,
        "/api/pull": 1,
        "/v1/chat/completions": 2,
        "/v1/responses": 3,
        "/v1/messages": 4,
    }
    found = [each for each in exchanges() if each.chunked and each.status == 200 and len(each.answer) < 4000]
    return [bytes((wanted.get(each.path, 0), 1, 7)) + each.answer for each in found]


def _answers_of(*paths: str) -> Sequence[bytes]:
    return [each.answer for each in exchanges() if each.path in paths and len(each.answer) < 4000]


ENDINGS = Target(
    name="endings",
    examine=examine_ending,
    seeds=_ending_seeds,
    words=(
        b'"done":true',
        b'"done":false',
        b'"eval_count":7',
        b'{"error":',
        b'"status":"success"',
        b"data: ",
        b"event: message_stop",
        b"data: [DONE]",
        b'"usage":{"prompt_tokens":1}',
        b"\n\n",
        b"\r\n",
    ),
    inputs=st.builds(
        lambda head, body: head + body, st.binary(min_size=3, max_size=3), _bodies() | st.binary()
    ),
)
ERRORS = Target(
    name="errors",
    examine=examine_error,
    words=(
        b'{"error":"',
        b'{"error":{"message":"',
        b"out of memory",
        b"connection refused",
        b"\\ud800",
        b"\\n",
    ),
    seeds=lambda: [
        bytes((0, each.status % 256, 0)) + each.answer for each in exchanges() if each.status >= 400
    ],
    inputs=st.builds(
        lambda head, body: head + body,
        st.binary(min_size=3, max_size=3),
        _json_line
        | st.binary()
        | st.text().map(lambda text: json.dumps({"error": {"message": text}}).encode()),
    ),
)
LISTS = Target(
    name="lists",
    examine=examine_lists,
    words=(
        b'{"models":[',
        b'{"name":"',
        b'"modified_at":"',
        b'"expires_at":"',
        b"0001-01-01T00:00:00Z",
        b"+23:59",
    ),
    seeds=lambda: _answers_of("/api/tags", "/api/ps"),
    inputs=_lists.map(lambda lines: "\n".join(lines).encode()),
)
PROGRESS = Target(
    name="progress",
    examine=examine_progress,
    words=(b'{"status":"success"}', b'"digest":', b'"total":', b'"completed":', b'{"error":', b"9" * 20),
    seeds=lambda: _answers_of("/api/pull", "/api/create"),
    inputs=st.lists(_progress | _any, max_size=9).map(
        lambda records: b"\n".join(json.dumps(each).encode() for each in records)
    ),
)
ZSTD = Target(
    name="zstd",
    examine=examine_zstd,
    words=(b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"),
    seeds=lambda: [
        zstandard.ZstdCompressor().compress(each) for each in (b"", b'{"model":"m"}', bytes(_LIMIT_BYTES + 1))
    ],
    inputs=st.builds(
        lambda first, second, more: zstandard.ZstdCompressor().compress(first * 900) + second + more,
        st.binary(max_size=90),
        st.binary(max_size=9).map(zstandard.ZstdCompressor().compress),
        st.binary(max_size=9),
    ),
)
ANSWER_TARGETS = (ENDINGS, ERRORS, LISTS, PROGRESS, ZSTD)
