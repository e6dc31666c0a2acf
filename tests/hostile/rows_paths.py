"""Rows 40 and 41: paths in disguise, and line ends where they would make another line of a head or log."""

from balancer.core.operation import Dialect
from tests.hostile.rows import GOOD, OK, Group, Seen, get, refused, sending

_PULL = b'{"model":"m"}'
_FORWARDED = b"X-Forwarded-For: 203.0.113.7"
_SPELLINGS = (
    b"/api/pull",
    b"//api/pull",
    b"/api//pull",
    b"/api/./pull",
    b"/./api/pull",
    b"/api/%70ull",
    b"/api%2fpull",
    b"/api/pull/",
    b"/API/PULL",
    b"/api/pull?x",
    b"/api/pull?/api/tags",
    b"/api/pull;x",
    b"/api;x/pull",
    b"/api/tags/../pull",
    b"/api/tags/%2e%2e/pull",
    b"/api/tags/..%2fpull",
    b"/v1/models/../../api/pull",
    b"/api\\pull",
    b"/api/tags\\..\\pull",
    b"/api/pull%00",
    b"/api/pull%20",
    b"/api/pull%3fx",
    b"/api/pull#x",
    b"http://localhost/api/pull",
)

_DISGUISES = Group(
    40,
    refused(403, 404, 405),
    {
        f"{number:02}-{path.decode().strip('/').replace('/', '_')}": sending(_PULL, _FORWARDED, path=path)
        for number, path in enumerate(_SPELLINGS)
        if not path.startswith(b"/v1/")
    },
    closes=False,
    cuts=4,
)
_DISGUISE_IN_V1 = Group(
    40,
    refused(403, 404, 405, dialect=Dialect.OPENAI),
    {"v1": sending(_PULL, _FORWARDED, path=b"/v1/models/../../api/pull")},
    closes=False,
)
_LINE_ENDS = (
    Group(
        41,
        refused(404),
        {
            "path": get(path=b"/api/%0d%0aX-A:%20b"),
            "digest": get(path=b"/api/blobs/sha256-%0d%0aX-A:%20b", method=b"HEAD").replace(b"HEAD", b"POST"),
        },
        closes=False,
    ),
    Group(
        41,
        refused(404, dialect=Dialect.OPENAI),
        {"model-in-a-path": get(path=b"/v1/models/m%0d%0aX-A:%20b")},
        closes=False,
    ),
    Group(
        41,
        refused(400),
        {
            "model-of-predict": sending(b'{"prompt":"hi"}', path=b"/predict/m%0d%0aX-A:%20b"),
            "model": sending(b'{"model":"m\\r\\nX-A: b","prompt":"hi"}'),
        },
        closes=False,
    ),
    Group(
        41,
        refused(400),
        {
            "bare-cr-in-the-id": sending(GOOD, b"X-Request-ID: a\rX-A: b"),
            "nul-in-the-id": sending(GOOD, b"X-Request-ID: a\x00b"),
        },
    ),
    Group(
        41,
        (OK,),
        {
            "encoded-in-the-id": sending(GOOD, b"X-Request-ID: a%0d%0ab"),
            "next-line-in-the-id": sending(GOOD, "X-Request-ID: a\u0085X-A: b\u2028c".encode()),
            "escapes-in-the-id": sending(GOOD, b"X-Request-ID: \\r\\n\\u000a"),
        },
        closes=False,
        upstream=(Seen(lacks=("x-a",)),),
    ),
    Group(
        41,
        (OK,),
        {"query": sending(GOOD, path=b"/api/generate?a=%0d%0aX-A:%20b")},
        closes=False,
        upstream=(Seen(target="/api/generate?a=%0d%0aX-A:%20b", lacks=("x-a",)),),
    ),
)

PATHS = tuple(row for group in (_DISGUISES, _DISGUISE_IN_V1, *_LINE_ENDS) for row in group.rows())
