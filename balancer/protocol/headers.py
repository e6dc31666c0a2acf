"""Which headers pass, each way. Hop-by-hop headers end here, and so do those that Connection names.

Source: RFC 9110 §7.6.1. What identifies a caller (Authorization, Cookie, keys) never goes upstream;
Origin does not either, since an instance would refuse one that it does not know, and Host is the
instance's own for the same reason. What an earlier proxy says of the way here is not passed on: anyone
can say it. A name with `_` is as good as one with `-` (CGI made them one), so it ends here too.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache

Headers = tuple[tuple[str, str], ...]

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    }
)
_NOT_UPSTREAM = HOP_BY_HOP | {
    "host",
    "content-length",
    "expect",
    "origin",
    "authorization",
    "cookie",
    "x-api-key",
    "api-key",
    "x-request-id",
    "forwarded",
    "via",
    "x-real-ip",
}
_NOT_UPSTREAM_PREFIXES = ("x-balancer-", "x-forwarded-", "proxy-")
_NOT_DOWNSTREAM = HOP_BY_HOP | {
    "content-length",
    "x-request-id",
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-expose-headers",
}


def upstream_headers(headers: Iterable[tuple[str, str]]) -> Headers:
    """What of a client's headers goes to an instance; framing headers and Host are the sender's to add."""
    return _passing(headers, _fate_upstream)


def downstream_headers(headers: Iterable[tuple[str, str]]) -> Headers:
    """What of an instance's headers goes to the client; framing headers are the sink's to add, the
    request's id and who may read the answer are ours to say."""
    return _passing(headers, _fate_downstream)


def header(headers: Iterable[tuple[str, str]], name: str) -> str | None:
    """The first value of a header, the name in lower case; None where it is not there."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return None


_PASSES, _ENDS, _NAMES_OTHERS = range(3)


@lru_cache(maxsize=1024)
def _fate_upstream(name: str) -> int:
    return _fate(name, _NOT_UPSTREAM, _NOT_UPSTREAM_PREFIXES)


@lru_cache(maxsize=1024)
def _fate_downstream(name: str) -> int:
    return _fate(name, _NOT_DOWNSTREAM, ("x-balancer-",))


def _fate(name: str, dropped: frozenset[str], dropped_prefixes: tuple[str, ...]) -> int:
    name = _folded(name)
    if name == "connection":
        return _NAMES_OTHERS
    return _ENDS if name in dropped or name.startswith(dropped_prefixes) else _PASSES


def _folded(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _passing(headers: Iterable[tuple[str, str]], fate: Callable[[str], int]) -> Headers:
    passing: list[tuple[str, str]] = []
    named: set[str] = set()
    for pair in headers:
        found = fate(pair[0])
        if found == _PASSES:
            passing.append(pair)
        elif found == _NAMES_OTHERS:
            named.update(map(_folded, pair[1].split(",")))
    return tuple(pair for pair in passing if _folded(pair[0]) not in named) if named else tuple(passing)
