"""What a row of hostile input is: the bytes that are sent, and all that must come of them.

The rows themselves are in `rows_*.py`, numbered; `table.py` puts them together. Rows that need client keys
(36, 39, 42 and 43: models that a key may not use, options beyond its policy, wrong keys, keys in the query)
are not there, since there are no keys yet. Rows 26, 50 and 51 are about time and leaving, not about bytes
alone: `test_relay_bodies.py`, `test_listener_limits.py` and `test_relay_leaving.py` have them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from balancer.core.operation import Dialect
from tests.fakes.scripted_instance import END, chunk

BODY_LIMIT = 512 * 1024
"""`limits.body_bytes` of the balancer that the rows are sent to."""
GOOD = b'{"model":"m","prompt":"hi","stream":false}'
SMUGGLED = b'{"model":"m","prompt":"smuggled","stream":false}'
HOST = b"Host: localhost"
CHUNKED = b"Transfer-Encoding: chunked"
GOOD_CHUNKED = chunk(GOOD) + END
_LONG = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One answer: any of the statuses, an error in the dialect (None: no error), a text in its message.
    `headers` are those that it must have, `lacks` those that it must not; `bodiless` is one to HEAD."""

    statuses: frozenset[int]
    dialect: Dialect | None = None
    says: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    lacks: tuple[str, ...] = ("access-control-allow-origin",)
    bodiless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request that the instance must have got; `lacks` are headers that it must not have."""

    body: bytes = GOOD
    target: str = "/api/generate"
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`closes`: whether the connection must be closed after the answers; None where both will do.

    Sent whole, cut in two at about `cuts` places, and byte by byte. Rows longer than 4 KiB are cut in their
    middle alone, and byte by byte means: the first `singles` bytes, then pieces of `step`.
    """

    number: int
    name: str
    sent: bytes
    told: tuple[Told, ...]
    closes: bool | None = True
    upstream: tuple[Seen, ...] = ()
    singles: int = 1024
    step: int = 4096
    cuts: int = 8

    @property
    def id(self) -> str:
        return f"{self.number:02}-{self.name}"

    def cut(self) -> Iterator[tuple[bytes, ...]]:
        """The pieces of each way to send it but whole: in two, at several places, then byte by byte."""
        sent = self.sent
        for at in self._cuts():
            yield sent[:at], sent[at:]
        singles = len(sent) if len(sent) <= _LONG else self.singles
        rest = range(singles, len(sent), self.step)
        yield (
            *(sent[at : at + 1] for at in range(singles)),
            *(sent[at : at + self.step] for at in rest),
        )

    def _cuts(self) -> list[int]:
        """Where to cut in two: spread evenly, and where a line, the head or a body ends."""
        length = len(self.sent)
        head_end = self.sent.find(b"\r\n\r\n") + 4
        if length > _LONG:
            return [length // 2]
        places = {length * number // self.cuts for number in range(1, self.cuts)}
        return sorted(each for each in places | {head_end - 2, head_end, length - 1} if 2 < each < length)


OK = Told(statuses=frozenset({200}))


def refused(
    *statuses: int,
    says: str = "",
    dialect: Dialect = Dialect.OLLAMA,
    headers: tuple[tuple[str, str], ...] = (),
) -> tuple[Told, ...]:
    """One error."""
    return (Told(statuses=frozenset(statuses), dialect=dialect, says=says, headers=headers),)


def head(*lines: bytes) -> bytes:
    """A request's head; the first line is the request line."""
    return b"\r\n".join([*lines, b"", b""])


def sized(body: bytes) -> bytes:
    """The Content-Length line of a body."""
    return b"Content-Length: %d" % len(body)


def post(*lines: bytes, body: bytes = GOOD, path: bytes = b"/api/generate") -> bytes:
    """A POST with just these lines beside Host, and a body."""
    return head(b"POST " + path + b" HTTP/1.1", HOST, *lines) + body


def get(*lines: bytes, path: bytes = b"/api/version", method: bytes = b"GET") -> bytes:
    """A GET, or another method without a body."""
    return head(method + b" " + path + b" HTTP/1.1", HOST, *lines)


def sending(body: bytes, *lines: bytes, path: bytes = b"/api/generate") -> bytes:
    """A POST whose framing is right."""
    return post(b"Content-Type: application/json", *lines, sized(body), body=body, path=path)


NEXT = sending(SMUGGLED)
"""What follows a request whose end can be seen in two places: it must never be served."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one number with one outcome."""

    number: int
    told: tuple[Told, ...]
    sent: dict[str, bytes]
    closes: bool | None = True
    upstream: tuple[Seen, ...] = ()
    cuts: int = 8

    def rows(self) -> Iterator[Row]:
        for name, sent in self.sent.items():
            yield Row(
                number=self.number,
                name=name,
                sent=sent,
                told=self.told,
                closes=self.closes,
                upstream=self.upstream,
                cuts=self.cuts,
            )
