"""Ollama's messages as OpenAI's: images as data URLs, tool calls and their results by ids.

Sources: Ollama v0.33 api/types.go, Message and ToolCall; the OpenAI reference of chat completions.
"""

import binascii
from collections.abc import Mapping
from itertools import count

import msgspec

from balancer.errors import Unserved

Message = dict[str, object]

_IMAGES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)
_SNIFFED = 32


def folded(value: object, what: str) -> dict[str, object]:
    """An object with its keys in lower case, as Go's decoder reads them. Raises Unserved for others."""
    if not isinstance(value, dict):
        raise Unserved(f"{what} must be an object")
    return {str(key).casefold(): each for key, each in value.items()}


def text_of(value: object, what: str) -> str:
    """A string, empty where it is absent. Raises Unserved for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unserved(f"{what} must be a string")
    return value


def with_images(text: str, images: object) -> object:
    """The content of a message: a text, or parts where there are images."""
    if not images:
        return text
    if not isinstance(images, list):
        raise Unserved("'images' must be a list")
    parts: list[Message] = [{"type": "text", "text": text}] if text else []
    return parts + [{"type": "image_url", "image_url": {"url": _data_url(each)}} for each in images]


def chat_messages(value: object) -> list[Message]:
    """The messages of a chat.

    Raises:
        Unserved: one of them cannot be told in OpenAI's dialect.
    """
    if not isinstance(value, list):
        raise Unserved("'messages' must be a list")
    calls = _Calls()
    return [_message(folded(each, "a message"), calls) for each in value]


class _Calls:
    """The ids of a chat's tool calls. Ollama's clients may leave them out; a result then belongs to the
    first call of its tool that has none yet."""

    def __init__(self) -> None:
        self._numbers = count()
        self._open: list[tuple[str, str]] = []

    def made(self, call_id: str, name: str) -> str:
        """The id of a call; one of ours where it has none."""
        call_id = call_id or f"call_{next(self._numbers)}"
        self._open.append((call_id, name))
        return call_id

    def answered(self, call_id: str, name: str) -> str:
        """The id of the call that a result belongs to."""
        for each in self._open:
            if each[0] == call_id or (not call_id and name in {"", each[1]}):
                self._open.remove(each)
                return each[0]
        return call_id or f"call_{next(self._numbers)}"


def _message(message: Mapping[str, object], calls: _Calls) -> Message:
    role = text_of(message.get("role"), "'role'")
    content = with_images(text_of(message.get("content"), "'content'"), message.get("images"))
    made: Message = {"role": role, "content": content}
    if thinking := text_of(message.get("thinking"), "'thinking'"):
        made["reasoning_content"] = thinking
    if called := message.get("tool_calls"):
        if not isinstance(called, list):
            raise Unserved("'tool_calls' must be a list")
        made["tool_calls"] = [_call(folded(each, "a tool call"), calls) for each in called]
    if role == "tool":
        name = text_of(message.get("tool_name"), "'tool_name'")
        call_id = text_of(message.get("tool_call_id"), "'tool_call_id'")
        made["tool_call_id"] = calls.answered(call_id, name)
        if name:
            made["name"] = name
    return made


def _call(call: Mapping[str, object], calls: _Calls) -> Message:
    function = folded(call.get("function"), "'function'")
    name = text_of(function.get("name"), "the name of a tool call")
    arguments = function.get("arguments")
    if not isinstance(arguments, dict | None):
        raise Unserved("the arguments of a tool call must be an object")
    told = msgspec.json.encode(arguments or {}).decode()
    call_id = calls.made(text_of(call.get("id"), "the id of a tool call"), name)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": told}}


def _data_url(image: object) -> str:
    encoded = text_of(image, "an image")
    try:
        begin = binascii.a2b_base64(encoded[:_SNIFFED])
    except (binascii.Error, ValueError) as error:
        raise Unserved("an image is not in base64") from error
    for mark, media_type in _IMAGES:
        if begin.startswith(mark):
            return f"data:{media_type};base64,{encoded}"
    if begin.startswith(b"RIFF") and begin[8:12] == b"WEBP":
        return f"data:image/webp;base64,{encoded}"
    raise Unserved("an image is neither PNG, JPEG, GIF, BMP nor WebP")
