"""How an answer ended: judged from its last record, never from the mere end of its body.

A runner that dies ends its HTTP body properly: with an error line on native paths, with a chunk
that names no model on `/v1`, with nothing on `/v1/messages`. So a stream is whole only where its
last record says so. Nothing is decoded but the ends: a `context` array can be huge, and a tool
call may contain any text. The patterns are anchored to the begin or the end of a record, and a JSON
string holds no bare quote and no bare line end, so they match top-level keys only.
Source: observed on Ollama v0.33 (children killed mid-stream, all dialects).
"""

import re
from enum import StrEnum

import msgspec

from balancer.core.operation import Dialect, Kind, Operation, Wire

TAIL_BYTES = 2048
HEAD_BYTES = 512
_NEW_BYTES = 4096
_OBJECT_BYTES = 41
"""Of a bytes object and its place in a list, beside its content."""
_CR = 0x0D


class Ending(StrEnum):
    """What the last record says."""

    WHOLE = "whole"
    ERROR = "error"
    UNFINISHED = "unfinished"


class Counters(msgspec.Struct, frozen=True):
    """What the instance counted: tokens, and durations in seconds; None where it does not tell."""

    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    load_seconds: float | None = None
    prompt_seconds: float | None = None
    generation_seconds: float | None = None
    total_seconds: float | None = None


class Tail:
    """What a verdict needs of a body that passes by: its last `TAIL_BYTES`, and the first
    `HEAD_BYTES` of its last line that is not empty."""

    __slots__ = ("_data", "_head", "_line_open", "_new", "_new_bytes")

    def __init__(self) -> None:
        self._data = b""
        self._head = b""
        self._line_open = False
        self._new: list[bytes] = []
        self._new_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Take note of the next chunk, which is not empty. It is looked at with others, later."""
        self._new.append(chunk)
        self._new_bytes += len(chunk) + _OBJECT_BYTES
        if self._new_bytes > _NEW_BYTES:
            self._look()

    @property
    def data(self) -> bytes:
        """The last `TAIL_BYTES`."""
        self._look()
        return self._data

    @property
    def head(self) -> bytes:
        """The first `HEAD_BYTES` of the last line that is not empty."""
        self._look()
        return self._head

    def _look(self) -> None:
        if not self._new:
            return
        new = b"".join(self._new)
        self._new.clear()
        self._new_bytes = 0
        length = len(new.rstrip(b"\r\n"))
        begin = new.rfind(b"\n", 0, length) + 1
        if length and (begin or not self._line_open):
            while new[begin] == _CR:
                begin += 1
            self._head = new[begin : begin + HEAD_BYTES]
        elif self._line_open and len(self._head) < HEAD_BYTES:
            self._head = (self._head + new)[:HEAD_BYTES]
        if new.find(b"\n", length) >= 0:
            self._line_open = False
        elif length:
            self._line_open = True
        self._data = new[-TAIL_BYTES:] if len(new) >= TAIL_BYTES else (self._data + new)[-TAIL_BYTES:]

    @property
    def last_line(self) -> bytes:
        """The last line that is not empty, without what marks it as an event's; cut at its end where
        it is longer than what is kept."""
        line = self.head if len(self.head) < HEAD_BYTES else self.data.rstrip().rsplit(b"\n", 1)[-1]
        return line.strip().removeprefix(b"data: ")


_STRING = rb'"(?:[^"\\]|\\.)*"'
_DONE_AT_HEAD = re.compile(rb"\{(?:" + _STRING + rb":" + _STRING + rb',)*"done":(true|false)')
_DONE_AT_END = re.compile(
    rb'"done":(true|false)(?:,"done_reason":' + _STRING + rb')?(?:,"[a-z_]+":\d+)*\}\s*\Z'
)
_SUCCESS_AT_HEAD = re.compile(rb'\{"status":"success"[,}]')
_ERROR_AT_HEAD = re.compile(rb'(?:data: )?\{"error":')
_NUMBERS_AT_END = re.compile(rb'((?:,"[a-z_]+":\d+)+)\}\s*\Z')
_NUMBER = re.compile(rb'"([a-z_]+)":(\d{1,18})(?!\d)')
_USAGE = re.compile(rb'"usage":(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_LAST_EVENT = re.compile(rb"(?:\A|\n)event: ([a-z._]+)\r?\n")
_TYPE_AT_HEAD = re.compile(rb'data: \{"type":"([a-z._]+)"')
_TYPE_AT_END = re.compile(rb'"type":"([a-z._]+)"\}\s*\Z')

_WHOLE_EVENTS = frozenset({b"message_stop", b"response.completed", b"response.incomplete"})
_ERROR_EVENTS = frozenset({b"error", b"response.failed"})


def judge(operation: Operation, tail: Tail) -> Ending:
    """What the end of a successful answer's body says, given that its framing ended properly.

    A body that does not stream is whole by its framing."""
    match operation.wire:
        case Wire.JSON:
            return Ending.WHOLE
        case Wire.NDJSON:
            return _judge_lines(operation.kind, tail)
        case Wire.SSE:
            return _judge_events(operation, tail)


def _judge_lines(kind: Kind, tail: Tail) -> Ending:
    if _ERROR_AT_HEAD.match(tail.head):
        return Ending.ERROR
    if not tail.data.rstrip().endswith(b"}") or not _is_record(tail):
        return Ending.UNFINISHED
    if kind is Kind.MANAGE:
        return Ending.WHOLE if _SUCCESS_AT_HEAD.match(tail.head) else Ending.UNFINISHED
    done = _DONE_AT_HEAD.match(tail.head) or _DONE_AT_END.search(tail.data)
    return Ending.WHOLE if done is not None and done.group(1) == b"true" else Ending.UNFINISHED


def _is_record(tail: Tail) -> bool:
    """Whether the last line is a whole record: one that breaks off behind the arguments of a tool call may
    end as the last one does. Each record of a stream ends its line; a single one may not."""
    if tail.data.endswith(b"\n"):
        return True
    try:
        return isinstance(msgspec.json.decode(tail.head), dict)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _judge_events(operation: Operation, tail: Tail) -> Ending:
    if operation.dialect is Dialect.OPENAI and operation.kind is not Kind.RESPONSE:
        last_line = tail.data.rstrip().rsplit(b"\n", 1)[-1]
        if last_line == b"data: [DONE]":
            return Ending.WHOLE
        return Ending.ERROR if _ERROR_AT_HEAD.match(tail.head) else Ending.UNFINISHED
    if not tail.data.endswith((b"\n\n", b"\r\n\r\n")):
        return Ending.UNFINISHED  # an event without the blank line that ends it is none
    named = _LAST_EVENT.findall(tail.data)
    typed = _TYPE_AT_HEAD.match(tail.head) or _TYPE_AT_END.search(tail.data)
    last = named[-1] if named else typed.group(1) if typed else b""
    if last in _WHOLE_EVENTS:
        return Ending.WHOLE
    return Ending.ERROR if last in _ERROR_EVENTS else Ending.UNFINISHED


def read_counters(operation: Operation, tail: Tail) -> Counters:
    """The counters of an answer that ended; empty ones where there are none in sight."""
    if operation.dialect is Dialect.OLLAMA:
        # Most answers have them behind "done", which is quicker to find than to search for.
        numbers = _numbers(_NUMBERS_AT_END.search(tail.data, max(0, tail.data.rfind(b'"done":'))))
        return Counters(
            prompt_tokens=_count(numbers.get(b"prompt_eval_count")),
            generated_tokens=_count(numbers.get(b"eval_count")),
            load_seconds=_seconds(numbers.get(b"load_duration")),
            prompt_seconds=_seconds(numbers.get(b"prompt_eval_duration")),
            generation_seconds=_seconds(numbers.get(b"eval_duration")),
            total_seconds=_seconds(numbers.get(b"total_duration")),
        )
    usages = list(_USAGE.finditer(tail.data))
    numbers = _numbers(usages[-1] if usages else None)
    return Counters(
        prompt_tokens=_count(numbers.get(b"prompt_tokens", numbers.get(b"input_tokens"))),
        generated_tokens=_count(numbers.get(b"completion_tokens", numbers.get(b"output_tokens"))),
    )


def _numbers(match: re.Match[bytes] | None) -> dict[bytes, bytes]:
    return dict(_NUMBER.findall(match.group(1))) if match else {}


def _count(digits: bytes | None) -> int | None:
    return None if digits is None else int(digits)


def _seconds(nanoseconds: bytes | None) -> float | None:
    return None if nanoseconds is None else int(nanoseconds) / 1e9
