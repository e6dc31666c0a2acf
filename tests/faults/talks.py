"""The ways in which clients talk here: what each asks, and how its answer ends, by the documents.

An answer that is whole, one that was told to be broken, and an error each have their shape in every
dialect; this knows them from the outside and imports nothing of the balancer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

CHAT, COLD, EMBEDDER = "llama3.2:latest", "gemma3:4b", "nomic-embed-text:latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """One way to ask. `text` is what a whole answer says, None where the body is no whole answer;
    `record` is whether a body ends with the dialect's error record."""

    name: str
    path: str
    streams: bool
    ask: Callable[[str, int | None], dict[str, Any]]
    text: Callable[[bytes], str | None]

    @property
    def dialect(self) -> str:
        return {"/v1/messages": "anthropic"}.get(self.path, "openai" if "/v1/" in self.path else "ollama")

    def request(self, request_id: str, marker: str, *, model: str = "", tokens: int | None = None) -> bytes:
        """The request as it goes over the wire."""
        asked = self.ask(f"{marker} tell me something", tokens)
        body = json.dumps({**asked, **({"model": model} if model else {})}).encode()
        lines = [
            f"POST {self.path} HTTP/1.1",
            "Host: localhost",
            f"X-Request-ID: {request_id}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def is_whole(self, body: bytes) -> bool:
        """Whether a body says that it is a whole answer."""
        return self.text(body) is not None

    def ends_with_error(self, body: bytes) -> bool:
        """Whether the last record of a stream is an error of the dialect."""
        if self.dialect == "anthropic":
            head, _, last = body.rstrip(b"\n").rpartition(b"\nevent: error\ndata: ")
            return bool(head) and self._is_error(last)
        lines = body.rstrip(b"\n").rpartition(b"\n")
        return self._is_error(lines[2].removeprefix(b"data: "))

    def is_error(self, body: bytes) -> bool:
        """Whether a body is an error of the dialect."""
        return self._is_error(body)

    def _is_error(self, raw: bytes) -> bool:
        try:
            told = json.loads(raw)
        except ValueError:
            return False
        if not isinstance(told, dict) or not told.get("error"):
            return False
        if self.dialect == "ollama":
            return isinstance(told["error"], str)
        message = told["error"].get("message") if isinstance(told["error"], dict) else None
        return isinstance(message, str) and (self.dialect != "anthropic" or told.get("type") == "error")


def _lines(pick: Callable[[Mapping[str, Any]], str]) -> Callable[[bytes], str | None]:
    """Of a native stream."""

    def read(body: bytes) -> str | None:
        try:
            records = [json.loads(line) for line in body.splitlines()]
        except ValueError:
            return None
        if not body.endswith(b"\n") or not records or records[-1].get("done") is not True:
            return None
        return "".join(pick(record) for record in records)

    return read


def _object(pick: Callable[[Mapping[str, Any]], str]) -> Callable[[bytes], str | None]:
    """Of an answer in one piece."""

    def read(body: bytes) -> str | None:
        try:
            return pick(json.loads(body))
        except (ValueError, KeyError, IndexError, TypeError):
            return None

    return read


def _chunks(body: bytes) -> str | None:
    """Of OpenAI's stream."""
    if not body.endswith(b"data: [DONE]\n\n"):
        return None
    try:
        events = [json.loads(each[6:]) for each in body.split(b"\n\n")[:-2]]
        return "".join(choice["delta"].get("content") or "" for each in events for choice in each["choices"])
    except (ValueError, KeyError):
        return None


def _events(body: bytes) -> str | None:
    """Of Anthropic's stream."""
    events = [each.partition(b"\ndata: ")[2] for each in body.split(b"\n\n") if each]
    if not body.endswith(b"\n\n") or b"event: message_stop\n" not in body:
        return None
    try:
        told = [json.loads(each) for each in events]
    except ValueError:
        return None
    return "".join(each["delta"].get("text", "") for each in told if each["type"] == "content_block_delta")


def _chat(stream: bool) -> Callable[[str, int | None], dict[str, Any]]:
    def ask(prompt: str, tokens: int | None) -> dict[str, Any]:
        options = {} if tokens is None else {"options": {"simulated_tokens": tokens}}
        return {"model": CHAT, "messages": [_user(prompt)], "stream": stream, **options}

    return ask


def _generate(prompt: str, tokens: int | None) -> dict[str, Any]:
    options = {} if tokens is None else {"options": {"simulated_tokens": tokens}}
    return {"model": CHAT, "prompt": prompt, **options}


def _completion(stream: bool) -> Callable[[str, int | None], dict[str, Any]]:
    return lambda prompt, _: {"model": CHAT, "messages": [_user(prompt)], "stream": stream}


def _message(prompt: str, _: int | None) -> dict[str, Any]:
    return {"model": CHAT, "messages": [_user(prompt)], "max_tokens": 1000, "stream": True}


def _embed(prompt: str, _: int | None) -> dict[str, Any]:
    return {"model": EMBEDDER, "input": prompt}


def _user(prompt: str) -> dict[str, str]:
    return {"role": "user", "content": prompt}


def _talk(name: str, path: str, ask: Any, text: Any) -> Talk:
    return Talk(name=name, path=path, streams=name.endswith("stream"), ask=ask, text=text)


CHAT_STREAM = _talk("chat, stream", "/api/chat", _chat(True), _lines(lambda told: told["message"]["content"]))
CHAT_UNARY = _talk("chat", "/api/chat", _chat(False), _object(lambda told: told["message"]["content"]))
GENERATE = _talk("generate, stream", "/api/generate", _generate, _lines(lambda told: told["response"]))
COMPLETION_STREAM = _talk("completion, stream", "/v1/chat/completions", _completion(True), _chunks)
COMPLETION = _talk(
    "completion",
    "/v1/chat/completions",
    _completion(False),
    _object(lambda told: told["choices"][0]["message"]["content"]),
)
MESSAGE = _talk("message, stream", "/v1/messages", _message, _events)
EMBED = _talk("embed", "/api/embed", _embed, _object(lambda told: str(told["embeddings"][0])))

MIXED = (CHAT_STREAM, CHAT_UNARY, GENERATE, COMPLETION_STREAM, COMPLETION, MESSAGE, EMBED)
