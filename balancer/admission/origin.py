"""Which web pages may reach us: the guard against rebinding and against requests forged by a page.

Origin and Host do not go upstream (an instance would refuse those it does not know), so Ollama's own
guard cannot work and ours stands in for it. Source: Ollama v0.33 server/routes.go, allowedHost, and
its default origins.
"""

from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from balancer.admission.identity import is_loopback
from balancer.errors import Forbidden, UnsupportedMediaType

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
"""Narrower than `is_private`, which counts every reserved range. Source: RFC 1918, RFC 4193."""
_UNASKED = frozenset({"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"})
_APP_SCHEMES = frozenset({"app", "file", "tauri", "vscode-webview", "vscode-file"})


@lru_cache(maxsize=1024)
def check_host(host: str | None, *, own_name: str) -> None:
    """Pass a Host header that means this machine; for listeners on loopback, where a public name can
    only come from a page that rebound its own. Raises Forbidden."""
    name = _host_name(host or "")
    if not name or name == own_name.casefold() or is_loopback(name) or name.endswith(_LOCAL_SUFFIXES):
        return
    try:
        address = ip_address(name)
    except ValueError:
        address = None
    if address is None or not (address.is_unspecified or any(address in each for each in _PRIVATE)):
        raise Forbidden("this listener is for this machine; its Host header names another")


def allowed_origin(origin: str | None, host: str | None, *, cors_origins: Collection[str]) -> str | None:
    """The origin that may read the answer, None where no page needs to.

    A page served by this machine, or by the same host, may ask but not read: reading takes
    `cors_origins`. Raises Forbidden for any other page.
    """
    if origin is None:
        return None
    if origin in cors_origins or "*" in cors_origins:
        return origin
    parts = _split(origin)
    if parts is not None and (
        parts.scheme in _APP_SCHEMES
        or is_loopback(parts.hostname)
        or (parts.netloc and _host_name(parts.netloc) == _host_name(host or ""))
    ):
        return None
    raise Forbidden("pages of this origin are not allowed; name it in cors_origins")


def require_asked_media_type(raw_path: str, content_type: str | None) -> None:
    """Pass a body of a page for which its browser has asked first. A browser sends these few types, or none,
    for any page without asking. Source: Fetch standard, CORS-safelisted request-header.

    Raises:
        UnsupportedMediaType: it is one of those, where JSON is wanted.
    """
    media_type = (content_type or "").partition(";")[0].strip().casefold()
    form = media_type == "multipart/form-data" and raw_path == "/v1/audio/transcriptions"
    if media_type in _UNASKED and not form and not raw_path.startswith("/api/blobs/"):
        raise UnsupportedMediaType("pages send JSON here, with Content-Type: application/json")


def _split(origin: str) -> SplitResult | None:
    """The parts of an origin, None where it is none."""
    try:
        return urlsplit(origin)
    except ValueError:
        return None


def _host_name(authority: str) -> str:
    """The name of an authority without its port, in lower case."""
    text = authority.strip().casefold()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text
