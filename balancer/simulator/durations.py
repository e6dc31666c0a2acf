"""Go's notation of durations and dates, as clients write them and as answers print them. Pure."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any

_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_TYPES = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}
_TERM = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def keep_alive_seconds(value: Any) -> float | None:
    """Seconds of a `keep_alive`: None when absent, infinity when negative.

    Raises: ValueError with Ollama's text when it is neither a number nor a duration.
    Source: Ollama v0.33 api/types.go Duration.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"Unsupported type: '{_GO_TYPES[type(value)]}'")
    seconds = parse_duration(value) if isinstance(value, str) else float(value)
    return math.inf if seconds < 0 else seconds


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as `1m30s`. Raises: ValueError with Go's text."""
    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if body == "0":
        return 0.0
    terms = _TERM.findall(body)
    if not terms or "".join(number + unit for number, unit in terms) != body:
        problem = "missing unit in" if re.fullmatch(r"[\d.]+", body) else "invalid"
        raise ValueError(f'time: {problem} duration "{text}"')
    return sign * sum(float(number) * _UNIT_SECONDS[unit] for number, unit in terms)


def created_at() -> str:
    """Now, as `created_at` prints it: RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
