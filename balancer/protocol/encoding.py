"""Request bodies that are not plain JSON: zstd-compressed ones, and multipart forms.

They are read for what routing needs and forwarded as they came.
"""

import re

import zstandard

from balancer.errors import BodyTooLarge, MalformedRequest

INFLATED_LIMIT_BYTES = 20 * 1024 * 1024
"""Source: Ollama v0.33 server/cloud_proxy.go refuses zstd bodies that inflate beyond 20 MB."""

_BOUNDARY = re.compile(r'boundary="?([^";,\s]{1,70})"?', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_QUOTED_OR_NAME = re.compile(rb'"(?:[^"\\]|\\.)*"|(?<=[;\s])name=("?)([^";\s]*)\1(?=[;\s]|\Z)', re.IGNORECASE)
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
    """The value of a short text field of a multipart form, None where it has none of that name.

    Raises:
        MalformedRequest: there is no boundary, there are too many parts, or the field is not short text.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise MalformedRequest("the multipart body has no boundary")
    delimiter = b"--" + found.group(1).encode()
    begin = body.find(delimiter)
    for _ in range(_PARTS_LIMIT):
        end = body.find(b"\r\n" + delimiter, begin + len(delimiter))
        if begin < 0 or end < 0:
            return None
        head_end = body.find(b"\r\n\r\n", begin, end)
        if head_end >= 0 and _name_of(body[begin:head_end]) == name.encode():
            return _text(body[head_end + 4 : end], name)
        begin = end + 2
    raise MalformedRequest(f"the multipart body has more than {_PARTS_LIMIT} parts")


def _name_of(head: bytes) -> bytes | None:
    """The name of a part by its head. Nothing in other quoted values is a name: a file may be called so."""
    disposition = _DISPOSITION.search(head)
    found = _QUOTED_OR_NAME.finditer(disposition.group(1)) if disposition else iter(())
    return next((each.group(2) for each in found if each.group(2) is not None), None)


def _text(value: bytes, name: str) -> str:
    if len(value) > _FIELD_LIMIT_BYTES:
        raise MalformedRequest(f"the field '{name}' is longer than {_FIELD_LIMIT_BYTES} bytes")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"the field '{name}' is not UTF-8") from error
