"""Rows 1 to 12 and 22 to 24: where a request ends. None may have two ends, nor bytes that name none."""

from tests.fakes.scripted_instance import END, chunk
from tests.hostile.rows import (
    BODY_LIMIT,
    CHUNKED,
    GOOD,
    GOOD_CHUNKED,
    HOST,
    NEXT,
    OK,
    Group,
    Seen,
    Told,
    get,
    head,
    post,
    refused,
    sending,
    sized,
)

_SIZE = len(GOOD)
_LENGTH = sized(GOOD)
_AS_IT_CAME = (Seen(),)
_TRAILERS = b"Host: evil\r\nAuthorization: Bearer x\r\nX-Forwarded-For: 10.0.0.1\r\n"
_CONTROLS = (0x00, 0x01, 0x08, 0x0B, 0x0C, 0x0E, 0x1F, 0x7F)
_START = b"POST /api/generate HTTP/1.1"


def _length(value: bytes) -> bytes:
    return post(b"Content-Length: " + value, body=GOOD + NEXT)


def _coding(line: bytes) -> bytes:
    return post(line, body=GOOD_CHUNKED + NEXT)


def _chunk(raw: bytes) -> bytes:
    """A chunked request whose second chunk is given raw."""
    return post(CHUNKED, body=chunk(GOOD[:9]) + raw + NEXT)


_REST = GOOD[9:]
_REST_SIZE = b"%x" % len(_REST)

_BOTH = Group(
    1,
    refused(400),
    {
        "length-then-chunked": post(_LENGTH, CHUNKED, body=GOOD_CHUNKED + NEXT),
        "chunked-then-length": post(CHUNKED, _LENGTH, body=GOOD_CHUNKED + NEXT),
        "length-of-nothing": post(b"Content-Length: 0", CHUNKED, body=GOOD_CHUNKED + NEXT),
        "right-length": post(sized(GOOD_CHUNKED), CHUNKED, body=GOOD_CHUNKED),
        "on-a-get": get(b"Content-Length: 3", CHUNKED) + END + NEXT,
    },
)
_LENGTHS = Group(
    2,
    refused(400),
    {
        "two-lengths": post(_LENGTH, b"Content-Length: 6", body=GOOD + NEXT),
        "two-in-one": _length(b"%d, 6" % _SIZE),
        "the-same-twice": post(_LENGTH, _LENGTH),
        "the-same-twice-in-one": _length(b"%d, %d" % (_SIZE, _SIZE)),
    },
)
_ODD_LENGTHS = Group(
    3,
    refused(400),
    {
        "plus": _length(b"+%d" % _SIZE),
        "minus": _length(b"-1"),
        "hexadecimal": _length(b"%#x" % _SIZE),
        "blank-inside": _length(b"4 2"),
        "empty": _length(b""),
        "underscore": _length(b"4_2"),
        "20-digits": _length(b"9" * 20),
        "comma": _length(b"%d," % _SIZE),
        "arabic-digits": _length("\u0664\u0662".encode()),
    },
)
_CODINGS = Group(
    4,
    refused(400, 501),
    {
        "xchunked": _coding(b"Transfer-Encoding: xchunked"),
        "identity": _coding(b"Transfer-Encoding: identity"),
        "gzip-then-chunked": _coding(b"Transfer-Encoding: gzip, chunked"),
        "chunked-twice": _coding(b"Transfer-Encoding: chunked, chunked"),
        "chunked-then-gzip": _coding(b"Transfer-Encoding: chunked, gzip"),
        "two-lines": post(CHUNKED, CHUNKED, body=GOOD_CHUNKED + NEXT),
        "quoted": _coding(b'Transfer-Encoding: "chunked"'),
        "empty": _coding(b"Transfer-Encoding: "),
        "http-1.0": head(b"POST /api/generate HTTP/1.0", HOST, CHUNKED) + GOOD_CHUNKED + NEXT,
    },
)
_BLURRED_CODINGS = Group(
    5,
    refused(400),
    {
        "folded": _coding(b"Transfer-Encoding:\r\n chunked"),
        "tab-after": _coding(b"Transfer-Encoding: chunked\t"),
        "vertical-tab": _coding(b"Transfer-Encoding:\x0bchunked"),
        "form-feed": _coding(b"Transfer-Encoding: chunked\x0c"),
        "nul": _coding(b"Transfer-Encoding: chunked\x00"),
        "blank-before-colon": _coding(b"Transfer-Encoding : chunked"),
        "tab-before-colon": _coding(b"Transfer-Encoding\t: chunked"),
    },
)
# RFC 9110 §5.5 takes a tab for a blank there, and so do both parsers.
_TAB = Group(
    5,
    (OK,),
    {"tab-before": post(b"Transfer-Encoding:\tchunked", body=GOOD_CHUNKED)},
    closes=False,
    upstream=(Seen(lacks=("transfer-encoding",)),),
)
_UNDERSCORES = Group(
    6,
    (OK,),
    {
        "transfer-encoding": post(_LENGTH, b"Transfer_Encoding: chunked"),
        "content-length": post(b"Content_Length: 5", _LENGTH),
    },
    closes=False,
    upstream=(Seen(lacks=("transfer_encoding", "content_length")),),
)
_CHUNK_SIZES = Group(
    7,
    refused(400),
    {
        "hexadecimal-mark": _chunk(b"0x" + _REST_SIZE + b"\r\n" + _REST + b"\r\n" + END),
        "minus": _chunk(b"-1\r\n" + _REST + b"\r\n" + END),
        "plus": _chunk(b"+" + _REST_SIZE + b"\r\n" + _REST + b"\r\n" + END),
        "underscore": _chunk(b"2_1\r\n" + _REST + b"\r\n" + END),
        "17-digits": _chunk(b"1" + b"0" * 14 + _REST_SIZE + b"\r\n" + _REST + b"\r\n" + END),
        "blank-before": _chunk(b" " + _REST_SIZE + b"\r\n" + _REST + b"\r\n" + END),
        "blank-after": _chunk(_REST_SIZE + b" \r\n" + _REST + b"\r\n" + END),
        "empty": _chunk(b"\r\n" + _REST + b"\r\n" + END),
        "no-number": _chunk(b"zz\r\n" + _REST + b"\r\n" + END),
    },
)
_EXTENSIONS = Group(
    8,
    refused(400),
    {
        "64-KiB": _chunk(_REST_SIZE + b";" + b"x" * 65536 + b"\r\n" + _REST + b"\r\n" + END),
        "bare-lf-in-it": _chunk(_REST_SIZE + b";a\nb\r\n" + _REST + b"\r\n" + END),
        "bare-cr-in-it": _chunk(_REST_SIZE + b";a\rb\r\n" + _REST + b"\r\n" + END),
        "nul-in-it": _chunk(_REST_SIZE + b";a\x00\r\n" + _REST + b"\r\n" + END),
    },
)
_CHUNK_ENDS = Group(
    9,
    refused(400),
    {
        "bare-lf-after-size": _chunk(_REST_SIZE + b"\n" + _REST + b"\r\n" + END),
        "bare-cr-after-size": _chunk(_REST_SIZE + b"\r" + _REST + b"\r\n" + END),
        "bare-lf-after-data": _chunk(_REST_SIZE + b"\r\n" + _REST + b"\n" + END),
        "nothing-after-data": _chunk(_REST_SIZE + b"\r\n" + _REST + END),
        "spill": _chunk(_REST_SIZE + b"\r\n" + _REST + b"spill\r\n" + END),
        "bare-lf-at-the-end": _chunk(_REST_SIZE + b"\r\n" + _REST + b"\r\n0\n\n"),
    },
)
_TRAILED = Group(
    10,
    (OK,),
    {
        "announced": post(CHUNKED, b"Trailer: X-A", body=chunk(GOOD) + b"0\r\nX-A: 1\r\n\r\n"),
    },
    closes=False,
    upstream=(Seen(lacks=("authorization", "transfer-encoding", "trailer", "x-a")),),
)
_TRAILED_TOO_MUCH = Group(
    10,
    refused(400, 431),
    {
        "1000-trailers": post(
            CHUNKED, body=chunk(GOOD) + b"0\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(1000)) + b"\r\n"
        ),
        "host-and-credentials": post(CHUNKED, body=chunk(GOOD) + b"0\r\n" + _TRAILERS + b"\r\n" + NEXT),
        "length": post(CHUNKED, body=chunk(GOOD) + b"0\r\nContent-Length: 5\r\n\r\n" + NEXT),
        "coding": post(CHUNKED, body=chunk(GOOD) + b"0\r\nTransfer-Encoding: chunked\r\n\r\n" + NEXT),
        "bad-trailer": post(CHUNKED, body=chunk(GOOD) + b"0\r\nX A: b\x00\r\n\r\n"),
    },
)
_LINE_ENDS = Group(
    11,
    refused(400),
    {
        "bare-lf-everywhere": sending(GOOD).replace(b"\r\n", b"\n"),
        "bare-lf-after-the-request-line": sending(GOOD).replace(b"\r\n", b"\n", 1),
        "bare-lf-after-a-header": post(b"X-A: b\nX-B: c", _LENGTH),
        "bare-cr-in-a-header": post(b"X-A: b\rX-B: c", _LENGTH),
        "bare-cr-after-the-request-line": sending(GOOD).replace(b"\r\n", b"\r", 1),
        "blank-before-the-first-header": head(_START, b" " + HOST, _LENGTH) + GOOD,
        "folded-header": post(b"X-A: b\r\n c", _LENGTH),
        "header-without-colon": post(b"X-A", _LENGTH),
        "header-without-name": post(b": b", _LENGTH),
        "blank-in-a-name": post(b"X A: b", _LENGTH),
        "blank-before-colon": post(b"X-A : b", _LENGTH),
    },
)
_CONTROL_BYTES = Group(
    12,
    refused(400),
    {
        **{f"{byte:02x}-in-a-name": post(b"X-%c: b" % byte, _LENGTH) for byte in _CONTROLS},
        **{f"{byte:02x}-in-a-value": post(b"X-A: b%cc" % byte, _LENGTH) for byte in _CONTROLS},
        "nul-in-the-target": get(path=b"/api/version\x00"),
        "tab-in-the-target": get(path=b"/api/\tversion"),
        "bytes-beyond-ascii-in-a-name": post("X-\u00e4: b".encode(), _LENGTH),
    },
    cuts=3,
)
_BODIES_WHERE_NONE_BELONG = Group(
    22,
    (OK,),
    {
        "get": get(sized(NEXT)) + NEXT,
        "get-chunked": get(CHUNKED) + chunk(NEXT) + END,
        "get-merged-list": get(sized(NEXT), path=b"/api/tags") + NEXT,
    },
    closes=None,
)
_BODIES_OF_QUESTIONS = (
    Group(
        22,
        (Told(statuses=frozenset({200}), bodiless=True),),
        {"head": get(sized(NEXT), method=b"HEAD") + NEXT},
        closes=None,
    ),
    Group(
        22,
        (Told(statuses=frozenset({204}), bodiless=True),),
        {
            "options": get(sized(NEXT), method=b"OPTIONS") + NEXT,
            "options-chunked": get(CHUNKED, method=b"OPTIONS") + chunk(NEXT) + END,
        },
        closes=None,
    ),
)
_UPGRADES = Group(
    23,
    (OK,),
    {
        "websocket": get(
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        + NEXT,
        "h2c": get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
        + NEXT,
    },
)
_UPGRADED_POSTS = Group(
    23,
    (OK,),
    {
        f"{name}-post": post(b"Connection: Upgrade", b"Upgrade: " + name.encode(), _LENGTH) + NEXT
        for name in ("websocket", "h2c")
    },
    upstream=(Seen(lacks=("upgrade", "connection")),),
)
_TOO_LARGE = Group(
    24,
    refused(413),
    {
        "by-length": sending(b"x" * (BODY_LIMIT + 1)),
        "by-chunks": post(CHUNKED, body=chunk(b"x" * 65536) * 8 + chunk(b"x") + END),
    },
)

FRAMING = tuple(
    row
    for group in (
        _BOTH,
        _LENGTHS,
        _ODD_LENGTHS,
        _CODINGS,
        _BLURRED_CODINGS,
        _TAB,
        _UNDERSCORES,
        _CHUNK_SIZES,
        _EXTENSIONS,
        _CHUNK_ENDS,
        _TRAILED,
        _TRAILED_TOO_MUCH,
        _LINE_ENDS,
        _CONTROL_BYTES,
        _BODIES_WHERE_NONE_BELONG,
        *_BODIES_OF_QUESTIONS,
        _UPGRADES,
        _UPGRADED_POSTS,
        _TOO_LARGE,
    )
    for row in group.rows()
)
