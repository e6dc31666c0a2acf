"""What is wrong with a head that aiohttp lets pass: what another program on the way might read otherwise.

Source: RFC 9112 §3.2 (targets and Host), §6.1 (Transfer-Encoding), RFC 9110 §10.1.1 (Expect).
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from aiohttp import HttpVersion, HttpVersion10, HttpVersion11

from balancer.errors import (
    BrokenFraming,
    ClientError,
    MethodNotAllowed,
    UnknownExpectation,
)

UNPARSABLE = "the request cannot be parsed"
"""Said of all that is wrong with a request's framing: how much of it is seen at once depends on how it is
cut, and the answer must not."""
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
_HOST = re.compile(r"(?:[\w.~-]*|\[[0-9a-f:.]+(?:%[\w.~-]+)?\])(?::\d{0,5})?", re.ASCII | re.IGNORECASE)
_AUTHORITY = re.compile(r"(https?)://([^/?#]*)", re.IGNORECASE)
_PORTS = {"http": ":80", "https": ":443"}


def fault_of(
    method: str, target: str, version: HttpVersion, fields: Mapping[str, str], codings: int
) -> ClientError | None:
    """The error to tell, None where the head can be read in one way only. `fields` has the first value of
    each header by its name in lower case, `codings` is how many Transfer-Encoding headers there are."""
    if version not in {HttpVersion11, HttpVersion10}:
        return BrokenFraming(UNPARSABLE)
    if method == "CONNECT":
        refused = MethodNotAllowed("405 method not allowed; this is no tunnel", allow=METHODS)
        refused.closes = True
        return refused
    coding = fields.get("transfer-encoding")
    if coding is not None:
        if codings > 1 or not coding.strip() or version == HttpVersion10:
            return BrokenFraming(UNPARSABLE)
        if coding.strip().lower() != "chunked":
            return BrokenFraming("no Transfer-Encoding but 'chunked' is read here")
    expected = fields.get("expect")
    if expected is not None and expected.strip().lower() != "100-continue":
        return UnknownExpectation("no expectation but '100-continue' is met here")
    misplaced = _misplaced("" if target.startswith("/") else target, fields.get("host", ""))
    return None if misplaced is None else BrokenFraming(misplaced)


@lru_cache(maxsize=1024)
def _misplaced(target: str, host: str) -> str | None:
    """What is wrong where Host is no host, or a target that names its host names another. In words: an
    error that is kept would keep the frames of all who raise it."""
    if _HOST.fullmatch(host) is None:
        return "the Host header names no host"
    named = _AUTHORITY.match(target)
    if named is None:
        return None
    scheme, authority = named[1].lower(), named[2].lower()
    if authority.removesuffix(_PORTS[scheme]) != host.lower().removesuffix(_PORTS[scheme]):
        return "the request's target names another host than its Host header"
    return None
