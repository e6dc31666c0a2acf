"""How Ollama reads a field of a multipart form: an oracle written after Go's mime/multipart, on nothing
of ours. Where Go's reading depends on things that are not modelled here, it says so.

Source: Go 1.26 mime/multipart (nextPart, ReadForm), net/textproto (ReadMIMEHeader), mime (ParseMediaType).
"""

from __future__ import annotations

import re

from tests.fuzz.go_json import NoReading

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf';\s*({_TOKEN})\s*=\s*(?:({_TOKEN})|"((?:[^"\\\r\n]|\\.)*)")', re.ASCII)
_TYPE = re.compile(rf"\s*({_TOKEN}(?:/{_TOKEN})?)\s*", re.ASCII)
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)\Z")


def read_field(body: bytes, content_type: str, name: str) -> str | None:
    """The first value of a field that is no file, None where there is none.

    Raises:
        NoReading: Go would refuse the form, or this oracle cannot tell.
    """
    kind, parameters = _media_type(content_type)
    boundary = parameters.get("boundary", "")
    if not kind.startswith("multipart/") or not boundary:
        raise NoReading("no boundary")
    for head, content in _parts(body, b"--" + boundary.encode("latin-1")):
        encoding = head.get(b"content-transfer-encoding", b"")
        disposition, parameters = _disposition(head.get(b"content-disposition", b""))
        if disposition != "form-data" or parameters.get("name") != name or parameters.get("filename"):
            continue
        if encoding.lower() == b"quoted-printable":
            raise NoReading("quoted-printable")
        return content.decode("utf-8", "replace")
    return None


def _parts(body: bytes, dashes: bytes) -> list[tuple[dict[bytes, bytes], bytes]]:
    """All parts, as a form is read whole before a field is asked for."""
    parts: list[tuple[dict[bytes, bytes], bytes]] = []
    line_end, at = b"\r\n", 0
    while True:
        line_length = body.find(b"\n", at) + 1 - at
        line = body[at : at + line_length] if line_length > 0 else body[at:]
        rest = line.removeprefix(dashes).lstrip(b" \t")
        if line.startswith(dashes + b"--") and line.removeprefix(dashes + b"--").lstrip(b" \t") in {
            b"",
            line_end,
        }:
            return parts
        if line_length <= 0:
            raise NoReading("ends without its last boundary")
        at += line_length
        if line.startswith(dashes) and not parts and rest == b"\n":
            line_end = b"\n"
        if line.startswith(dashes) and rest == line_end:
            if len(parts) >= 1000:
                raise NoReading("too many parts")
            head, at = _head(body, at)
            end = _content_end(body, at, dashes, line_end)
            parts.append((head, body[at:end]))
            at = end + len(line_end) if body.startswith(line_end, end) else end
        elif parts:
            raise NoReading("something else than a boundary behind a part")


def _head(body: bytes, at: int) -> tuple[dict[bytes, bytes], int]:
    head: dict[bytes, bytes] = {}
    while True:
        end = body.find(b"\n", at)
        if end < 0:
            raise NoReading("a head without an end")
        line = body[at:end].removesuffix(b"\r")
        at = end + 1
        if not line:
            return head, at
        found = _HEADER.match(line)
        if found is None or body[at : at + 1] in {b" ", b"\t"}:
            raise NoReading("a header that is folded, or none")
        head.setdefault(found[1].lower(), found[2].strip(b" \t"))


def _content_end(body: bytes, begin: int, dashes: bytes, line_end: bytes) -> int:
    if _ends_boundary(body, begin, dashes):
        return begin
    at = begin
    while (at := body.find(line_end + dashes, at)) >= 0:
        if _ends_boundary(body, at + len(line_end), dashes):
            return at
        at += 1
    raise NoReading("a part without an end")


def _ends_boundary(body: bytes, at: int, dashes: bytes) -> bool:
    behind = body[at + len(dashes) : at + len(dashes) + 2]
    return body.startswith(dashes, at) and (behind[:1] in {b"", b" ", b"\t", b"\r", b"\n"} or behind == b"--")


def _disposition(value: bytes) -> tuple[str, dict[str, str]]:
    """As a part's head is read: one that is faulty is none at all."""
    try:
        return _media_type(value.decode("latin-1"))
    except NoReading as error:
        if "cannot tell" in str(error):
            raise
        return "", {}


def _media_type(value: str) -> tuple[str, dict[str, str]]:
    found = _TYPE.match(value)
    if found is None:
        raise NoReading("no media type")
    if "*" in value or "\\" in value or not value.isascii():
        raise NoReading("cannot tell: parameters in parts, escapes, or beyond ASCII")
    parameters: dict[str, str] = {}
    rest = value[found.end() :]
    while rest.strip(" \t\r\n;"):
        each = _PARAMETER.match(rest.lstrip())
        if each is None or each[1].lower() in parameters:
            raise NoReading("a faulty parameter")
        parameters[each[1].lower()] = each[2] if each[2] is not None else each[3]
        rest = rest.lstrip()[each.end() :]
    return found[1].lower(), parameters
