"""Who asks, and may this peer change models?

A client is a source address as long as there are no keys. Paths that change models are for a peer
on this very machine, or for everyone once the operator says so: a request that a front proxy
passed on comes from its loopback address too, so forwarding headers count against it.
"""

from collections.abc import Iterable
from ipaddress import ip_address

from balancer.core.ticket import ClientId
from balancer.errors import Forbidden

_FORWARDING = frozenset(
    {"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "fly-client-ip"}
)
_FORWARDING_PREFIX = "x-forwarded-"


def identify(peer: str | None) -> ClientId:
    """The client that a peer address stands for."""
    return ClientId(peer or "unknown")


def is_loopback(host: str | None) -> bool:
    """Whether an address or host name is this machine's own loopback."""
    if host is None:
        return False
    if host.casefold() == "localhost":
        return True
    try:
        address = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def require_model_changes(peer: str | None, header_names: Iterable[str], *, allowed: bool) -> None:
    """Pass a request that changes models, or raise Forbidden with what to do about it."""
    if allowed:
        return
    if not is_loopback(peer):
        raise Forbidden(
            "changing models is for clients on the balancer's own machine; "
            "start it with --allow-model-changes to allow others"
        )
    names = {name.casefold() for name in header_names}
    forwarded = sorted(each for each in names if each in _FORWARDING or each.startswith(_FORWARDING_PREFIX))
    if forwarded:
        raise Forbidden(
            f"changing models through another proxy ('{forwarded[0]}') is not allowed; "
            "start the balancer with --allow-model-changes to allow it"
        )
