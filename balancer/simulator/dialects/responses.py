"""/v1/responses: requests read, answers and events written.

Sans I/O; called by web/. The keys of streamed events are sorted, since Ollama
keeps them in maps; those of the unary answer are in its own order. Source:
Ollama v0.33 openai/responses.go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from balancer.simulator.answers import Part, ToolCall
from balancer.simulator.dialects import openai
from balancer.simulator.dialects.wire import JSON_TYPE, SSE_TYPE, encode, event
from balancer.simulator.errors import Refusal
from balancer.simulator.requests import (
    InferenceRequest,
    flag_field,
    int_field,
    list_field,
    map_field,
    number_field,
    text_field,
    unfit,
)


def responses_request(body: Mapping[str, Any]) -> InferenceRequest:
    """Read a responses request. Raises: Refusal 400."""
    messages: list[dict[str, Any]] = []
    if instructions := text_field(body, "instructions"):
        messages.append({"role": "system", "content": instructions})
    given = body.get("input")
    if isinstance(given, str):
        messages += [{"role": "user", "content": given}] if given else []
    elif isinstance(given, list):
        messages += [message for n, item in enumerate(given) for message in _checked_item(n, item)]
    elif given is not None:
        raise Refusal(400, f"input {_not_text_or_list(given)}")
    options: dict[str, Any] = {name: number_field(body, name) for name in ("temperature", "top_p")}
    if (limit := int_field(body, "max_output_tokens")) is not None:
        options["num_predict"] = limit
    return InferenceRequest(
        is_chat=True,
        model=text_field(body, "model"),
        stream=bool(flag_field(body, "stream")),
        messages=tuple(messages),
        tools=tuple(_native_tool(tool) for tool in list_field(body, "tools")),
        options=options,
        format=_format(body),
        think=openai.think_of_effort(text_field(map_field(body, "reasoning"), "effort")),
    )


def _format(body: Mapping[str, Any]) -> Any:
    wanted = map_field(map_field(body, "text"), "format")
    return wanted.get("schema") if wanted.get("type") == "json_schema" else None


def _native_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {
        "name": tool.get("name", ""),
        "description": tool.get("description") or "",
        "parameters": tool.get("parameters") or {},
    }
    return {"type": "function", "function": function}


def _checked_item(number: int, item: Any) -> list[dict[str, Any]]:
    if not isinstance(item, Mapping):
        value = 'struct { Type string "json:\\"type\\""; Role string "json:\\"role\\"" }'
        raise Refusal(400, f"input[{number}]: {unfit(item, value)}")
    content = item.get("content")
    if item.get("type", "message") == "message" and not isinstance(content, str | list | None):
        raise Refusal(400, f"input[{number}]: content {_not_text_or_list(content)}")
    return _item_messages(item)


def _not_text_or_list(value: Any) -> str:
    return f"must be a string or array: {unfit(value, '[]json.RawMessage')}"


def _item_messages(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    match item.get("type", "message"):
        case "message":
            return [{"role": item.get("role", "user"), **_content(item.get("content"))}]
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "function": function}
            return [{"role": "assistant", "content": "", "tool_calls": [call]}]
        case "function_call_output":
            return [{"role": "tool", **_content(item.get("output"))}]
        case _:
            return []


def _content(content: Any) -> dict[str, Any]:
    if isinstance(content, str):
        return {"content": content}
    parts = content if isinstance(content, list) else []
    text = "".join(str(part.get("text") or "") for part in parts if str(part.get("type")).endswith("text"))
    images = [
        openai.decoded_image_url(part.get("image_url")) for part in parts if part.get("type") == "input_image"
    ]
    return {"content": text, "images": images} if images else {"content": text}


class ResponsesAnswer:
    """The answer to one responses request; `number` tells its ids apart."""

    stream_type = SSE_TYPE
    unary_type = JSON_TYPE

    def __init__(self, model: str, *, number: int, body: Mapping[str, Any]) -> None:
        self._model = model
        self._number = number
        self._body = body
        self._id = f"resp_{number}"
        self._message_id = f"msg_{number}"
        self._started_at = int(datetime.now(UTC).timestamp())
        self._sequence = 0
        self._streams = bool(body.get("stream"))
        self._output_index = 0
        self._thought = ""
        self._text = ""
        self._finished: list[dict[str, Any]] = []

    def chunks(self, part: Part) -> list[bytes]:
        return list(self._events(part))

    def whole(self, part: Part) -> bytes:
        output: list[dict[str, Any]] = []
        if part.thinking:
            output.append(_reasoning_item(f"rs_{self._id}", part.thinking))
        for index, call in enumerate(part.tool_calls):
            output.append(_call_item(f"fc_{self._id}_{index}", call))
        if not part.tool_calls:
            output.append(self._message_item("completed", [_text_part(part.content)]))
        return encode(self._response("completed", output, part)) + b"\n"

    def broken(self, message: str) -> list[bytes]:
        """The error is swallowed: the stream just ends."""
        return []

    def error(self, status: int, message: str) -> bytes:
        return openai.error_body(status, message) + b"\n"

    def _events(self, part: Part) -> Iterator[bytes]:
        if self._sequence == 0:
            yield self._event("response.created", response=self._response("in_progress", [], None))
            yield self._event("response.in_progress", response=self._response("in_progress", [], None))
        if part.thinking:
            yield from self._think(part.thinking)
        for call in part.tool_calls:
            yield from self._end_thought()
            yield from self._call(call)
        if part.content:
            yield from self._end_thought()
            yield from self._say(part.content)
        if part.done:
            yield from self._end_thought()
            yield from self._end_text()
            response = self._response("completed", self._finished, part)
            yield self._event("response.completed", response=response)

    def _think(self, text: str) -> Iterator[bytes]:
        place = self._place(f"rs_{self._number}")
        if not self._thought:
            item = {"id": place["item_id"], "type": "reasoning", "summary": []}
            yield self._event("response.output_item.added", output_index=self._output_index, item=item)
        self._thought += text
        yield self._event("response.reasoning_summary_text.delta", **place, summary_index=0, delta=text)

    def _end_thought(self) -> Iterator[bytes]:
        if not self._thought:
            return
        place = self._place(f"rs_{self._number}")
        item = _reasoning_item(str(place["item_id"]), self._thought)
        text, self._thought = self._thought, ""
        yield self._event("response.reasoning_summary_text.done", **place, summary_index=0, text=text)
        yield self._end_item(item)

    def _call(self, call: ToolCall) -> Iterator[bytes]:
        place = self._place(f"fc_{self._number}_{call.index}")
        item = _call_item(str(place["item_id"]), call)
        started = {**item, "status": "in_progress", "arguments": ""}
        yield self._event("response.output_item.added", output_index=self._output_index, item=started)
        yield self._event("response.function_call_arguments.delta", **place, delta=item["arguments"])
        yield self._event("response.function_call_arguments.done", **place, arguments=item["arguments"])
        yield self._end_item(item)

    def _say(self, text: str) -> Iterator[bytes]:
        place = {**self._place(self._message_id), "content_index": 0}
        if not self._text:
            item = self._message_item("in_progress", [])
            yield self._event("response.output_item.added", output_index=self._output_index, item=item)
            yield self._event("response.content_part.added", **place, part=_text_part(""))
        self._text += text
        yield self._event("response.output_text.delta", **place, delta=text, logprobs=[])

    def _end_text(self) -> Iterator[bytes]:
        if not self._text:
            return
        place = {**self._place(self._message_id), "content_index": 0}
        part = _text_part(self._text)
        yield self._event("response.output_text.done", **place, text=self._text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=part)
        yield self._end_item(self._message_item("completed", [part]))

    def _end_item(self, item: dict[str, Any]) -> bytes:
        self._finished.append(item)
        done = self._event("response.output_item.done", output_index=self._output_index, item=item)
        self._output_index += 1
        return done

    def _place(self, item_id: str) -> dict[str, Any]:
        return {"item_id": item_id, "output_index": self._output_index}

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {**fields, "type": kind, "sequence_number": self._sequence}
        self._sequence += 1
        return event(data, kind, sort_keys=True)

    def _message_item(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _echoed_reasoning(self) -> dict[str, Any] | None:
        """What was asked of the reasoning; a stream tells what was not asked as null."""
        asked = map_field(self._body, "reasoning")
        told = {name: asked.get(name) for name in ("effort", "summary")}
        if not any(told.values()):
            return None
        return told if self._streams else {name: value for name, value in told.items() if value}

    def _response(self, status: str, output: list[Any], last: Part | None) -> dict[str, Any]:
        body = self._body
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._started_at,
            "completed_at": None if last is None else int(datetime.now(UTC).timestamp()),
            "status": status,
            "incomplete_details": None,
            "model": self._model,
            "previous_response_id": None,
            "instructions": body.get("instructions") or None,
            "output": output,
            "error": None,
            "tools": [_echoed_tool(tool) for tool in body.get("tools") or []],
            "tool_choice": "auto",
            "truncation": body.get("truncation") or "disabled",
            "parallel_tool_calls": True,
            "text": {"format": map_field(map_field(body, "text"), "format") or {"type": "text"}},
            "top_p": body.get("top_p", 1),
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": body.get("temperature", 1),
            "reasoning": self._echoed_reasoning(),
            "usage": None if last is None else _usage(last),
            "max_output_tokens": body.get("max_output_tokens"),
            "max_tool_calls": None,
            "store": False,
            "background": bool(body.get("background")),
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }


def _echoed_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The tool as Ollama prints it; it keeps the parameters in a map, whose keys come out sorted."""
    echoed = {name: tool.get(name) for name in ("type", "name", "description", "strict")}
    return {**echoed, "parameters": _sorted(tool.get("parameters"))}


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _sorted(item) for name, item in sorted(value.items())}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _usage(part: Part) -> dict[str, Any]:
    return {
        "input_tokens": part.prompt_tokens,
        "output_tokens": part.answer_tokens,
        "total_tokens": part.prompt_tokens + part.answer_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _reasoning_item(item_id: str, text: str) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": summary, "encrypted_content": text}


def _call_item(item_id: str, call: ToolCall) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": encode(call.arguments).decode(),
    }
