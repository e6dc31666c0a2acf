"""Log set-up: events are snake-case facts with keys; JSON lines, or columns on a terminal.

Prompts, keys and bodies are never logged: no code hands them to a logger. Control characters in
values are escaped by both renderers.
"""

import json
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO, cast

import msgspec
import structlog

Logger = structlog.typing.FilteringBoundLogger


def make_logger(*, level: str, output_format: str, stream: TextIO | None = None) -> Logger:
    """A logger that writes to `stream` (default: standard error). `output_format` is json, console,
    or auto: console on a terminal."""
    out = stream if stream is not None else sys.stderr
    console = output_format == "console" or (output_format == "auto" and out.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(colors=out.isatty(), repr_native_str=True)
        if console
        else structlog.processors.JSONRenderer(serializer=_as_json)
    )
    logger: Logger = structlog.wrap_logger(
        structlog.WriteLogger(cast("TextIO", _Unfailing(out))),
        processors=[
            _stamp,
            structlog.processors.ExceptionRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
    )
    return logger.bind()  # bound once, or every event would bind anew


def _stamp(_logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event["level"] = method
    event["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return event


_encode = msgspec.json.Encoder(enc_hook=repr).encode


def _as_json(event: Mapping[str, object], **_options: object) -> str:
    """One line; what is not ASCII is escaped, since a terminal may take some of it for commands."""
    try:
        line = _encode(event)
    except (UnicodeEncodeError, msgspec.MsgspecError):
        return json.dumps(event, default=repr)
    plain = line.isascii() and b"\x7f" not in line
    return line.decode() if plain else json.dumps(event, default=repr)


class _Unfailing:
    """A stream whose failures end nothing: a log that cannot be written (a full disk, a reader that has
    gone) is lost, and the balancer serves on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()
