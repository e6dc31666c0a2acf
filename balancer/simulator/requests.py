"""What a client asks for, dialect-free, and how the native routes write it.

The OpenAI and Anthropic forms are read in dialects/, into the same record. Only
what the simulation acts on is kept; unknown fields are ignored, as in Ollama.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from balancer.simulator.durations import keep_alive_seconds
from balancer.simulator.errors import Refusal
from balancer.simulator.json_syntax import SyntaxProblem, first_value

_GO_NAMES = {str: "string", int: "int", bool: "bool", dict: "map[string]interface {}"}
_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]*")
_JSON_NAMES = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}


class Body(dict[str, Any]):
    """A request body that knows the name of Ollama's type for it, which its errors mention."""

    def __init__(self, fields: Mapping[str, Any], go_type: str) -> None:
        super().__init__(fields)
        self.go_type = go_type


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """A generate or chat request; `messages` are in the native chat form."""

    is_chat: bool
    model: str
    stream: bool
    prompt: str = ""
    system: str = ""
    template: str = ""
    suffix: str = ""
    raw: bool = False
    context: tuple[int, ...] = ()
    images: tuple[str, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive: float | None = None
    format: Any = None
    think: bool | str | None = None
    shift: bool | None = None
    truncate: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    relax_thinking: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to answer: such a request only loads or unloads."""
        return not self.messages if self.is_chat else not self.prompt


def decode_json(raw: bytes, go_type: str = "Request", package: str = "api") -> Body:
    """The object in a request body; null is an empty one, and its names match in any letter case.

    Raises: Refusal 400 with `missing request body`, or a text like Go's decoder's.
    """
    if not raw.strip():
        raise Refusal(400, "missing request body")
    try:
        body = first_value(raw)
    except SyntaxProblem as error:
        raise Refusal(400, str(error)) from error
    if body is None:
        body = {}
    if not isinstance(body, dict):
        raise Refusal(400, unfit(body, f"{package}.{go_type}"))
    return Body({name.lower(): value for name, value in body.items()}, go_type)


def text_field(body: Mapping[str, Any], name: str) -> str:
    """A string field; absent and null read as empty. Raises: Refusal 400."""
    value = _typed(body, name, str)
    return str(value) if value is not None else ""


def flag_field(body: Mapping[str, Any], name: str) -> bool | None:
    """A boolean field, None when absent. Raises: Refusal 400."""
    value = _typed(body, name, bool)
    return None if value is None else bool(value)


def list_field(body: Mapping[str, Any], name: str, go_name: str = "[]string") -> list[Any]:
    """A list field; absent and null read as empty. Raises: Refusal 400."""
    return _typed(body, name, list, go_name) or []


def records_field(body: Mapping[str, Any], name: str, go_list: str, go_item: str) -> list[Mapping[str, Any]]:
    """A list of objects, of which null ones are empty. Raises: Refusal 400."""
    records = [{} if item is None else item for item in list_field(body, name, go_list)]
    for item in records:
        if not isinstance(item, dict):
            raise wrong_type(item, _place(body, name), go_item)
    return records


def number_field(body: Mapping[str, Any], name: str, go_name: str = "float64") -> float | None:
    """A number field, None when absent. Raises: Refusal 400."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(value, _place(body, name), go_name)
    return value


def map_field(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object field; absent and null read as empty. Raises: Refusal 400."""
    return _typed(body, name, dict) or {}


def int_field(body: Mapping[str, Any], name: str) -> int | None:
    """An integer field, None when absent. Raises: Refusal 400."""
    value = _typed(body, name, int)
    return None if value is None else int(value)


def keep_alive_field(body: Mapping[str, Any]) -> float | None:
    """Seconds of keep_alive, None when absent. Raises: Refusal 400."""
    try:
        return keep_alive_seconds(body.get("keep_alive"))
    except ValueError as error:
        raise Refusal(400, str(error)) from error


def native_request(body: Mapping[str, Any], *, is_chat: bool) -> InferenceRequest:
    """Read the body of /api/generate or /api/chat. Raises: Refusal 400.

    Source: Ollama v0.33 api/types.go.
    """
    return InferenceRequest(
        is_chat=is_chat,
        model=text_field(body, "model"),
        stream=flag_field(body, "stream") is not False,
        prompt="" if is_chat else text_field(body, "prompt"),
        system=text_field(body, "system"),
        template=text_field(body, "template"),
        suffix=text_field(body, "suffix"),
        raw=bool(flag_field(body, "raw")),
        context=_context(body),
        images=_images(body, "images", _place(body, "images")),
        messages=_messages(body) if is_chat else (),
        tools=_tools(body) if is_chat else (),
        options=map_field(body, "options"),
        keep_alive=keep_alive_field(body),
        format=body.get("format"),
        think=_think(body),
        shift=flag_field(body, "shift"),
        truncate=flag_field(body, "truncate") is not False,
        logprobs=bool(flag_field(body, "logprobs")),
        top_logprobs=int_field(body, "top_logprobs") or 0,
    )


def _think(body: Mapping[str, Any]) -> bool | str | None:
    value = body.get("think")
    if value is None or isinstance(value, bool):
        return value
    known = '"high", "medium", "low", "max", true, or false'
    if not isinstance(value, str):
        raise Refusal(400, f"think must be a boolean or string ({known})")
    if value in {"high", "medium", "low", "max"}:
        return value
    raise Refusal(400, f'invalid think value: "{value}" (must be {known})')


def _context(body: Mapping[str, Any]) -> tuple[int, ...]:
    tokens = list_field(body, "context", "[]int")
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int):
            raise wrong_type(token, _place(body, "context"), "int")
    return tuple(tokens)


def _messages(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    messages = records_field(body, "messages", "[]api.Message", "api.Alias")
    place = _place(body, "messages")
    for message in messages:
        for name in ("role", "content", "thinking"):
            _typed(message, name, str, place=f"{place}.{name}")
        _typed(message, "tool_calls", list, "[]api.ToolCall", place=f"{place}.tool_calls")
        _images(message, "images", f"{place}.images")
    return tuple(messages)


def _tools(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    tools = records_field(body, "tools", "api.Tools", "api.Tool")
    for tool in tools:
        _typed(tool, "type", str, place="Tool.tools.type")
        _typed(tool, "function", dict, "api.ToolFunction", place="Tool.tools.function")
    return tuple(tools)


def _images(holder: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    """The images of a message or request, checked to be base64. Raises: Refusal 400."""
    images = _typed(holder, name, list, "[]api.ImageData", place=place) or []
    for image in images:
        if not isinstance(image, str):
            raise wrong_type(image, place, "api.ImageData")
        data = image.removesuffix("=").removesuffix("=")
        valid = _BASE64.match(data)
        if valid is not None and valid.end() < len(data):
            raise Refusal(400, f"illegal base64 data at input byte {valid.end()}")
    return tuple(images)


def wrong_type(value: Any, place: str, go_name: str) -> Refusal:
    """The error of Go's decoder for a value that its field cannot hold."""
    found = _JSON_NAMES.get(type(value), "value")
    if isinstance(value, float) and go_name == "int":
        found = f"number {value:g}"
    return Refusal(400, f"json: cannot unmarshal {found} into Go struct field {place} of type {go_name}")


def unfit(value: Any, go_name: str) -> str:
    """The words of Go's decoder for a value that is not of the type wanted."""
    found = _JSON_NAMES.get(type(value), "value")
    return f"json: cannot unmarshal {found} into Go value of type {go_name}"


def _place(body: Mapping[str, Any], name: str) -> str:
    return f"{body.go_type if isinstance(body, Body) else ''}.{name}"


def _typed(
    body: Mapping[str, Any], name: str, kind: type, go_name: str | None = None, *, place: str | None = None
) -> Any:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong_type(value, place or _place(body, name), go_name or _GO_NAMES[kind])
    return value
