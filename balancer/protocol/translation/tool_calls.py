"""Tool calls, which OpenAI's dialect streams in pieces of text and Ollama's tells as whole objects."""

from dataclasses import dataclass

import msgspec

from balancer.errors import BadResponse

_CALLS = 128
_ARGUMENTS_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


class ToolCalls:
    """Of one answer, in the order of their indices."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}
        self._size = 0

    def add(self, pieces: object) -> None:
        """Take calls, or pieces of some. Raises BadResponse where there is no end of them."""
        for place, piece in enumerate(pieces if isinstance(pieces, list) else ()):
            if not isinstance(piece, dict):
                continue
            index = piece.get("index")
            call = self._calls.setdefault(index if isinstance(index, int) else place, _Call())
            function = piece.get("function")
            function = function if isinstance(function, dict) else {}
            call.id = call.id or _text(piece.get("id"))
            call.name = call.name or _text(function.get("name"))
            more = _text(function.get("arguments"))
            self._size += len(more)
            call.arguments += more
        if len(self._calls) > _CALLS or self._size > _ARGUMENTS_BYTES:
            raise BadResponse("the runtime calls too many tools, or with too much")

    def told(self) -> list[dict[str, object]]:
        """All of them as Ollama tells them. Raises BadResponse where arguments are no JSON object."""
        return [_told(number, call) for number, (_, call) in enumerate(sorted(self._calls.items()))]


def _told(number: int, call: _Call) -> dict[str, object]:
    try:
        arguments = msgspec.json.decode(call.arguments or "{}", type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadResponse(
            f"the runtime calls '{call.name}' with arguments that are no JSON object"
        ) from error
    function = {"index": number, "name": call.name, "arguments": arguments}
    return {**({"id": call.id} if call.id else {}), "function": function}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
