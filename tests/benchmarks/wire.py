"""What both ends of a measured proxy agree on: the question, and the answer to the byte.

A question names its marker, how many chunks are wanted, how large and how often. Every chunk of an answer
tells the marker, its number and when it was sent (CLOCK_MONOTONIC, which all processes share), so that an
answer that is not whole, in order and the right one is found out, and the delay of each chunk is known.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum

MODEL = "bench:latest"
STAMP_BYTES = 19
TEXT = b"%08d %06d@%019d"
_TEXT_BYTES = len(TEXT % (0, 0, 0))
_MADE_AT = "2026-01-01T00:00:00.000000Z"
_PLACE = "TEXT"
_SAID = re.compile(rb"marker (\d{8}): (\d+) chunks of (\d+) bytes, one every (\d+) ms")


class Path(StrEnum):
    """The paths that are answered at length."""

    GENERATE = "/api/generate"
    CHAT = "/api/chat"
    OPENAI = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question's kind; without `stream` there is one answer and its text is `chunk_bytes` long."""

    path: Path = Path.GENERATE
    stream: bool = False
    chunks: int = 1
    chunk_bytes: int = 48
    every_ms: int = 0

    def body(self, marker: int, *, padding: bytes = b"") -> bytes:
        """The JSON; `padding` makes it longer and says nothing."""
        prompt = (
            f"marker {marker:08d}: {self.chunks} chunks of {self.chunk_bytes} bytes, "
            f"one every {self.every_ms} ms"
        )
        told = (
            {"prompt": prompt}
            if self.path is Path.GENERATE
            else {"messages": [{"role": "user", "content": prompt}]}
        )
        body = json.dumps({"model": MODEL, "stream": self.stream, **told}).encode()
        place = body.index(prompt.encode()) + len(prompt)
        return body[:place] + padding + body[place:]

    def request(self, marker: int, *, padding: bytes = b"") -> bytes:
        """Head and body."""
        body = self.body(marker, padding=padding)
        return self.head(len(body)) + body

    def head(self, length: int) -> bytes:
        """The head of a body of so many bytes."""
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n"
        ).encode()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body asks for."""

    marker: int
    chunks: int
    chunk_bytes: int
    every_ms: int
    stream: bool


def read_question(body: bytes) -> Asked | None:
    """None where it is no question of this benchmark. The keys may have been written anew on the way."""
    said = _SAID.search(body)
    if said is None:
        return None
    stream = re.search(rb'"stream": ?true', body) is not None
    return Asked(int(said[1]), int(said[2]), int(said[3]), int(said[4]), stream)


@dataclass(frozen=True, slots=True)
class Form:
    """How one path writes its answers; a text goes between `before` and `after`."""

    before: bytes
    after: bytes
    end: bytes
    whole_before: bytes
    whole_after: bytes
    content_type: bytes

    def whole(self, marker: int, text_bytes: int) -> bytes:
        """The answer that is not streamed. It carries no time, so that it is known beforehand."""
        return b"".join((self.whole_before, padded(TEXT % (marker, 0, 0), text_bytes), self.whole_after))


def padded(text: bytes, text_bytes: int) -> bytes:
    """So long at least."""
    return text.ljust(text_bytes, b".")


def tail_of(text_bytes: int) -> bytes:
    """What follows the stamp in a text of so many bytes."""
    return b"." * max(0, text_bytes - _TEXT_BYTES)


def _native(key: str, shape: object) -> Form:
    chunk = {"model": MODEL, "created_at": _MADE_AT, key: shape, "done": False}
    counters = {
        "done_reason": "stop",
        "total_duration": 2_000_000,
        "load_duration": 1000,
        "prompt_eval_count": 9,
        "prompt_eval_duration": 1_000_000,
        "eval_count": 20,
        "eval_duration": 1_000_000,
    }
    before, after = _split(chunk)
    whole_before, whole_after = _split({**chunk, "done": True, **counters})
    end = whole_before + whole_after
    return Form(before, after + b"\n", end + b"\n", whole_before, whole_after, b"application/x-ndjson")


def _openai() -> Form:
    shared = {"id": "chatcmpl-1", "created": 1767225600, "model": MODEL}
    choice = {"index": 0, "delta": {"role": "assistant", "content": _PLACE}, "finish_reason": None}
    before, after = _split({**shared, "object": "chat.completion.chunk", "choices": [choice]})
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    end = json.dumps({**shared, "object": "chat.completion.chunk", "choices": [last]}).encode()
    message = {"role": "assistant", "content": _PLACE}
    whole = {
        **shared,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 20, "total_tokens": 29},
    }
    whole_before, whole_after = _split(whole)
    return Form(
        b"data: " + before,
        after + b"\n\n",
        b"data: " + end + b"\n\ndata: [DONE]\n\n",
        whole_before,
        whole_after,
        b"text/event-stream",
    )


def _split(record: object) -> tuple[bytes, bytes]:
    before, _, after = json.dumps(record, separators=(",", ":")).encode().partition(_PLACE.encode())
    return before, after


FORMS = {
    Path.GENERATE: _native("response", _PLACE),
    Path.CHAT: _native("message", {"role": "assistant", "content": _PLACE}),
    Path.OPENAI: _openai(),
}
