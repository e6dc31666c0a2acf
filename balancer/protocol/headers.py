"""Which headers pass, each way. Hop-by-hop headers end here, and so do those that Connection names.

Source: RFC 9110 §7.6.1. What identifies a caller (Authorization, Cookie, keys) never goes upstream;
Origin does not either, since an instance would refuse one that it does not know, and Host is the
instance's own for the same reason.
"""

from collections.abc import Iterable

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
}
_NOT_DOWNSTREAM = HOP_BY_HOP | {
    "content-length",
    "x-request-id",
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-expose-headers",
}


def upstream_headers(headers: Iterable[tuple[str, str]]) -> Headers:
    """What of a client's headers goes to an instance; framing headers and Host are the sender's to add."""
    return _passing(headers, _NOT_UPSTREAM)


def downstream_headers(headers: Iterable[tuple[str, str]]) -> Headers:
    """What of an instance's headers goes to the client; framing headers are the sink's to add, the
    request's id and who may read the answer are ours to say."""
    return _passing(headers, _NOT_DOWNSTREAM)


def header(headers: Iterable[tuple[str, str]], name: str) -> str | None:
    """The first value of a header, the name in lower case; None where it is not there."""
    return next((value for key, value in headers if key.casefold() == name), None)


def _passing(headers: Iterable[tuple[str, str]], dropped: frozenset[str]) -> Headers:
    pairs = tuple(headers)
    named = {
        token.strip().casefold()
        for key, value in pairs
        if key.casefold() == "connection"
        for token in value.split(",")
    }
    return tuple(
        (key, value)
        for key, value in pairs
        if key.casefold() not in dropped
        and key.casefold() not in named
        and not key.casefold().startswith("x-balancer-")
    )
