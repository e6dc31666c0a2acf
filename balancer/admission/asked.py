"""What a request asks of the balancer itself, by its `X-Balancer-*` headers."""

import re

import msgspec

from balancer.core.ticket import Priority
from balancer.errors import MalformedRequest

_SESSION = re.compile(r"[\x21-\x7e]{1,256}")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Class, affinity hint, and the seconds that the request may wait in the queue."""

    priority: Priority
    session: str | None
    queue_seconds: float


def read_asked(
    *, priority: str | None, session: str | None, timeout: str | None, limit_seconds: float
) -> Asked:
    """The header values, checked; a longer wait than the operator's limit is cut to it, a session
    that is no short printable text is no session.

    Raises:
        MalformedRequest: a class that there is not, or a time that is not a number above 0.
    """
    return Asked(
        priority=_priority(priority),
        session=session if session is not None and _SESSION.fullmatch(session) else None,
        queue_seconds=_seconds(timeout, limit_seconds),
    )


def _priority(asked: str | None) -> Priority:
    if asked is None:
        return Priority.NORMAL
    try:
        return Priority(asked.strip().casefold())
    except ValueError as error:
        allowed = ", ".join(each.value for each in Priority)
        raise MalformedRequest(f"X-Balancer-Priority is one of {allowed}") from error


def _seconds(asked: str | None, limit: float) -> float:
    if asked is None:
        return limit
    try:
        seconds = float(asked)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise MalformedRequest("X-Balancer-Timeout is a number of seconds above 0")
    return min(seconds, limit)
