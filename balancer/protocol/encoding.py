"""Request bodies that are not plain JSON: zstd-compressed ones, and multipart forms.

They are read for what routing needs and forwarded as they came.
"""

import re

import zstandard

from balancer.errors import BodyTooLarge, MalformedRequest

INFLATED_LIMIT_BYTES = 20 * 1024 * 1024
"""Source: Ollama v0.33 server/cloud_proxy.go refuses zstd bodies that inflate beyond 20 MB."""

_BOUNDARY = re.compile(r'boundary="?([^";,\s]{1,70})"?', re.IGNORECASE)
_FIELD_LIMIT_BYTES = 1024


def inflate_zstd(body: bytes, *, limit_bytes: int = INFLATED_LIMIT_BYTES) -> bytes:
    """The plain body; never holds more than `limit_bytes` and one block.

    Raises:
        MalformedRequest: it is not zstd, or it is cut off.
        BodyTooLarge: it inflates to more than `limit_bytes`.
    """
    plain = bytearray()
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(body) as reader:
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
        MalformedRequest: there is no boundary, or the field is not short text.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise MalformedRequest("the multipart body has no boundary")
    delimiter = b"--" + found.group(1).encode()
    wanted = re.compile(rb'name="?' + re.escape(name.encode()) + rb'"?(?:[;\s]|\Z)', re.IGNORECASE)
    begin = body.find(delimiter)
    while begin >= 0:
        head_end = body.find(b"\r\n\r\n", begin)
        end = body.find(b"\r\n" + delimiter, begin + len(delimiter))
        if head_end < 0 or end < 0:
            return None
        if head_end < end and wanted.search(body[begin:head_end]):
            return _text(body[head_end + 4 : end], name)
        begin = end + 2
    return None


def _text(value: bytes, name: str) -> str:
    if len(value) > _FIELD_LIMIT_BYTES:
        raise MalformedRequest(f"the field '{name}' is longer than {_FIELD_LIMIT_BYTES} bytes")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"the field '{name}' is not UTF-8") from error
