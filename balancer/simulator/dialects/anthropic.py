"""/v1/messages: requests read, answers and events written.

Sans I/O; called by web/. Source: Ollama v0.33 anthropic/anthropic.go,
middleware/anthropic.go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from balancer.simulator.answers import Part
from balancer.simulator.dialects.wire import JSON_TYPE, SSE_TYPE, encode, event
from balancer.simulator.errors import Refusal
from balancer.simulator.requests import (
    InferenceRequest,
    flag_field,
    int_field,
    list_field,
    map_field,
    number_field,
    records_field,
    text_field,
)

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
_MESSAGE_TYPE = 'struct { Role string "json:\\"role\\""; Content json.RawMessage "json:\\"content\\"" }'
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "": ""}


def error_body(status: int, message: str, request_id: str) -> bytes:
    """The error object of /v1/messages."""
    error = {"type": _ERROR_TYPES.get(status, "api_error"), "message": message}
    return encode({"type": "error", "error": error, "request_id": request_id})


def messages_request(body: Mapping[str, Any]) -> InferenceRequest:
    """Read a messages request. Raises: Refusal 400, checks in Ollama's order."""
    model = text_field(body, "model")
    if not model:
        raise Refusal(400, "model is required")
    limit = int_field(body, "max_tokens") or 0
    if limit <= 0:
        raise Refusal(400, "max_tokens is required and must be positive")
    messages = records_field(body, "messages", "[]anthropic.MessageParam", _MESSAGE_TYPE)
    if not messages:
        raise Refusal(400, "messages is required")
    options: dict[str, Any] = {"num_predict": limit, "top_k": int_field(body, "top_k")}
    options |= {name: number_field(body, name) for name in ("temperature", "top_p")}
    if stops := list_field(body, "stop_sequences"):
        options["stop"] = stops
    system = _text_of(body.get("system"))
    history = [{"role": "system", "content": system}] if system else []
    return InferenceRequest(
        is_chat=True,
        model=model,
        stream=bool(flag_field(body, "stream")),
        messages=(*history, *(native for message in messages for native in _native_messages(message))),
        tools=tuple(
            _native_tool(tool) for tool in records_field(body, "tools", "[]anthropic.Tool", "anthropic.Tool")
        ),
        options=options,
        think=_think(body),
        relax_thinking=True,
    )


def estimated_tokens(body: Mapping[str, Any]) -> int:
    """Ollama's guess for message_start: a quarter of the characters of what will be read."""
    characters = len(_text_of(body.get("system")))
    for message in list_field(body, "messages"):
        characters += len(str(message.get("role", ""))) + len(_text_of(message.get("content")))
    return characters // 4


def _think(body: Mapping[str, Any]) -> bool | str | None:
    kind = text_field(map_field(body, "thinking"), "type")
    if kind in {"enabled", "disabled"}:
        return kind == "enabled"
    effort = text_field(map_field(body, "output_config"), "effort").strip().lower()
    effort = "high" if effort == "xhigh" else effort
    return effort if effort in {"high", "medium", "low", "max"} else None


def _native_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {
        "name": tool.get("name", ""),
        "description": tool.get("description", ""),
        "parameters": tool.get("input_schema") or {},
    }
    return {"type": "function", "function": function}


def _native_messages(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One message as native ones; the tool results of a user come before the user's text."""
    role, content = str(message.get("role", "")).lower(), message.get("content")
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    results = [block for block in blocks if block.get("type") == "tool_result"]
    for block in results:
        yield {"role": "tool", "content": _text_of(block.get("content"))}
    images = [_image_of(block) for block in blocks if block.get("type") == "image"]
    calls = [
        {"id": block.get("id"), "function": {"name": block.get("name"), "arguments": block.get("input")}}
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    text = _text_of(blocks)
    if text or images or calls:
        native: dict[str, Any] = {"role": role, "content": text}
        if images:
            native["images"] = images
        if calls:
            native["tool_calls"] = calls
        yield native


def _image_of(block: Mapping[str, Any]) -> str:
    source = block.get("source")
    if not isinstance(source, Mapping):
        raise Refusal(400, "invalid image source")
    if source.get("type") != "base64":
        kind = source.get("type", "")
        raise Refusal(400, f"invalid image source type: {kind}. Only base64 images are supported.")
    return str(source.get("data", ""))


def _text_of(content: Any) -> str:
    """The text of a string or of a list of blocks."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "".join(str(block.get("text") or "") for block in blocks if block.get("type") == "text")


class MessagesAnswer:
    """The answer to one messages request; a stream opens and closes one block after the other."""

    stream_type = SSE_TYPE
    unary_type = JSON_TYPE

    def __init__(self, model: str, *, id: str, request_id: str, estimated_input_tokens: int) -> None:
        self._model = model
        self._id = id
        self._request_id = request_id
        self._estimated_input_tokens = estimated_input_tokens
        self._started = False
        self._open_block = ""
        self._index = 0
        self._called_tools = False

    def chunks(self, part: Part) -> list[bytes]:
        return list(self._events(part))

    def whole(self, part: Part) -> bytes:
        content: list[dict[str, Any]] = []
        if part.thinking:
            content.append({"type": "thinking", "thinking": part.thinking})
        if part.content:
            content.append({"type": "text", "text": part.content})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
            for call in part.tool_calls
        ]
        message = self._message(content, part.prompt_tokens, part.answer_tokens)
        tokens = message.pop("usage")
        reason = _stop_reason(part, called_tools=bool(part.tool_calls))
        ending = {"stop_reason": reason} if reason else {}
        return encode({**message, **ending, "usage": tokens}) + b"\n"

    def broken(self, message: str) -> list[bytes]:
        """The error is swallowed: the stream just ends."""
        return []

    def error(self, status: int, message: str) -> bytes:
        return error_body(status, message, self._request_id) + b"\n"

    def _message(self, content: list[Any], input_tokens: int, output_tokens: int) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens},
        }

    def _events(self, part: Part) -> Iterator[bytes]:
        if not self._started:
            self._started = True
            tokens = part.prompt_tokens or self._estimated_input_tokens
            yield _event("message_start", message=self._message([], tokens, 0))
        if part.thinking:
            yield from self._open("thinking", {"type": "thinking", "thinking": ""})
            yield self._delta({"type": "thinking_delta", "thinking": part.thinking})
        if part.content:
            yield from self._open("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": part.content})
        for call in part.tool_calls:
            self._called_tools = True
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            yield from self._open(f"tool {call.id}", block)
            yield self._delta({"type": "input_json_delta", "partial_json": encode(call.arguments).decode()})
            yield from self._close()
        if part.done:
            yield from self._close()
            reason = _stop_reason(part, called_tools=self._called_tools)
            tokens_used = {"input_tokens": part.prompt_tokens, "output_tokens": part.answer_tokens}
            yield _event("message_delta", delta={"stop_reason": reason}, usage=tokens_used)
            yield _event("message_stop")

    def _open(self, block: str, start: dict[str, Any]) -> Iterator[bytes]:
        if self._open_block == block:
            return
        yield from self._close()
        self._open_block = block
        yield _event("content_block_start", index=self._index, content_block=start)

    def _close(self) -> Iterator[bytes]:
        if self._open_block:
            yield _event("content_block_stop", index=self._index)
            self._open_block = ""
            self._index += 1

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)


def _stop_reason(part: Part, *, called_tools: bool) -> str:
    return "tool_use" if called_tools else _STOP_REASONS.get(part.done_reason, "stop_sequence")


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)
