"""How Ollama reads the keys of a request: an oracle written after Go's documents, and on nothing of ours.

Go's encoding/json takes keys in their order, matches the name of a field in any letter case, and
lets the last one win; null leaves a text as it is. It reads one value and ignores what follows.
Source: https://pkg.go.dev/encoding/json#Unmarshal and, for letter case, foldName of its source.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

_FOLDED = {"\u017f": "s", "\u212a": "k"}
"""The only characters beyond ASCII that fold to a letter of ASCII in the simple folding that Go uses."""


class NoReading(Exception):
    """Go would refuse it, or this oracle cannot tell."""


@dataclass(frozen=True, slots=True)
class Members:
    """An object as its members in order, repeated keys and all."""

    pairs: tuple[tuple[str, object], ...]

    def last(self, name: str) -> object:
        """What a field of that name holds in the end; None where nothing was assigned."""
        value: object = None
        for key, each in self.pairs:
            if fold(key) == name and each is not None:
                value = each
        return value


def read_object(body: bytes) -> Members:
    """The first JSON value of a body, an object.

    Raises:
        NoReading: it has none.
    """
    try:
        text = body.decode("utf-8", "replace")
        decoder = json.JSONDecoder(
            object_pairs_hook=lambda pairs: Members(tuple(pairs)), parse_constant=_refuse
        )
        value, _ = decoder.raw_decode(text.lstrip(" \t\r\n"))
    except (ValueError, RecursionError) as error:
        raise NoReading(str(error)) from error
    if not isinstance(value, Members):
        raise NoReading("no object")
    return value


def text_of(members: Members, name: str) -> str:
    """What a field that holds text has in the end; empty where nothing was assigned. Raises NoReading."""
    for key, each in members.pairs:
        if fold(key) == name and not (each is None or isinstance(each, str)):
            raise NoReading(f"{name} is no text")
    value = members.last(name)
    return _joined(value) if isinstance(value, str) else ""


def stream_of(path: str, members: Members, default: bool) -> bool:
    """Whether the answer to a request streams. Where the field is a pointer, null takes back what was
    said before. Source: Ollama v0.33 api/types.go, openai/openai.go, anthropic/anthropic.go.

    Raises:
        NoReading: it is neither true nor false.
    """
    pointer = path.startswith("/api/") or path == "/v1/responses"
    streams = default
    for key, each in members.pairs:
        if fold(key) != "stream":
            continue
        if isinstance(each, bool):
            streams = each
        elif each is not None:
            raise NoReading("stream is neither true nor false")
        elif pointer:
            streams = default
    return streams


def model_of(path: str, members: Members) -> str:
    """The model that a request to a path is for. Raises NoReading.

    Source: Ollama v0.33 server/routes.go and openai/openai.go."""
    if path == "/api/copy":
        return text_of(members, "source")
    model = text_of(members, "model")
    if path in {"/api/show", "/api/pull", "/api/push", "/api/create", "/api/delete"}:
        return model or text_of(members, "name")
    return model


def fold(key: str) -> str:
    """A key as Go compares it, to names in lower-case ASCII."""
    return "".join(_FOLDED.get(each, each.lower() if each.isascii() else each) for each in _joined(key))


def _joined(text: str) -> str:
    """A text whose halves of characters are joined, and become U+FFFD where they stand alone."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _refuse(name: str) -> object:
    raise ValueError(name)
