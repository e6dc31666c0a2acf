"""/v1/chat/completions and /v1/completions: requests read, answers written.

Sans I/O; called by web/. /v1/responses has a module of its own. Source: Ollama
v0.33 openai/openai.go, middleware/openai.go, and observation (chunking).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from balancer.simulator.answers import Part, ToolCall
from balancer.simulator.dialects.wire import JSON_TYPE, SSE_TYPE, encode, event
from balancer.simulator.errors import Refusal
from balancer.simulator.requests import (
    InferenceRequest,
    flag_field,
    int_field,
    map_field,
    number_field,
    records_field,
    text_field,
)

_ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_GO_TYPES = {type(None): "<nil>", bool: "bool", dict: "map[string]interface {}"}
_SAMPLING = ("temperature", "top_p", "frequency_penalty", "presence_penalty")
_DONE = b"data: [DONE]\n\n"
_EFFORTS: Mapping[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}


def error_body(status: int, message: str) -> bytes:
    """The error object of every /v1 route but /v1/messages."""
    kind = _ERROR_TYPES.get(status, "api_error")
    return encode({"error": {"message": message, "type": kind, "param": None, "code": None}})


def tool_call(call: ToolCall) -> dict[str, Any]:
    """A tool call as /v1 carries it: the arguments are a JSON string."""
    function = {"name": call.name, "arguments": encode(call.arguments).decode()}
    return {"id": call.id, "index": call.index, "type": "function", "function": function}


def usage(part: Part) -> dict[str, int]:
    return {
        "prompt_tokens": part.prompt_tokens,
        "completion_tokens": part.answer_tokens,
        "total_tokens": part.prompt_tokens + part.answer_tokens,
    }


def think_of_effort(effort: str) -> bool | str | None:
    """Ollama's `think` for an OpenAI reasoning effort. Raises: Refusal 400."""
    if not effort:
        return None
    if effort not in _EFFORTS:
        known = '"minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none"'
        raise Refusal(400, f'invalid reasoning value: "{effort}" (must be {known})')
    return _EFFORTS[effort]


def chat_request(body: Mapping[str, Any]) -> InferenceRequest:
    """Read a chat completion request. Raises: Refusal 400."""
    messages = records_field(body, "messages", "[]openai.Message", "openai.Message")
    if not messages:
        raise Refusal(400, "[] is too short - 'messages'")
    reasoning = map_field(body, "reasoning")
    effort = text_field(reasoning, "effort") if reasoning else text_field(body, "reasoning_effort")
    return InferenceRequest(
        is_chat=True,
        model=text_field(body, "model"),
        stream=bool(flag_field(body, "stream")),
        messages=tuple(native for message in messages for native in native_messages(message)),
        tools=tuple(records_field(body, "tools", "[]api.Tool", "api.Tool")),
        options=_options(body, "float64"),
        format=_format(map_field(body, "response_format")),
        think=think_of_effort(effort),
        logprobs=bool(flag_field(body, "logprobs")),
        top_logprobs=int_field(body, "top_logprobs") or 0,
    )


def completion_request(body: Mapping[str, Any]) -> InferenceRequest:
    """Read a text completion request. Raises: Refusal 400."""
    return InferenceRequest(
        is_chat=False,
        model=text_field(body, "model"),
        stream=bool(flag_field(body, "stream")),
        prompt=text_field(body, "prompt"),
        suffix=text_field(body, "suffix"),
        options=_options(body, "float32"),
    )


def native_messages(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One OpenAI message as native ones: each part of a list becomes its own. Raises: Refusal 400."""
    role, content = message.get("role", ""), message.get("content")
    calls = message.get("tool_calls")
    extra = {"tool_calls": calls} if calls else {}
    if isinstance(content, str):
        return [{"role": role, "content": content, **extra}]
    if isinstance(content, list):
        return [{"role": role, **_content_part(part)} for part in content]
    if content is not None or calls is None:
        raise Refusal(400, f"invalid message content type: {_GO_TYPES.get(type(content), 'float64')}")
    return [{"role": role, "content": "", **extra}]


def _content_part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"content": part["text"]}
    if kind == "image_url":
        image = part.get("image_url")
        return {"images": [decoded_image_url(image.get("url") if isinstance(image, Mapping) else image)]}
    if kind == "input_audio":
        audio = part.get("input_audio")
        if not isinstance(audio, Mapping):
            raise Refusal(400, "invalid input_audio format")
        return {"images": [str(audio.get("data", ""))]}
    raise Refusal(400, "invalid message format")


def decoded_image_url(url: Any) -> str:
    """The base64 text of a data URL. Raises: Refusal 400; addresses on the web are refused."""
    if not isinstance(url, str):
        raise Refusal(400, "invalid message format")
    if url.startswith(("http://", "https://")):
        raise Refusal(400, "image URLs are not currently supported, please use base64 encoded data instead")
    head, comma, data = url.partition(";base64,")
    if not comma or head not in {"data:", *(f"data:image/{kind}" for kind in ("jpeg", "jpg", "png", "webp"))}:
        raise Refusal(400, "invalid image input")
    return data


def _options(body: Mapping[str, Any], go_float: str) -> dict[str, Any]:
    options: dict[str, Any] = {name: number_field(body, name, go_float) for name in _SAMPLING}
    if (limit := int_field(body, "max_tokens")) is not None:
        options["num_predict"] = limit
    if (seed := int_field(body, "seed")) is not None:
        options["seed"] = seed
    stop = body.get("stop")
    # A stop of any other type is ignored, as in Ollama.
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    if stops := [one for one in stops if isinstance(one, str)]:
        options["stop"] = stops
    return options


def _format(wanted: Mapping[str, Any]) -> Any:
    kind = str(wanted.get("type", "")).strip().lower()
    if kind == "json_object":
        return "json"
    return map_field(wanted, "json_schema").get("schema") if kind == "json_schema" else None


class _OpenAIAnswer:
    """What both completion forms share: their types, errors, ids and dates."""

    stream_type = SSE_TYPE
    unary_type = JSON_TYPE

    def __init__(self, model: str, *, id: str, include_usage: bool) -> None:
        self._model = model
        self._id = id
        self._include_usage = include_usage
        self._created = int(datetime.now(UTC).timestamp())

    def error(self, status: int, message: str) -> bytes:
        return error_body(status, message) + b"\n"

    def _envelope(self, kind: str, choices: list[Any], model: str | None = None) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model if model is None else model,
            "system_fingerprint": "fp_ollama",
            "choices": choices,
        }


class ChatAnswer(_OpenAIAnswer):
    """The answer to one chat completion; finish, usage and [DONE] go out as one chunk."""

    def __init__(self, model: str, *, id: str, include_usage: bool) -> None:
        super().__init__(model, id=id, include_usage=include_usage)
        self._started = False
        self._called_tools = False

    def chunks(self, part: Part) -> list[bytes]:
        out = b""
        if not (part.done and self._started and part.empty):
            out += self._delta_event(part)
        self._called_tools = self._called_tools or bool(part.tool_calls)
        if part.done:
            reason = "tool_calls" if part.done_reason == "stop" and self._called_tools else part.done_reason
            finish = {"index": 0, "delta": {}, "finish_reason": reason}
            out += event(self._chunk([finish]))
            if self._include_usage:
                out += event({**self._chunk([]), "usage": usage(part)})
            out += _DONE
        return [out]

    def whole(self, part: Part) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": part.content}
        if part.thinking:
            message["reasoning"] = part.thinking
        if part.tool_calls:
            message["tool_calls"] = [tool_call(call) for call in part.tool_calls]
        reason = "tool_calls" if part.done_reason == "stop" and part.tool_calls else part.done_reason or None
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reason}
        if part.logprobs:
            choice["logprobs"] = {"content": list(part.logprobs)}
        return encode({**self._envelope("chat.completion", [choice]), "usage": usage(part)}) + b"\n"

    def broken(self, message: str) -> list[bytes]:
        """The error is swallowed: one chunk with an empty model, then nothing."""
        delta: dict[str, Any] = {"content": ""} if self._started else {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return [event(self._chunk([choice], model=""))]

    def _chunk(self, choices: list[Any], model: str | None = None) -> dict[str, Any]:
        return self._envelope("chat.completion.chunk", choices, model)

    def _delta_event(self, part: Part) -> bytes:
        delta: dict[str, Any] = {} if self._started else {"role": "assistant"}
        self._started = True
        delta["content"] = part.content
        if part.thinking:
            delta["reasoning"] = part.thinking
        if part.tool_calls:
            delta["tool_calls"] = [tool_call(call) for call in part.tool_calls]
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
        if part.logprobs:
            choice["logprobs"] = {"content": list(part.logprobs)}
        return event(self._chunk([choice]))


class CompletionAnswer(_OpenAIAnswer):
    """The answer to one text completion."""

    def chunks(self, part: Part) -> list[bytes]:
        chunk = self._envelope("text_completion", [self._choice(part)])
        # Ollama's order differs from the unary form: choices before model.
        chunk = {key: chunk[key] for key in _COMPLETION_CHUNK_ORDER}
        if self._include_usage:
            chunk["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        out = event(chunk)
        if part.done:
            if self._include_usage:
                out += event({**chunk, "choices": [], "usage": usage(part)})
            out += _DONE
        return [out]

    def whole(self, part: Part) -> bytes:
        return (
            encode({**self._envelope("text_completion", [self._choice(part)]), "usage": usage(part)}) + b"\n"
        )

    def broken(self, message: str) -> list[bytes]:
        chunk = self._envelope("text_completion", [self._choice(Part())], model="")
        return [event({key: chunk[key] for key in _COMPLETION_CHUNK_ORDER})]

    def _choice(self, part: Part) -> dict[str, Any]:
        return {"text": part.content, "index": 0, "finish_reason": part.done_reason or None}


_COMPLETION_CHUNK_ORDER = ("id", "object", "created", "choices", "model", "system_fingerprint")


def includes_usage(body: Mapping[str, Any]) -> bool:
    """Whether the client asked for a usage chunk at the end of its stream."""
    return bool(flag_field(map_field(body, "stream_options"), "include_usage"))
