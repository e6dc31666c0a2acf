"""The answer of `/v1/chat/completions` or `/v1/completions` as that of `/api/chat` or `/api/generate`.

A stream is whole once the runtime has said why it ended and then `[DONE]`; only then is the last record
made, so what breaks off in between never looks like an answer that is done.
Sources: Ollama v0.33 api/types.go (order and absence of fields) and server/routes.go; vLLM v0.11 and later,
ChatCompletionStreamResponse; llama.cpp b11669 as observed (`reasoning_content`, `timings`).
"""

from collections.abc import Mapping

import msgspec

from balancer.clock import Clock
from balancer.core.operation import Kind
from balancer.errors import BadResponse
from balancer.protocol.translation.bodies import WholeAnswer, message_of, object_of
from balancer.protocol.translation.events import Events
from balancer.protocol.translation.metering import Meter
from balancer.protocol.translation.shapes import now_of
from balancer.protocol.translation.tool_calls import ToolCalls

_NDJSON = "application/x-ndjson"
_EVENTS = "text/event-stream"
_DONE = b"[DONE]"
_REASONS = {"tool_calls": "stop", "function_call": "stop", "content_filter": "stop"}
_BROKEN = frozenset({"abort", "error"})
"""vLLM's reasons of an answer that it gave up."""
_SERVER_ERROR = 500


class GenerationAnswer(WholeAnswer):
    """Of one request; `model` is the client's own spelling."""

    def __init__(self, kind: Kind, model: str, clock: Clock) -> None:
        super().__init__()
        self._kind = kind
        self._model = model
        self._clock = clock
        self._meter = Meter(clock)
        self._events = Events()
        self._calls = ToolCalls()
        self._streams = False
        self._began = False
        self._ended = False
        self._reason: str | None = None

    def begin(self, status: int, media_type: str) -> None:
        super().begin(status, media_type)
        self._streams = media_type == _EVENTS and status == 200
        if self._streams:
            self.media_type = _NDJSON

    def feed(self, data: bytes) -> bytes:
        if not self._streams:
            return super().feed(data)
        records = bytearray()
        for event in self._events.feed(data):
            if not self._ended:
                records += self._record(event)
        return bytes(records)

    def end(self) -> bytes:
        return b"" if self._streams else super().end()

    def whole(self, body: bytes) -> bytes:
        told = object_of(body)
        choice = _choice(told)
        if choice is None:
            raise BadResponse("the runtime answered without a choice")
        reason = str(choice.get("finish_reason") or "stop")
        if reason in _BROKEN:
            raise BadResponse(f"the runtime gave the answer up ({reason})")
        self._meter.read(told)
        message = _object(choice.get("message"))
        self._calls.add(message.get("tool_calls"))
        text = choice.get("text") if "text" in choice else message.get("content")
        said = self._said(_text(text), _thought(message), self._calls.told())
        last = {"done": True, "done_reason": _REASONS.get(reason, reason)}
        return msgspec.json.encode({**said, **last, **_logprobs(choice), **self._meter.told()})

    def _record(self, event: bytes) -> bytes:
        """The records that an event makes: none, one, or the last ones."""
        if event == _DONE:
            return self._last()
        told = object_of(event)
        if "error" in told or told.get("object") == "error":
            return self._error(told)
        self._meter.read(told)
        choice = _choice(told)
        if choice is None:
            return b""
        reason = choice.get("finish_reason")
        if reason in _BROKEN:
            return self._error({"message": f"the runtime gave the answer up ({reason})"})
        self._reason = str(reason) if reason else self._reason
        delta = _object(choice.get("delta"))
        self._calls.add(delta.get("tool_calls"))
        text = _text(choice.get("text") if "text" in choice else delta.get("content"))
        thought = _thought(delta)
        if not text and not thought:
            return b""
        self._meter.token()
        return self._line({**self._said(text, thought, None), "done": False, **_logprobs(choice)})

    def _last(self) -> bytes:
        """What follows on `[DONE]`. Without a reason to end nothing does, and the stream is unfinished."""
        self._ended = True
        if self._reason is None:
            return b""
        try:
            calls = self._calls.told()
        except BadResponse as error:
            return self._error({"message": str(error)})
        records = self._line({**self._said("", "", calls), "done": False}) if calls else b""
        last = {"done": True, "done_reason": _REASONS.get(self._reason, self._reason)}
        return records + self._line({**self._said("", "", None), **last, **self._meter.told()})

    def _error(self, told: Mapping[str, object]) -> bytes:
        """An error record; where it is the first, an error answer as Ollama gives one."""
        self._ended = True
        if not self._began:
            error = told.get("error")
            code = error.get("code") if isinstance(error, dict) else told.get("code")
            self.status = code if isinstance(code, int) and 400 <= code < 600 else _SERVER_ERROR
            self.media_type = "application/json; charset=utf-8"
        return self._line({"error": message_of(told)})

    def _line(self, record: Mapping[str, object]) -> bytes:
        self._began = True
        return msgspec.json.encode(record) + b"\n"

    def _said(self, text: str, thought: str, calls: object) -> dict[str, object]:
        """A record as far as `done`."""
        head: dict[str, object] = {"model": self._model, "created_at": now_of(self._clock)}
        more: dict[str, object] = {"thinking": thought} if thought else {}
        if self._kind is Kind.CHAT:
            more |= {"tool_calls": calls} if calls else {}
            return {**head, "message": {"role": "assistant", "content": text, **more}}
        return {**head, "response": text, **more}


def _choice(told: Mapping[str, object]) -> dict[str, object] | None:
    choices = told.get("choices")
    return _object(choices[0]) if isinstance(choices, list) and choices else None


def _thought(said: Mapping[str, object]) -> str:
    """vLLM calls it `reasoning` since v0.12, `reasoning_content` before, as llama-server does."""
    return _text(said.get("reasoning_content")) or _text(said.get("reasoning"))


def _logprobs(choice: Mapping[str, object]) -> dict[str, object]:
    items = _object(choice.get("logprobs")).get("content")
    if not isinstance(items, list) or not items:
        return {}
    told = [_object(each) for each in items]
    return {"logprobs": [{**_logprob(each), **_alternatives(each)} for each in told]}


def _alternatives(item: Mapping[str, object]) -> dict[str, object]:
    others = item.get("top_logprobs")
    return (
        {"top_logprobs": [_logprob(_object(each)) for each in others]}
        if isinstance(others, list) and others
        else {}
    )


def _logprob(item: Mapping[str, object]) -> dict[str, object]:
    return {name: item[name] for name in ("token", "logprob", "bytes") if item.get(name) is not None}


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
