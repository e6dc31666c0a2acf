"""What a client asks for, dialect-free, and how the native routes write it.

The OpenAI and Anthropic forms are read in dialects/, into the same record. Only
what the simulation acts on is kept; unknown fields are ignored, as in Ollama.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from balancer.simulator.durations import keep_alive_seconds
from balancer.simulator.errors import Refusal

_GO_NAMES = {str: "string", int: "int", bool: "bool", list: "[]", dict: "map[string]interface {}"}
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
    logprobs: bool = False
    top_logprobs: int = 0
    relax_thinking: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to answer: such a request only loads or unloads."""
        return not self.messages if self.is_chat else not self.prompt


def decode_json(raw: bytes, go_type: str = "Request", package: str = "api") -> Body:
    """The object in a request body.

    Raises: Refusal 400 with `missing request body`, or a text like Go's decoder's.
    """
    if not raw.strip():
        raise Refusal(400, "missing request body")
    try:
        body = json.loads(raw)
    except json.JSONDecodeError as error:
        if error.pos >= len(error.doc.rstrip()):
            raise Refusal(400, "unexpected EOF") from error
        found = error.doc[error.pos]
        raise Refusal(400, f"invalid character '{found}' looking for beginning of value") from error
    except UnicodeDecodeError as error:
        raise Refusal(400, "invalid character in request body") from error
    if not isinstance(body, dict):
        found = _JSON_NAMES.get(type(body), "null")
        raise Refusal(400, f"json: cannot unmarshal {found} into Go value of type {package}.{go_type}")
    return Body(body, go_type)


def text_field(body: Mapping[str, Any], name: str) -> str:
    """A string field; absent and null read as empty. Raises: Refusal 400."""
    value = _typed(body, name, str)
    return str(value) if value is not None else ""


def flag_field(body: Mapping[str, Any], name: str) -> bool | None:
    """A boolean field, None when absent. Raises: Refusal 400."""
    value = _typed(body, name, bool)
    return None if value is None else bool(value)


def list_field(body: Mapping[str, Any], name: str) -> list[Any]:
    """A list field; absent and null read as empty. Raises: Refusal 400."""
    return _typed(body, name, list) or []


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
    top_logprobs = int_field(body, "top_logprobs") or 0
    if not 0 <= top_logprobs <= 20:
        raise Refusal(400, "top_logprobs must be between 0 and 20")
    return InferenceRequest(
        is_chat=is_chat,
        model=text_field(body, "model"),
        stream=flag_field(body, "stream") is not False,
        prompt="" if is_chat else text_field(body, "prompt"),
        system=text_field(body, "system"),
        template=text_field(body, "template"),
        suffix=text_field(body, "suffix"),
        raw=bool(flag_field(body, "raw")),
        context=tuple(list_field(body, "context")),
        images=tuple(list_field(body, "images")),
        messages=tuple(list_field(body, "messages")) if is_chat else (),
        tools=tuple(list_field(body, "tools")) if is_chat else (),
        options=map_field(body, "options"),
        keep_alive=keep_alive_field(body),
        format=body.get("format"),
        think=_think(body),
        shift=flag_field(body, "shift"),
        logprobs=bool(flag_field(body, "logprobs")),
        top_logprobs=top_logprobs,
    )


def _think(body: Mapping[str, Any]) -> bool | str | None:
    value = body.get("think")
    if value is None or isinstance(value, bool):
        return value
    if value in {"high", "medium", "low", "max"}:
        return str(value)
    raise Refusal(
        400, f'invalid think value: "{value}" (must be "high", "medium", "low", "max", true, or false)'
    )


def _typed(body: Mapping[str, Any], name: str, kind: type) -> Any:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = _JSON_NAMES.get(type(value), "value")
        place = f"{body.go_type if isinstance(body, Body) else ''}.{name}"
        problem = f"json: cannot unmarshal {found} into Go struct field {place} of type {_GO_NAMES[kind]}"
        raise Refusal(400, problem)
    return value
