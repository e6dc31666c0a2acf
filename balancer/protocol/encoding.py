"""Request bodies that are not plain JSON: zstd-compressed ones, and multipart forms.

They are read for what routing needs and forwarded as they came.
"""

import re

import zstandard

from balancer.errors import BodyTooLarge, MalformedRequest

INFLATED_LIMIT_BYTES = 20 * 1024 * 1024
"""Source: Ollama v0.33 server/cloud_proxy.go refuses zstd bodies that inflate beyond 20 MB."""

_PAIR = r"""[!#$%&'*+.^_`|~0-9A-Za-z-]+\s*=\s*(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+|"(?:[^"\\]|\\.)*")"""
_PARAMETERS = re.compile(rf"(?:\s*;\s*{_PAIR})*\s*;?\s*", re.DOTALL)
_PARAMETER = re.compile(rf";\s*({_PAIR})", re.DOTALL)
_BOUNDARY = re.compile(r"[^\x00-\x1f\x7f-\U0010ffff]{1,70}")
_HEADER = re.compile(rb"([^:\s]+):[ \t]*(.*)", re.DOTALL)
_FIELD_LIMIT_BYTES = 1024
_PARTS_LIMIT = 1000
"""Source: Go 1.24 mime/multipart reads no more parts of a form."""


def inflate_zstd(body: bytes, *, limit_bytes: int = INFLATED_LIMIT_BYTES) -> bytes:
    """The plain body; never holds more than `limit_bytes` and one block. Of a body that is cut off it is
    what came: whether that is whole is for its reader to say.

    Raises:
        MalformedRequest: it is not zstd.
        BodyTooLarge: it inflates to more than `limit_bytes`.
    """
    plain = bytearray()
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(
            body, read_across_frames=True
        ) as reader:
            while block := reader.read(65536):
                plain += block
                if len(plain) > limit_bytes:
                    raise BodyTooLarge(f"the request body inflates to more than {limit_bytes} bytes")
    except zstandard.ZstdError as error:
        raise MalformedRequest("the request body is not valid zstd") from error
    return bytes(plain)


def multipart_field(body: bytes, content_type: str, name: str) -> str | None:
    """The first value of a short text field of a multipart form, None where it has none of that name.

    Read as Go's mime/multipart does; a form that Go would take with other line ends, folded heads or
    encoded values is refused, so that no other reading of it is passed on.

    Raises:
        MalformedRequest: there is no boundary, there are too many parts, or the field is not short text.
    """
    delimiter = b"--" + _boundary(content_type)
    at = _first_part(body, delimiter)
    for _ in range(_PARTS_LIMIT):
        head_end = body.find(b"\r\n\r\n", at - 2)
        end = _next_delimiter(body, delimiter, max(at, head_end + 2))
        if at < 0 or head_end < 0 or end < 0:
            return None
        head = _headers(body[at : max(at, head_end)])
        if _field_name(head.get(b"content-disposition", b"")) == name:
            if head.get(b"content-transfer-encoding", b"").lower() == b"quoted-printable":
                raise MalformedRequest(f"the field '{name}' is encoded")
            return _text(body[head_end + 4 : end], name)
        at = _behind_line(body, end + 2 + len(delimiter))
    raise MalformedRequest(f"the multipart body has more than {_PARTS_LIMIT} parts")


def _boundary(content_type: str) -> bytes:
    _, semicolon, rest = content_type.partition(";")
    given = _parameters(semicolon + rest)
    if given is None or _BOUNDARY.fullmatch(given.get("boundary", "")) is None:
        raise MalformedRequest("the multipart body has no boundary")
    return given["boundary"].encode()


def _first_part(body: bytes, delimiter: bytes) -> int:
    """Where the head of the first part begins, behind whatever stands before it; negative without one."""
    found = re.search(rb"(?:\A|\n)%b(--)?[ \t]*(\r?\n|\Z)" % re.escape(delimiter), body)
    if found is None or found.group(1):
        return -1
    if found.group(2) == b"\n":
        raise MalformedRequest("the lines of the multipart body do not end in CR and LF")
    return found.end()


def _next_delimiter(body: bytes, delimiter: bytes, at: int) -> int:
    """Where the content that goes on at `at` ends; negative where it does not."""
    mark = b"\r\n" + delimiter
    while (at := body.find(mark, at)) >= 0:
        behind = body[at + len(mark) : at + len(mark) + 2]
        if behind[:1] in {b"", b" ", b"\t", b"\r", b"\n"} or behind == b"--":
            return at
        at += 1
    return at


def _behind_line(body: bytes, at: int) -> int:
    """Where the line ends whose delimiter ends at `at`; negative where that was the last one."""
    found = re.compile(rb"(--)?[ \t]*(?:\r\n|\Z)").match(body, at)
    if found is None:
        raise MalformedRequest("a delimiter of the multipart body is followed by something else")
    return -1 if found.group(1) or not found.group().endswith(b"\n") else found.end()


def _headers(head: bytes) -> dict[bytes, bytes]:
    """The headers of a part by their names in lower case; of several of one name the first."""
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n") if head else []:
        found = _HEADER.fullmatch(line)
        if found is None or b"\n" in line or b"\r" in line:
            raise MalformedRequest("the head of a part of the multipart body cannot be read")
        headers.setdefault(found.group(1).lower(), found.group(2).strip(b" \t"))
    return headers


def _field_name(disposition: bytes) -> str | None:
    """The name of the text field that a part is, None where it is none, such as a file."""
    kind, semicolon, rest = disposition.decode("utf-8", "replace").partition(";")
    given = _parameters(semicolon + rest)
    if kind.strip().casefold() != "form-data" or given is None or given.get("filename"):
        return None
    if any(each.startswith("name*") for each in given):
        raise MalformedRequest("a field's name in the multipart body is encoded")
    return None if any(each.startswith("filename*") for each in given) else given.get("name")


def _parameters(text: str) -> dict[str, str] | None:
    """Parameters by their names in lower case, None where they are not well-formed, or one comes twice."""
    if _PARAMETERS.fullmatch(text) is None:
        return None
    pairs = [found.group(1).partition("=") for found in _PARAMETER.finditer(text)]
    given = {key.strip().lower(): _unquoted(value.strip()) for key, _, value in pairs}
    return given if len(given) == len(pairs) else None


def _unquoted(value: str) -> str:
    return re.sub(r'\\(["\\])', r"\1", value[1:-1]) if value.startswith('"') else value


def _text(value: bytes, name: str) -> str:
    if len(value) > _FIELD_LIMIT_BYTES:
        raise MalformedRequest(f"the field '{name}' is longer than {_FIELD_LIMIT_BYTES} bytes")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"the field '{name}' is not UTF-8") from error
