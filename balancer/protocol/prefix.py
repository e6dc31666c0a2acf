"""How a prompt begins: a chain of marks. What two requests have in common is told by the last mark that both
have.

The prompt itself is the instance's to render. Here its parts stand in the order in which templates put them,
and as the client spelled them: what is spelled alike is evaluated alike, and what is not is taken for
another prompt. Nothing of a text is decoded, and images are bytes like any other.
"""

import re
from contextlib import suppress
from hashlib import blake2b

import msgspec

from balancer.core.ticket import Prefix
from balancer.protocol.json_body import Fields, first_byte

BYTES_PER_TOKEN = 2
"""Fewer than any language's tokens have on average, so that estimates are upper bounds."""

_ORDER = (
    *("template", "raw", "context", "system", "instructions", "tools"),
    *("images", "prompt", "suffix", "messages", "input"),
)
"""The keys that make a prompt, in the order of most templates: what stays the same from turn to turn comes
first, what grows comes last."""
_GROWING = frozenset({"messages", "input"})
_MOST_BYTES = 4 * 2**20
"""What comes after is not marked: it is more than a context holds."""
_BLOCK_BYTES = 256
_GROWTH = 32
"""From 32 blocks on a mark comes with each further 32nd of the prompt, so 4 MiB have 235."""
_LAST_ENDS = 8
"""So many of the last messages have a mark at their end: where an earlier turn's prompt ended, and an answer
and the results of a few tools followed."""
_MOST_COMMAS = 30_000
"""A list with more of them is not taken apart: it would take too long."""
_MOST_CACHE_MARKS = 1000
_FOR_CACHES = b'"cache_control"'
_ITS_VALUE = re.compile(rb"\s*:\s*(?:null|\{[^{}]*\})(\s*,\s*)?")
"""Clients of Anthropic's dialect mark the newest messages so, and other ones with each turn; it is no part of
a prompt. A JSON string has no bare quote in it, so what is found is a key. Source: Anthropic's reference of
messages, prompt caching."""

_split = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _offsets() -> tuple[int, ...]:
    """Where marks are set, in bytes: the same places in every prompt, however long it is."""
    at, offsets = _BLOCK_BYTES, [_BLOCK_BYTES]
    while at < _MOST_BYTES:
        at += max(_BLOCK_BYTES, at // _GROWTH)
        offsets.append(at)
    return tuple(offsets)


_OFFSETS = _offsets()


def read_prefix(fields: Fields) -> Prefix:
    """The marks of the prompt that a request's top-level keys make, at most 256; none where there is no
    prompt. A mark is a hash of all that comes before it, the same in every process, with an estimate of how
    many tokens that is, from above; the last one stands for the whole prompt, or for its first 4 MiB.
    """
    folded = {key.casefold(): value for key, value in fields.items()}
    pieces: list[bytes] = []
    for key in _ORDER:
        if key in folded and first_byte(folded[key]) != b"n":
            pieces += _pieces(key, folded[key])
    text = b"".join(pieces)
    cuts = {len(text), *_last_ends(pieces, len(text))}
    return _marks(memoryview(text)[:_MOST_BYTES], cuts)


def _pieces(key: str, value: msgspec.Raw) -> list[bytes]:
    """The value with its name; what grows from turn to turn as its items, so that a later turn's begin with
    those of an earlier one."""
    told = _without_cache_marks(bytes(memoryview(value)[:_MOST_BYTES]))
    items: list[bytes] = []
    if key in _GROWING and told[:1] == b"[" and told.count(b",") <= _MOST_COMMAS:
        with suppress(msgspec.MsgspecError):  # cut at its end, or not what it was taken for
            items = [bytes(each) for each in _split(told)]
    first, *others = items or [told]
    return [f"{key}:".encode() + first, *others]


def _without_cache_marks(told: bytes) -> bytes:
    first, *others = told.split(_FOR_CACHES, _MOST_CACHE_MARKS)
    kept = [first]
    for other in others:
        value = _ITS_VALUE.match(other)
        if value is None:
            kept.append(_FOR_CACHES + other)
            continue
        if value[1] is None:
            kept[-1] = kept[-1].rstrip().removesuffix(b",")
        kept.append(other[value.end() :])
    return b"".join(kept)


def _last_ends(pieces: list[bytes], length: int) -> list[int]:
    """Where the pieces before the last few ones end."""
    ends = []
    for piece in pieces[: -_LAST_ENDS - 1 : -1]:
        length -= len(piece)
        ends.append(length)
    return ends


def _marks(text: memoryview, further_cuts: set[int]) -> Prefix:
    end = len(text)
    cuts = {each for each in (*_OFFSETS, *further_cuts, end) if 0 < each <= end}
    hasher, begin, marks = blake2b(digest_size=8), 0, []
    for cut in sorted(cuts):
        hasher.update(text[begin:cut])
        marks.append((int.from_bytes(hasher.digest(), "little"), cut // BYTES_PER_TOKEN))
        begin = cut
    return tuple(marks)
