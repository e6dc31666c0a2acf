"""Error bodies and stream endings, each in the caller's dialect.

Sources: Ollama v0.33 server/routes.go (`{"error"}`), openai/openai.go NewError, anthropic/anthropic.go
NewError; the Anthropic streaming documentation for the `error` event.
"""

import msgspec

from balancer.core.operation import Dialect, Wire
from balancer.protocol.failures import error_message

_encode = msgspec.json.Encoder().encode

_OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_value(dialect: Dialect, status: int, message: str, request_id: str) -> dict[str, object]:
    """The error object of a dialect, ready to be encoded. A message may quote a path, and so hold bytes
    that are no text; they become question marks."""
    message = message.encode(errors="replace").decode()
    match dialect:
        case Dialect.OLLAMA:
            return {"error": message}
        case Dialect.OPENAI:
            kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
            return {"error": {"message": message, "type": kind, "param": None, "code": None}}
        case Dialect.ANTHROPIC:
            kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
            return {
                "type": "error",
                "error": {"type": kind, "message": message},
                "request_id": request_id,
            }


def error_body(dialect: Dialect, status: int, message: str, request_id: str) -> bytes:
    """The whole body of an error answer, JSON."""
    return _encode(error_value(dialect, status, message, request_id))


def error_record(dialect: Dialect, wire: Wire, message: str, request_id: str) -> bytes:
    """What to add to a stream that was begun and cannot be finished: an NDJSON error line, an SSE
    error or an Anthropic error event. Empty for a JSON body, of which half stands already: only
    an abnormal end can tell there."""
    value = _encode(error_value(dialect, 502, message, request_id))
    match wire:
        case Wire.NDJSON:
            return value + b"\n"
        case Wire.SSE if dialect is Dialect.ANTHROPIC:
            return b"event: error\ndata: " + value + b"\n\n"
        case Wire.SSE:
            return b"data: " + value + b"\n\n"
        case Wire.JSON:
            return b""


def error_event(status: int, body: bytes) -> bytes:
    """An error answer as the last event of a stream in OpenAI's dialect whose head went out before: with
    its own error object where it has one, else with its text."""
    try:
        told = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        told = {}
    if not isinstance(told.get("error"), dict):
        message = error_message(body) or f"the instance answered with status {status}"
        told = error_value(Dialect.OPENAI, status, message, "")
    return b"data: " + _encode(told) + b"\n\n"
