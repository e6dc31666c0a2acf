"""A JSON body, read strictly and once: its top level, with the values left as they stand.

What comes through here can be read in one way only, by us and by the instance that gets the same bytes:
Go's decoder folds the case of keys and takes the last of several, Python's takes NaN. What is wrong with
it is told in one line; what a key means is `parse`'s to say.
"""

import re
from array import array
from codecs import getincrementaldecoder
from collections.abc import Iterable
from itertools import accumulate

import msgspec

from balancer.errors import MalformedRequest

DEPTH_LIMIT = 100
"""So many arrays and objects may be open at once."""
KEYS_LIMIT = 1000
"""So many keys the top level may have, and `options` too."""
_MARKS_LIMIT = 1_000_000
_SLICE_BYTES = 1024 * 1024

NUMBER_STARTS = frozenset({b"-", *(b"%d" % digit for digit in range(10))})
Fields = dict[str, msgspec.Raw]
"""The keys of an object as they are spelled, and their values undecoded."""

_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPES = re.compile(
    rb"(\\[^u]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
_STRINGS = re.compile(rb'"[^"]*"')
_NO_MARK = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


class _Key:
    """A key that equals no other, so that a dict holds each of several with one name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Keys:
    """Makes the keys of one object, and no more than it may have."""

    def __init__(self) -> None:
        self._count = 0

    def make(self, _type: type, name: str) -> _Key:
        self._count += 1
        if self._count > KEYS_LIMIT:
            raise ValueError(f"more than {KEYS_LIMIT} keys")
        return _Key(name)


_Object = dict[_Key, msgspec.Raw]
_decode_few = msgspec.json.Decoder(_Object, dec_hook=lambda _type, name: _Key(name)).decode


def read_object(body: bytes) -> Fields:
    """The keys of the object that a body is.

    Raises:
        MalformedRequest: it is no JSON object in UTF-8, is nested deeper than `DEPTH_LIMIT`, has a key
            twice, in any letter case, or a number that no 64-bit float holds.
    """
    try:
        _check_text(body)
        _check_depth(body)
        pairs = _pairs(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedRequest(f"the request body is not a JSON object: {error}") from error
    return unambiguous(pairs, of="the request body")


def read_inner(raw: msgspec.Raw, key: str) -> list[tuple[str, msgspec.Raw]]:
    """The pairs of an object inside a body that `read_object` has read, a key as often as it stands there.

    Raises:
        MalformedRequest: a number that no 64-bit float holds, or too many keys.
    """
    try:
        return _decode_pairs(raw)
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedRequest(f"'{key}' cannot be read: {error}") from error


def unambiguous(pairs: Iterable[tuple[str, msgspec.Raw]], *, of: str) -> Fields:
    """The pairs by their keys. Raises MalformedRequest where two keys are one but for their case."""
    fields: Fields = {}
    folded: set[str] = set()
    for key, value in pairs:
        name = key.casefold()
        if name in folded:
            raise MalformedRequest(f"{of} names {name[:64]!r} twice, maybe in several spellings")
        folded.add(name)
        fields[key] = value
    return fields


def first_byte(raw: msgspec.Raw) -> bytes:
    """What kind of value it is, without a copy of it: `{`, `[`, `"`, a digit …; empty where it is absent."""
    return bytes(memoryview(raw)[:1])


def _pairs(body: bytes) -> list[tuple[str, msgspec.Raw]]:
    try:
        return _decode_pairs(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        if _HALF_CHARACTER.search(body) is None:
            raise
    # A character beyond the first plane may be cut in two, as JavaScript's strings are: the halves are
    # replaced, as Ollama does. Only for reading; the body itself goes on as it came.
    return _decode_pairs(_ESCAPES.sub(lambda found: found[1] or rb"\ufffd", body))


def _decode_pairs(body: bytes | msgspec.Raw) -> list[tuple[str, msgspec.Raw]]:
    if bytes(body).count(b'"') <= 2 * KEYS_LIMIT:
        found = _decode_few(body)
    else:
        found = msgspec.json.decode(body, type=_Object, dec_hook=_Keys().make)
    for value in found.values():
        _check_number(value)
    return [(key.name, value) for key, value in found.items()]


def _check_text(body: bytes) -> None:
    """Raises UnicodeDecodeError. msgspec does not look into the strings that it passes over."""
    if body.isascii():
        return
    decoder, view = getincrementaldecoder("utf-8")(), memoryview(body)
    for begin in range(0, len(body), _SLICE_BYTES):
        decoder.decode(view[begin : begin + _SLICE_BYTES])
    decoder.decode(b"", final=True)


def _check_depth(body: bytes) -> None:
    """Raises ValueError. msgspec's own bound is what the stack has left, some hundreds.

    With no more than `DEPTH_LIMIT` brackets there is nothing to look for; else all but brackets and
    quotes is dropped, then the strings, and what is left are steps up and down. Broken JSON may pass.
    """
    if body.count(b"[") + body.count(b"{") <= DEPTH_LIMIT:
        return
    marks = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_MARK)
    if len(marks) > _MARKS_LIMIT:
        raise ValueError(f"more than {_MARKS_LIMIT} brackets and quotes")
    steps = array("b", _STRINGS.sub(b"", marks).translate(_STEPS))
    if max(accumulate(steps), default=0) > DEPTH_LIMIT:
        raise ValueError(f"nested deeper than {DEPTH_LIMIT}")


def _check_number(value: msgspec.Raw) -> None:
    """Raises ValueError for a number beyond a 64-bit float: Go refuses what Python takes for infinity."""
    if first_byte(value) in NUMBER_STARTS and abs(float(bytes(value))) == float("inf"):
        raise ValueError("a number is out of range")
