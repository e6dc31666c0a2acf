"""What all dialects share: JSON as Go writes it, and the protocol of a dialect.

Sans I/O. A dialect turns parts into HTTP chunks and errors into bodies; the
web layer sends them. Called by dialects/ and web/.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, Protocol

from balancer.simulator.answers import Part

JSON_TYPE = "application/json"
JSON_UTF8_TYPE = "application/json; charset=utf-8"
NDJSON_TYPE = "application/x-ndjson"
SSE_TYPE = "text/event-stream"

# Go's encoder escapes these wherever they stand; in JSON they only stand inside strings.
_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)

# What Python prints of a float that Go prints otherwise: 1.0, 1e-05, 1e-07.
_UNLIKE_GO = re.compile(r"\d\.0(?!\d)|\de-0\d")


def encode(value: Any, *, sort_keys: bool = False) -> bytes:
    """The value as Go's encoding/json writes it: no spaces, HTML characters escaped.

    `sort_keys` is for what Ollama keeps in a map and not in a struct.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys)
    if _UNLIKE_GO.search(text):
        text = _written(value, sort_keys=sort_keys)
    return text.translate(_ESCAPES).encode("utf-8", "replace")


def _written(value: Any, *, sort_keys: bool) -> str:
    """The value in JSON, floats in Go's notation; slower than what `encode` tries first."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        items = sorted(value.items()) if sort_keys else value.items()
        inside = ",".join(
            f"{json.dumps(name, ensure_ascii=False)}:{_written(item, sort_keys=sort_keys)}"
            for name, item in items
        )
        return "{" + inside + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_written(item, sort_keys=sort_keys) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    """A float as Go writes it: whole ones without a point, small ones in full down to 0.000001."""
    shown = repr(value).removesuffix(".0")
    if "e-" not in shown:
        return shown
    return format(Decimal(shown), "f") if abs(value) >= 1e-6 else shown.replace("e-0", "e-")


def event(data: Any, name: str = "", *, sort_keys: bool = False) -> bytes:
    """One server-sent event, with its `event:` line when it has a name."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + encode(data, sort_keys=sort_keys) + b"\n\n"


class Dialect(Protocol):
    """How one route writes its answer to one request.

    `chunks` gives the HTTP chunks of one part of a stream, in order; an empty
    list means that nothing is sent. It may keep state from part to part.
    """

    @property
    def stream_type(self) -> str: ...

    @property
    def unary_type(self) -> str: ...

    def chunks(self, part: Part) -> list[bytes]: ...

    def whole(self, part: Part) -> bytes: ...

    def broken(self, message: str) -> list[bytes]:
        """What a stream still says when its runner has died; often nothing."""
        ...

    def error(self, status: int, message: str) -> bytes:
        """The body of an error that no chunk preceded."""
        ...
