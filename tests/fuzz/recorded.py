"""The recordings of a real server, as seeds: what was asked, and what came back over the line."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_RECORDINGS = Path(__file__).parents[1] / "recordings" / "exchanges.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """One recorded exchange. `chunks` are the HTTP chunks of the answer, or its body as one."""

    method: str
    path: str
    content_type: str
    body: bytes
    status: int
    headers: tuple[tuple[str, str], ...]
    chunked: bool
    chunks: tuple[bytes, ...]

    @property
    def answer(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def wire(self) -> bytes:
        """The answer as it stands on the line."""
        lines = [f"HTTP/1.1 {self.status} Said", *(f"{name}: {value}" for name, value in self.headers)]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in self.chunks) + b"0\r\n\r\n"
        return "\r\n".join([*lines, "", ""]).encode() + (body if self.chunked else self.answer)


@cache
def exchanges() -> tuple[Exchanged, ...]:
    """All of them; none where there is no recording at hand."""
    if not _RECORDINGS.exists():
        return ()
    return tuple(_read(json.loads(line)) for line in _RECORDINGS.read_text().split("\n") if line)


def _read(row: dict[str, Any]) -> Exchanged:
    request, response = row["request"], row["response"]
    asked = {name.casefold(): value for name, value in request["headers"]}
    return Exchanged(
        method=request["method"],
        path=request["path"].partition("?")[0],
        content_type=asked.get("content-type", ""),
        body=_bytes(request.get("body", "")),
        status=response["status"],
        headers=tuple((name, value) for name, value in response["headers"]),
        chunked=response["framing"] == "chunked",
        chunks=tuple(_bytes(each) for each in response["chunks"]),
    )


def _bytes(told: Any) -> bytes:
    return told.encode() if isinstance(told, str) else base64.b64decode(told["base64"])
