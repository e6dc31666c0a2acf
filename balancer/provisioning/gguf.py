"""The header of a GGUF file: its version, how many tensors it has, and its key-value pairs. No tensor is
read. Files may be broken or hostile: whatever they say, at most 8 MiB are read, and always forwards.
"""

import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import msgspec

from balancer.provisioning.files import open_regular

Value: TypeAlias = int | float | bool | str | tuple[int | float | bool, ...]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_BIG_ENDIAN = frozenset(version << 24 for version in _VERSIONS)
_BOOL, _STRING, _ARRAY = 7, 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
_READ_BYTES = 8 * 2**20
_KEYS = 2**14
_KEY_BYTES = 2**16 - 1
_TEXT_BYTES = 2**16
_KEPT_ELEMENTS = 4096


class GgufError(Exception):
    """The file is not a GGUF file that can be read; says what is wrong with it."""


class GgufHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of itself. Left out of `values` are texts above 64 KiB, lists of texts and lists
    of more than 4096 numbers, and all that follows the first list of texts once the model's shape is known:
    lists of texts are vocabularies, and writers put the shape before them."""

    version: int
    tensor_count: int
    values: Mapping[str, Value]

    @property
    def architecture(self) -> str:
        """`general.architecture`; empty where it is missing."""
        found = self.values.get("general.architecture")
        return found if isinstance(found, str) else ""


def read_header(path: Path) -> GgufHeader:
    """The header of a little-endian file of version 2 or 3. Blocks while reading.

    Source: ggml docs/gguf.md.
    Raises: GgufError, OSError.
    """
    with open_regular(path) as file:
        return _Reader(file).header()


class _Reader:
    """Reads forwards within the file's size and the bytes that may be read."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        self._left = _READ_BYTES
        file.seek(0)

    def header(self) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise GgufError("it does not begin with GGUF")
        version = self._number("I")
        if version in _BIG_ENDIAN:
            raise GgufError("it is big-endian")
        if version not in _VERSIONS:
            raise GgufError(f"its version is {version}; 2 and 3 can be read")
        tensors, pairs = self._number("Q"), self._number("Q")
        if pairs > _KEYS:
            raise GgufError(f"it claims {pairs} keys; {_KEYS} can be read")
        return GgufHeader(version=version, tensor_count=tensors, values=MappingProxyType(self._pairs(pairs)))

    def _pairs(self, count: int) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for _ in range(count):
            key = self._key()
            if key in values:
                raise GgufError(f"it has the key '{key}' twice")
            kind = self._number("I")
            if kind == _ARRAY:
                element, length = self._number("I"), self._number("Q")
                if element == _STRING and f"{values.get('general.architecture')}.block_count" in values:
                    break
                value = self._array(element, length)
            else:
                value = self._text() if kind == _STRING else self._scalars(kind, 1)[0]
            if value is not None:
                values[key] = value
        return values

    def _key(self) -> str:
        length = self._number("Q")
        if length > _KEY_BYTES:
            raise GgufError(f"it has a key of {length} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _text(self) -> str | None:
        length = self._number("Q")
        if length > _TEXT_BYTES:
            self._skip(length)
            return None
        return self._take(length).decode("utf-8", "replace")

    def _array(self, element: int, length: int) -> Value | None:
        if element == _STRING:
            for _ in range(
                length
            ):  # ends by the file's size or by what may be read, however many are claimed
                self._skip(self._number("Q"))
            return None
        if length <= _KEPT_ELEMENTS:
            return self._scalars(element, length)
        self._skip(length * struct.calcsize(_format(element)))
        return None

    def _scalars(self, kind: int, count: int) -> tuple[int | float | bool, ...]:
        letter = _format(kind)
        found = struct.unpack(f"<{count}{letter}", self._take(count * struct.calcsize(letter)))
        if kind != _BOOL:
            return found
        if any(each > 1 for each in found):
            raise GgufError("it has a truth value that is neither 0 nor 1")
        return tuple(each == 1 for each in found)

    def _number(self, letter: str) -> int:
        (number,) = struct.unpack(f"<{letter}", self._take(struct.calcsize(letter)))
        assert isinstance(number, int)
        return number

    def _take(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise GgufError(f"its header is longer than {_READ_BYTES // 2**20} MiB")
        data = self._file.read(count)
        if len(data) < count:
            raise GgufError("it ends inside its header")
        return data

    def _skip(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise GgufError("it ends inside its header")
        self._file.seek(count, 1)


def _format(kind: int) -> str:
    letter = _FORMATS.get(kind)
    if letter is None:
        raise GgufError(f"it has a value of the unknown type {kind}")
    return letter
