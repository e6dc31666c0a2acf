"""Rows 25, 27 to 35, 37, 38, 52 and 53: bodies that could be read in two ways are refused before any
instance sees them, and all others reach it byte for byte."""

import gzip

import zstandard

from balancer.core.operation import Dialect
from tests.hostile.rows import BODY_LIMIT, CHUNKED, GOOD, OK, Group, Seen, post, refused, sending

_DEEP = 100_000
_BOM = b"\xef\xbb\xbf"


def _with(fields: bytes) -> bytes:
    """A body with more fields than GOOD has."""
    return GOOD[:-1] + b"," + fields + b"}"


def _sent(bodies: dict[str, bytes], path: bytes = b"/api/generate") -> dict[str, bytes]:
    return {name: sending(body, path=path) for name, body in bodies.items()}


_NOT_READ = {
    "no-json": b"model=m&prompt=hi",
    "array": b"[" + GOOD + b"]",
    "string": b'"m"',
    "number": b"7",
    "null": b"null",
    "trailing-garbage": GOOD + b"x",
    "second-object": GOOD + GOOD,
    "trailing-nul": GOOD + b"\x00",
    "cut-off": GOOD[:-1],
    "blanks": b"  \r\n",
    "byte-order-mark": _BOM + GOOD,
    "utf-16": GOOD.decode().encode("utf-16"),
    "utf-16-without-mark": GOOD.decode().encode("utf-16-le"),
    "utf-8-is-not": _with(b'"x":"\xff"'),
    "utf-8-is-not-deep-inside": _with(b'"x":[{"y":"\xc3("}]'),
    "utf-8-of-a-surrogate": _with(b'"x":"\xed\xa0\x80"'),
    "utf-8-too-long": _with(b'"x":"\xc0\xaf"'),
    "latin-1": _with('"x":"Gr\u00fc\u00dfe"'.encode("latin-1")),
    "comment": GOOD[:-1] + b"/**/}",
    "trailing-comma": GOOD[:-1] + b",}",
    "single-quotes": GOOD.replace(b'"', b"'"),
    "line-end-in-a-string": _with(b'"x":"a\nb"'),
}
_NESTED = {
    "arrays": _with(b'"messages":' + b"[" * _DEEP + b"]" * _DEEP),
    "arrays-never-closed": _with(b'"x":' + b"[" * _DEEP),
    "objects": _with(b'"x":' + b'{"a":' * (_DEEP // 2) + b"1" + b"}" * (_DEEP // 2)),
    "arrays-alone": b"[" * _DEEP * 2,
    "options": _with(b'"options":' + b'{"a":' * 101 + b"1" + b"}" * 101),
    "101": _with(b'"x":' + b"[" * 100 + b"]" * 100),
}
_NUMBERS = {
    "100000-digits": _with(b'"x":' + b"9" * 100_000),
    "100000-digits-in-options": _with(b'"options":{"num_ctx":' + b"9" * 100_000 + b"}"),
    "beyond-a-float": _with(b'"x":1e999'),
    "beyond-a-float-in-options": _with(b'"options":{"temperature":-1e999}'),
    "nan": _with(b'"x":NaN'),
    "nan-deep-inside": _with(b'"x":[{"y":NaN}]'),
    "infinity": _with(b'"x":Infinity'),
    "minus-infinity-in-options": _with(b'"options":{"temperature":-Infinity}'),
    "leading-zero": _with(b'"x":01'),
    "hexadecimal": _with(b'"x":0x1'),
}
_TWICE = {
    "model": _with(b'"model":"secret"'),
    "model-first": b'{"model":"secret",' + GOOD[1:],
    "the-same-model": _with(b'"model":"m"'),
    "escaped": _with(b'"mod\\u0065l":"secret"'),
    "null-after": _with(b'"model":null'),
    "stream": _with(b'"stream":true'),
    "options": _with(b'"options":{"num_ctx":1},"options":{"num_gpu":1}'),
    "inside-options": _with(b'"options":{"num_ctx":2048,"num_ctx":4096}'),
}
_FOLDED = {
    "upper": _with(b'"MODEL":"secret"'),
    "title": _with(b'"Model":"secret"'),
    "title-first": b'{"Model":"secret",' + GOOD[1:],
    "escaped": _with(b'"\\u004dodel":"secret"'),
    "options": _with(b'"options":{},"Options":{"num_ctx":1}'),
    "inside-options": _with(b'"options":{"num_ctx":2048,"Num_Ctx":4096}'),
    "stream": _with(b'"Stream":true'),
}
_ALIASES = {
    "name": _with(b'"name":"secret"'),
    "name-first": b'{"name":"secret",' + GOOD[1:],
    "folded": _with(b'"NAME":"secret"'),
}
_OTHER_FOLDS = {
    "kelvin-sign": _with(b'"\\u212aeep_alive":0'),
    "kelvin-sign-in-bytes": _with('"\u212aeep_alive":0'.encode()),
    "beside-the-plain-one": _with(b'"keep_alive":1,"\\u212aeep_alive":0'),
    "long-s": GOOD.replace(b'"stream"', '"\u017ftream"'.encode()),
    "long-s-escaped": GOOD.replace(b'"stream"', b'"\\u017ftream"'),
    "long-s-in-options": _with('"option\u017f":{"num_ctx":1}'.encode()),
    "ligature": GOOD.replace(b'"stream"', '"\ufb06ream"'.encode()),
}
_MODELS = {
    "missing": b"",
    "null": b'"model":null,',
    "number": b'"model":7,',
    "array": b'"model":["m"],',
    "empty": b'"model":"",',
    "blank": b'"model":"  ",',
    "10-KB": b'"model":"' + b"m" * 10_240 + b'",',
    "way-out": b'"model":"../../etc",',
    "way-out-inside": b'"model":"a/../m",',
    "root": b'"model":"/etc/passwd",',
    "backslash": b'"model":"..\\\\..\\\\etc",',
    "nul": b'"model":"a\\u0000b",',
    "line-end": b'"model":"m\\nm",',
    "line-separator": b'"model":"m\\u2028m",',
    "escape": b'"model":"m\\u001b[31m",',
    "delete": b'"model":"m\\u007f",',
    "url": b'"model":"http://169.254.169.254/x",',
    "url-with-namespace": b'"model":"http://169.254.169.254/a/x",',
    "link-local-host": b'"model":"169.254.169.254/a/x",',
    "other-scheme": b'"model":"file:///a/b/x",',
}
_STREAMS = {
    "string": GOOD.replace(b"false", b'"false"'),
    "zero": GOOD.replace(b"false", b"0"),
    "one": GOOD.replace(b"false", b"1"),
    "array": GOOD.replace(b"false", b"[]"),
    "object": GOOD.replace(b"false", b"{}"),
}
_FORWARDED = {
    "spaced": b' {\r\n\t"model" : "m" , "prompt":"\\u00e9\xc3\xa9" }\n',
    "null-stream": GOOD.replace(b"false", b"null"),
    "half-a-character": _with(b'"x":"\\ud83d"'),
    "nul-in-a-prompt": GOOD.replace(b"hi", b"h\\u0000i"),
    "brackets-in-a-prompt": GOOD.replace(b"hi", b"[{" * 200),
    "nested-100-deep": _with(b'"x":' + b"[" * 99 + b"]" * 99),
    "twice-where-nobody-looks": _with(b'"x":{"model":"a","model":"b"}'),
    "beyond-a-float-where-nobody-looks": _with(b'"x":[1e999]'),
    "long-fraction": _with(b'"x":0.' + b"1" * 500),
    "the-same-name": _with(b'"name":"library/M:latest"'),
    "no-base64": _with(b'"images":["%%% this is none"]'),
    "title-case-alone": GOOD.replace(b'"stream"', b'"Stream"'),
}
_HTTP_1_0 = b"POST /api/generate HTTP/1.0"


def _refusals() -> tuple[Group, ...]:
    """What is refused with 400 wherever a body is read, each told in the dialect of its path."""
    tables = {
        28: _NOT_READ,
        29: _NESTED,
        30: _NUMBERS,
        31: _TWICE,
        32: _FOLDED,
        33: _ALIASES,
        34: _OTHER_FOLDS,
        35: {name: b"{" + text + b'"prompt":"hi","stream":false}' for name, text in _MODELS.items()},
        38: _STREAMS,
    }
    native = (
        Group(number, refused(400), _sent(bodies), closes=False, cuts=3) for number, bodies in tables.items()
    )
    spoken = (
        Group(
            number,
            refused(400, dialect=dialect),
            {f"{dialect.value}-{name}": sending(tables[number][name], path=path)},
            closes=False,
            cuts=3,
        )
        for path, dialect in (
            (b"/v1/chat/completions", Dialect.OPENAI),
            (b"/v1/messages", Dialect.ANTHROPIC),
        )
        for number, name in (
            (28, "utf-8-is-not"),
            (29, "arrays"),
            (30, "nan"),
            (31, "model"),
            (32, "title"),
            (33, "name"),
            (35, "missing"),
            (38, "string"),
        )
    )
    return (*native, *spoken)


_CODINGS = (
    Group(
        25,
        refused(415),
        {
            "gzip": sending(gzip.compress(GOOD), b"Content-Encoding: gzip"),
            "gzip-bomb": sending(gzip.compress(bytes(10_000_000)), b"Content-Encoding: gzip"),
            "deflate": sending(GOOD, b"Content-Encoding: deflate"),
            "br": sending(GOOD, b"Content-Encoding: br"),
            "zstd-on-a-native-path": sending(zstandard.compress(GOOD), b"Content-Encoding: zstd"),
        },
    ),
    Group(
        25,
        refused(413, dialect=Dialect.OPENAI),
        {
            "zstd-bomb": sending(
                zstandard.compress(bytes(40_000_000)), b"Content-Encoding: zstd", path=b"/v1/completions"
            )
        },
    ),
    Group(
        25,
        refused(400, dialect=Dialect.OPENAI),
        {
            "zstd-is-not": sending(GOOD, b"Content-Encoding: zstd", path=b"/v1/completions"),
            "zstd-and-garbage": sending(
                zstandard.compress(GOOD) + b"x", b"Content-Encoding: zstd", path=b"/v1/completions"
            ),
        },
        closes=False,
    ),
)
_EMPTY = Group(
    27,
    refused(400, says="missing request body"),
    {
        "no-length": post(body=b""),
        "length-0": sending(b""),
        "no-chunk": post(CHUNKED, body=b"0\r\n\r\n"),
        "chat": sending(b"", path=b"/api/chat"),
    },
    closes=False,
)
_UNKNOWN = Group(
    37,
    refused(404, says="model 'x' not found"),
    _sent({"unknown": GOOD.replace(b'"m"', b'"x"')}),
    closes=False,
)
_IMAGE = Group(
    53,
    refused(413),
    _sent({"image-beyond-the-limit": _with(b'"images":["' + b"QUJD" * (BODY_LIMIT // 4) + b'"]')}),
)
_PASSED = tuple(
    Group(
        53 if name == "no-base64" else 52,
        (OK,),
        _sent({name: body}),
        closes=False,
        upstream=(Seen(body=body),),
        cuts=4,
    )
    for name, body in _FORWARDED.items()
)

BODIES = tuple(
    row for group in (*_refusals(), *_CODINGS, _EMPTY, _UNKNOWN, _IMAGE, *_PASSED) for row in group.rows()
)
