"""JSON read as Go's decoder reads it, with Go's words for what is wrong with it. Pure.

Only the first value counts; what follows it is never looked at. Called by
requests.py.
"""

from __future__ import annotations

import json
import re
from typing import Any

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_LITERALS = ("true", "false", "null")


class SyntaxProblem(ValueError):
    """The text is no JSON; the message is Go's."""


def first_value(raw: bytes) -> Any:
    """The first JSON value of a body. Raises: SyntaxProblem."""
    text = raw.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise SyntaxProblem(_problem(text, error)) from error


def _problem(text: str, error: json.JSONDecodeError) -> str:
    place, where = error.pos, "looking for beginning of value"
    if error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    if error.msg.startswith("Expecting property name"):
        where = "looking for beginning of object key string"
    elif error.msg.startswith("Expecting ':'"):
        where = "after object key"
    elif error.msg.startswith("Expecting ','"):
        where = "after array element" if _in_array(text[:place]) else "after object key:value pair"
    elif error.msg.startswith("Invalid control character"):
        where = "in string literal"
    elif error.msg.startswith("Invalid \\escape"):
        place, where = place + 1, "in string escape code"
    else:
        place, where = _broken_literal(text, place) or (place, where)
    return (
        "unexpected EOF"
        if place >= len(text.rstrip())
        else f"invalid character {_quoted(text[place])} {where}"
    )


def _broken_literal(text: str, start: int) -> tuple[int, str] | None:
    """Where a word that begins like true, false or null goes wrong."""
    literal = next((word for word in _LITERALS if text.startswith(word[0], start)), None)
    if literal is None:
        return None
    right = next(n for n in range(len(literal) + 1) if not text.startswith(literal[: n + 1], start))
    return start + right, f"in literal {literal} (expecting '{literal[right]}')"


def _in_array(before: str) -> bool:
    """Whether the innermost bracket that is still open is a square one."""
    depth = 0
    for character in reversed(_STRINGS.sub("", before)):
        depth += (character in "]}") - (character in "[{")
        if depth < 0:
            return character == "["
    return False


def _quoted(character: str) -> str:
    if character == "'":
        return r"'\''"
    shown = character if character.isprintable() else f"\\x{ord(character):02x}"
    return f"'{shown}'"
