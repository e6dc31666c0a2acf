"""Ollama's own answers: /api/generate and /api/chat, one JSON object per line.

Sans I/O; called by web/exchange.py. Source: Ollama v0.33 api/types.go (field
order, omitted fields) and observation (chunks, content types).
"""

from __future__ import annotations

from typing import Any

from balancer.simulator.answers import Part, ToolCall
from balancer.simulator.dialects.wire import JSON_UTF8_TYPE, NDJSON_TYPE, encode
from balancer.simulator.durations import created_at


def error_body(message: str) -> bytes:
    """The error object of every native route."""
    return encode({"error": message})


def tool_call(call: ToolCall) -> dict[str, Any]:
    """A tool call as native answers carry it: the arguments are an object."""
    function = {"index": call.index, "name": call.name, "arguments": call.arguments}
    return {"id": call.id, "function": function}


class NativeAnswer:
    """The answer to one native request; `model` is echoed as the client wrote it."""

    stream_type = NDJSON_TYPE
    unary_type = JSON_UTF8_TYPE

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._model = model
        self._is_chat = is_chat

    def chunks(self, part: Part) -> list[bytes]:
        return [encode(self._record(part)) + b"\n"]

    def whole(self, part: Part) -> bytes:
        return encode(self._record(part))

    def broken(self, message: str) -> list[bytes]:
        return [error_body(message) + b"\n"]

    def error(self, status: int, message: str) -> bytes:
        return error_body(message)

    def _record(self, part: Part) -> dict[str, Any]:
        record: dict[str, Any] = {"model": self._model, "created_at": created_at()}
        if self._is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": part.content}
            if part.thinking:
                message["thinking"] = part.thinking
            if part.tool_calls:
                message["tool_calls"] = [tool_call(call) for call in part.tool_calls]
            record["message"] = message
        else:
            record["response"] = part.content
            if part.thinking:
                record["thinking"] = part.thinking
        record["done"] = part.done
        if part.done_reason:
            record["done_reason"] = part.done_reason
        return self._with_counters(record, part)

    def _with_counters(self, record: dict[str, Any], part: Part) -> dict[str, Any]:
        """Metrics last for a chat, before the log probabilities for a generate; zeros are omitted."""
        logprobs = {"logprobs": list(part.logprobs)} if part.logprobs else {}
        metrics: dict[str, int] = {}
        if part.metrics is not None:
            for name in _METRICS:
                if value := getattr(part.metrics, name):
                    metrics[name] = value
        if self._is_chat:
            return {**record, **logprobs, **metrics}
        context = {"context": list(part.context)} if part.context else {}
        return {**record, **context, **metrics, **logprobs}


_METRICS = (
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
)
