"""Rows 13 to 21, 44 to 49 and 54: request lines and headers that are no such thing, too long, or that
claim what nobody may claim."""

from random import Random

from tests.hostile.rows import (
    BODY_LIMIT,
    GOOD,
    HOST,
    NEXT,
    OK,
    Group,
    Row,
    Seen,
    Told,
    get,
    head,
    post,
    refused,
    sending,
    sized,
)

_LENGTH = sized(GOOD)
_GET = b"GET /api/version HTTP/1.1"

_HOSTS = Group(
    13,
    refused(400),
    {
        "none": head(_GET) + NEXT,
        "two": head(_GET, HOST, b"Host: 127.0.0.1") + NEXT,
        "the-same-twice": head(_GET, HOST, HOST) + NEXT,
        "path-and-query": head(_GET, b"Host: a/b?c") + NEXT,
        "user": head(_GET, b"Host: user@localhost") + NEXT,
        "two-in-one": head(_GET, b"Host: a,b") + NEXT,
        "blank-inside": head(_GET, b"Host: local host") + NEXT,
        "no-port": head(_GET, b"Host: localhost:x") + NEXT,
        "open-bracket": head(_GET, b"Host: [::1") + NEXT,
    },
)
_OTHER_TARGETS = (
    Group(
        14,
        refused(400),
        {"absolute-with-another-host": head(b"GET http://evil.example/api/version HTTP/1.1", HOST) + NEXT},
    ),
    Group(
        14,
        refused(400, 405),
        {"connect": head(b"CONNECT localhost:443 HTTP/1.1", b"Host: localhost:443") + NEXT},
    ),
    Group(
        14,
        refused(405, headers=(("Allow", "GET, HEAD"),)),
        {"trace": head(b"TRACE /api/version HTTP/1.1", HOST)},
        closes=None,
    ),
    Group(
        14,
        (Told(statuses=frozenset({204}), bodiless=True),),
        {"options-of-all": head(b"OPTIONS * HTTP/1.1", HOST)},
        closes=False,
    ),
)
_VERSIONS = Group(
    15,
    refused(400, 505),
    {
        "0.9": b"GET /api/version\r\n" + NEXT,
        "1.2": head(b"GET /api/version HTTP/1.2", HOST) + NEXT,
        "2.0": head(b"GET /api/version HTTP/2.0", HOST) + NEXT,
        "blanks-after": head(_GET + b"  ", HOST) + NEXT,
        "lower-case": head(b"GET /api/version http/1.1", HOST) + NEXT,
        "more-digits": head(b"GET /api/version HTTP/1.10", HOST) + NEXT,
        "none": head(b"GET", HOST) + NEXT,
        "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) + NEXT,
        "tls-hello": bytes.fromhex("16030100c8010000c40303") + bytes(range(190)) + NEXT,
    },
)
_LONG_LINES = Group(
    16,
    refused(414),
    {
        "9-KB": get(path=b"/" + b"a" * 9000) + NEXT,
        "200-KB": get(path=b"/api/version?" + b"a" * 200_000) + NEXT,
        "200-KB-without-end": b"GET /" + b"a" * 200_000,
    },
)
_LARGE_HEADERS = Group(
    17,
    refused(431),
    {
        "9-KB": get(b"X-Long: " + b"a" * 9000) + NEXT,
        "9-KB-name": get(b"X-" + b"a" * 9000 + b": b") + NEXT,
        "129-headers": get(*(b"X-%d: a" % n for n in range(129))) + NEXT,
        "65-KB-together": get(*(b"X-%d: %b" % (n, b"a" * 7400) for n in range(9))) + NEXT,
        "9-KB-without-end": b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 9000,
    },
)
_METHODS = Group(
    18,
    refused(405, 501),
    {
        "10-KB": get(method=b"A" * 10_000) + NEXT,
        "lower-case": get(method=b"get") + NEXT,
        "foo": get(method=b"FOO") + NEXT,
    },
    closes=None,
)
_MANY = 1000
_PIPELINED = Row(
    number=19,
    name="1000-in-one-write",
    sent=b"".join(get(b"X-Request-ID: %d" % n, path=b"/livez") for n in range(_MANY)),
    told=tuple(
        Told(statuses=frozenset({200}), headers=(("X-Request-ID", str(number)),)) for number in range(_MANY)
    ),
    closes=False,
)
_GARBAGE = Group(
    20,
    refused(400),
    {
        "1-MB": b"\xff" + Random(20).randbytes(1_000_000),
        "zeros": bytes(20_000),
        "line-ends": b"\r\n" * 10 + b"\x80\r\n\r\n",
    },
)
_EXPECTATIONS = (
    Group(
        21,
        refused(413),
        {"too-large": sending(b"x" * (BODY_LIMIT + 1), b"Expect: 100-continue")},
    ),
    Group(
        21,
        refused(417),
        {"unknown": sending(GOOD, b"Expect: x")},
        closes=None,
    ),
)
_CLAIMED_ORIGINS = Group(
    44,
    (OK,),
    {
        "spoofed": sending(GOOD, b"X-Forwarded-For: 10.0.0.1", b"Forwarded: for=10.0.0.1;proto=https"),
        "1000-hops": sending(GOOD, b"X-Forwarded-For: " + b", ".join([b"1.2.3.4"] * 850)),
        "unknown": sending(GOOD, b"X-Forwarded-For: unknown", b"X-Real-IP: -"),
        "zone": sending(GOOD, b"X-Forwarded-For: fe80::1%eth0", b"Via: 1.1 evil"),
    },
    closes=False,
    upstream=(Seen(lacks=("x-forwarded-for", "forwarded", "x-real-ip", "via")),),
)
_OTHER_PAGES = Group(
    45,
    refused(403),
    {
        "rebound-host": head(_GET, b"Host: evil.example"),
        "rebound-host-and-port": head(_GET, b"Host: evil.example:11400"),
        "address-as-a-name": head(_GET, b"Host: 127.0.0.1.evil.example"),
        "origin": sending(GOOD, b"Origin: https://evil.example"),
        "no-origin": sending(GOOD, b"Origin: null"),
        "asked-before": get(
            b"Origin: https://evil.example", b"Access-Control-Request-Method: POST", method=b"OPTIONS"
        ),
    },
    closes=False,
)
_FORWARDED = b"X-Forwarded-For: 203.0.113.7"
_MANAGING = Group(
    46,
    refused(403),
    {
        **{
            path.rpartition("/")[2]: sending(b'{"model":"m"}', _FORWARDED, path=path.encode())
            for path in ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/me", "/api/signout")
        },
        "delete": sending(b'{"model":"m"}', _FORWARDED, path=b"/api/delete").replace(b"POST", b"DELETE", 1),
        "blob": sending(b"x", _FORWARDED, path=b"/api/blobs/sha256:" + b"a" * 64),
        "blob-head": get(_FORWARDED, path=b"/api/blobs/sha256-" + b"a" * 64, method=b"POST"),
        "web-search": sending(b"{}", path=b"/api/experimental/web_search"),
        "web-fetch": sending(b"{}", path=b"/api/experimental/web_fetch"),
        "user-key": get(path=b"/api/user/keys/x", method=b"DELETE"),
    },
    closes=None,
)
_VERBS = (
    Group(
        47,
        refused(405, headers=(("Allow", "POST"),)),
        {
            "get-of-a-post": get(path=b"/api/chat"),
            "put": sending(GOOD).replace(b"POST", b"PUT", 1),
            "patch": sending(GOOD).replace(b"POST", b"PATCH", 1),
        },
        closes=False,
    ),
    Group(
        47,
        refused(404, says="not found"),
        {
            "unknown": get(path=b"/nowhere"),
            "unknown-post": sending(GOOD, path=b"/api/nowhere"),
            "favicon": get(path=b"/favicon.ico"),
        },
        closes=False,
    ),
)
_COOKIES = (
    Group(
        48,
        refused(431),
        {
            "64-KB": get(b"Cookie: " + b"a=b; " * 13_000),
            "64-KB-in-ten": get(*[b"Cookie: " + b"a=b; " * 1400] * 10),
        },
    ),
    Group(
        48,
        (OK,),
        {"1300-pairs": sending(GOOD, b"Cookie: " + b"a=b; " * 1300)},
        closes=False,
        upstream=(Seen(lacks=("cookie",)),),
    ),
)
_HOPS = Group(
    49,
    (OK,),
    {
        "named": sending(GOOD, b"Connection: X-Secret, keep-alive", b"X-Secret: 1", b"X_Secret: 2"),
        "hop-by-hop": sending(
            GOOD,
            b"TE: trailers",
            b"Keep-Alive: timeout=5",
            b"Proxy-Connection: keep-alive",
            b"Proxy-Authorization: Basic x",
            b"Proxy-X: 1",
        ),
        "conditions": sending(GOOD, b"Range: bytes=0-1", b'If-None-Match: "x"'),
    },
    closes=False,
    upstream=(
        Seen(
            lacks=(
                "x-secret",
                "x_secret",
                "connection",
                "te",
                "keep-alive",
                "proxy-connection",
                "proxy-authorization",
                "proxy-x",
            )
        ),
    ),
)
_PLAIN = b"Content-Type: text/plain"
_SIMPLE_REQUESTS = (
    Group(
        54,
        refused(415),
        {"from-a-page": post(_PLAIN, b"Origin: http://localhost:3000", _LENGTH)},
        closes=None,
    ),
    Group(
        54,
        (OK,),
        {
            "from-no-page": post(_PLAIN, _LENGTH),
            "form-of-curl": post(b"Content-Type: application/x-www-form-urlencoded", _LENGTH),
            "without-a-type": post(_LENGTH),
            "json-from-a-page": sending(GOOD, b"Origin: http://localhost:3000"),
        },
        closes=False,
        upstream=(Seen(lacks=("origin",)),),
    ),
)

HEADS = (
    *(
        row
        for group in (
            _HOSTS,
            *_OTHER_TARGETS,
            _VERSIONS,
            _LONG_LINES,
            _LARGE_HEADERS,
            _METHODS,
            _GARBAGE,
            *_EXPECTATIONS,
            _CLAIMED_ORIGINS,
            _OTHER_PAGES,
            _MANAGING,
            *_VERBS,
            *_COOKIES,
            _HOPS,
            *_SIMPLE_REQUESTS,
        )
        for row in group.rows()
    ),
    _PIPELINED,
)
