"""How instances and networks misbehave, each as the conduct of a passthrough."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence

from tests.faults.passthrough import Conduct, Link, Sent

_PAGE = b"<!doctype html><title>Sign in</title><p>Sign in to use this network.</p>"
_BIG_HEAD_BYTES = 10_000_000
_MANY_HEADERS = 100_000
_MANY_INTERIM = 5_000


class BlackHole(Conduct):
    """Takes every request and says nothing; the connections stay open for good."""

    def meet_request(self, link: Link, sent: Sent) -> bool:
        link.frozen = True
        return True


class CutMidway(Conduct):
    """Ends an answer in its middle, once so many bytes of its body have passed, without a reset."""

    def __init__(self, after_bytes: int) -> None:
        self._after_bytes = after_bytes

    def meet_answer(self, link: Link, sent: Sent, data: bytes) -> bool:
        if not sent.inference or len(sent.body) + len(data) < self._after_bytes:
            return False
        link.pass_on(data[: len(data) // 2])
        link.close()
        return True


class StaleClose(Conduct):
    """Closes a kept connection at the very moment at which it is used again."""

    def meet_request(self, link: Link, sent: Sent) -> bool:
        if sent.place == 1:
            return False
        link.close()
        return True


class Narrow(Conduct):
    """A line that passes so many bytes a second, for all answers together."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second


class Saying(Conduct):
    """Answers requests itself, with these texts in turn; probes too where `probes` says so. `proper` is
    whether they are HTTP as it should be. It ends no connection.

    `said_on` holds the connections on which it has spoken.
    """

    def __init__(self, texts: Sequence[Callable[[], bytes]], *, proper: bool, probes: bool = False) -> None:
        self._texts = itertools.cycle(texts)
        self._proper = proper
        self._probes = probes
        self.said_on: set[int] = set()

    def meet_request(self, link: Link, sent: Sent) -> bool:
        if not (sent.inference or self._probes):
            return False
        link.say(next(self._texts)(), proper=self._proper)
        self.said_on.add(link.number)
        return True


def garbage() -> bytes:
    """Bytes that are no HTTP."""
    return b"\x00\x16\x03 this is not HTTP\r\n\r\n"


def http_09() -> bytes:
    """A body without a head."""
    return json.dumps({"response": "hello", "done": True}).encode()


def two_lengths() -> bytes:
    """A head that tells two lengths."""
    return _head(200, "Content-Type: application/json", "Content-Length: 2", "Content-Length: 4") + b"{}{}"


def length_and_chunks() -> bytes:
    """A head that tells a length and a transfer coding."""
    head = _head(200, "Content-Type: application/json", "Content-Length: 2", "Transfer-Encoding: chunked")
    return head + b"2\r\n{}\r\n0\r\n\r\n"


def bad_chunk() -> bytes:
    """A stream whose second HTTP chunk has no size."""
    record = b'{"model":"x","response":"a","done":false}\n'
    head = _head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
    return head + b"%x\r\n%b\r\nzz\r\n%b\r\n0\r\n\r\n" % (len(record), record, record)


@functools.cache
def huge_header() -> bytes:
    """A head with one header of 10 MB."""
    return _head(200, "Content-Length: 2", "X-Huge: " + "a" * _BIG_HEAD_BYTES) + b"{}"


@functools.cache
def many_headers() -> bytes:
    """A head with 100,000 headers."""
    return _head(200, "Content-Length: 2", *(f"X-{place}: a" for place in range(_MANY_HEADERS))) + b"{}"


@functools.cache
def interim_flood() -> bytes:
    """Thousands of interim heads before an answer."""
    return b"HTTP/1.1 100 Continue\r\n\r\n" * _MANY_INTERIM + _head(200, "Content-Length: 2") + b"{}"


def page() -> bytes:
    """The sign-in page of a network that catches everything."""
    return _head(200, "Content-Type: text/html", f"Content-Length: {len(_PAGE)}") + _PAGE


def redirect_to(url: str) -> Callable[[], bytes]:
    """A redirect to elsewhere."""
    return lambda: _head(302, f"Location: {url}/api/generate", "Content-Length: 0")


def _head(status: int, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Fault", *lines, "", ""]).encode()
