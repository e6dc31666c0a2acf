"""Answers in one piece, and the errors of runtimes.

Sources of the errors: vLLM v0.11 and later, ErrorResponse (older ones: its fields at the top); FastAPI
(`detail`); llama.cpp b11669, format_error_response.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import msgspec

from balancer.errors import BadResponse
from balancer.protocol.failures import RUNTIME_LACKS

JSON = "application/json; charset=utf-8"
_BODY_BYTES = 64 * 1024 * 1024
_ERROR_BYTES = 65536
_TEXT_SHOWN = 300
_NO_SUCH_PATH = frozenset({"Not Found", "Method Not Allowed"})
_INVALID, _NOT_IMPLEMENTED = 400, 501


class WholeAnswer(ABC):
    """Holds a body until its end, then tells it in Ollama's shapes; errors the same way in each of them."""

    def __init__(self) -> None:
        self.status = 0
        self.media_type = JSON
        self._body = bytearray()

    def begin(self, status: int, media_type: str) -> None:
        self.status = status

    def feed(self, data: bytes) -> bytes:
        self._body += data
        limit = _BODY_BYTES if self.status < 400 else _ERROR_BYTES
        if len(self._body) > limit:
            raise BadResponse(f"the runtime's answer is larger than {limit} bytes")
        return b""

    def end(self) -> bytes:
        body = bytes(self._body)
        self._body.clear()
        if self.status >= 400:
            self.status, message = error_of(self.status, body)
            return msgspec.json.encode({"error": message})
        if self.status != 200:
            raise BadResponse(f"the runtime answered {self.status}")
        return self.whole(body)

    @abstractmethod
    def whole(self, body: bytes) -> bytes:
        """The answer to a request that went well. Raises BadResponse."""


class PlainAnswer(WholeAnswer):
    """An answer that is known already, told once the runtime has answered well."""

    def __init__(self, answer: Mapping[str, object]) -> None:
        super().__init__()
        self._answer = answer

    def whole(self, body: bytes) -> bytes:
        return msgspec.json.encode(self._answer)


def error_of(status: int, body: bytes) -> tuple[int, str]:
    """The status and the message of an error answer. A path that the runtime does not have is 501; what
    FastAPI calls unprocessable is a bad request."""
    try:
        told = object_of(body)
    except BadResponse:
        return status, " ".join(body.decode("utf-8", "replace").split())[:_TEXT_SHOWN] or f"status {status}"
    detail = told.get("detail")
    if status in {404, 405} and detail in _NO_SUCH_PATH:
        return _NOT_IMPLEMENTED, RUNTIME_LACKS
    message = message_of(told)
    if status == 404 and message == "File Not Found":
        return _NOT_IMPLEMENTED, RUNTIME_LACKS
    if status == 422:
        return _INVALID, message
    return status, message


def message_of(told: Mapping[str, object]) -> str:
    """The message of an error object."""
    error = told.get("error", told)
    if isinstance(error, dict):
        error = error.get("message", error.get("detail"))
    return error if isinstance(error, str) and error else msgspec.json.encode(told).decode()[:_TEXT_SHOWN]


def object_of(body: bytes) -> dict[str, object]:
    """A JSON object. Raises BadResponse."""
    try:
        return msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadResponse("the runtime answered with what is no JSON object") from error
