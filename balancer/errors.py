"""Every error that crosses a room of the house, drawn as one tree.

    BalancerError
    ├── ClientError              the request itself cannot be served
    │   ├── MalformedRequest     400
    │   │   └── BrokenFraming    400, where one request ends and the next begins is not certain
    │   ├── Forbidden            403
    │   ├── UnknownModel         404
    │   ├── UnknownPath          404
    │   ├── MethodNotAllowed     405
    │   ├── RequestTooSlow       408
    │   ├── BodyTooLarge         413
    │   ├── UnsupportedEncoding  415
    │   ├── UnsupportedMediaType 415
    │   ├── UnknownExpectation   417
    │   ├── HeadersTooLarge      431
    │   ├── SlowReader           499, cut after it left too much unread
    │   └── ClientLeft           499, nobody is there to be told
    ├── FleetError               the balancer cannot serve it now
    │   ├── QueueFull            503
    │   │   ├── QueueTooLong     503, it would wait for longer than it may
    │   │   └── Shed             503, its class is turned away for now
    │   ├── NoInstance           503
    │   ├── BodyBudgetSpent      503
    │   ├── Stopping             503, also what ends an exchange that is under way then
    │   ├── NoFiles              503
    │   └── DeadlinePassed       504
    └── InstanceError            502, an instance failed while serving it
        ├── ConnectFailed        nothing was sent
        ├── ConnectionLost       the connection ended before the answer did
        ├── InstanceDown         judged down while a request waited there
        ├── InstanceStalled      no byte of an answer that had begun came for too long
        ├── SlotLost             nothing came and the runner was idle
        ├── Unfinished           the answer ended properly and had nothing in it
        ├── Unserved             400 or 501, its runtime has no counterpart for what is asked
        └── BadResponse          what came back is not an HTTP answer that we relay

Retry logic reads `retryable` and never a message. Telling an error in a client's dialect is
the business of `protocol.errors`.
"""

from collections.abc import Iterable
from enum import StrEnum

_NAMED_MODELS = 20


class Source(StrEnum):
    """Whose fault an error is."""

    CLIENT = "client"
    BALANCER = "balancer"
    INSTANCE = "instance"


class BalancerError(Exception):
    """Base of all; `str()` is what a client may read: no addresses, no internals. Where it `closes`, nothing
    more is read of the client's connection."""

    source = Source.BALANCER
    status = 500
    retryable = False
    kind = "internal"
    closes = False


class ClientError(BalancerError):
    """The request cannot be served as it is."""

    source = Source.CLIENT
    status = 400
    kind = "bad_request"


class MalformedRequest(ClientError):
    """The body or a header cannot be understood, or could be understood in two ways."""


class BrokenFraming(MalformedRequest):
    """Its length or its head could be read in two ways, so what follows it is not certain to be a request."""

    closes = True


class Forbidden(ClientError):
    """The path, the origin or the peer is not allowed."""

    status = 403
    kind = "forbidden"


class UnknownModel(ClientError):
    """No instance has the model; says which there are, where that is known."""

    status = 404
    kind = "unknown_model"

    def __init__(self, model: str, *, there_are: Iterable[str] = ()) -> None:
        names = sorted(there_are)
        listed = ", ".join(names[:_NAMED_MODELS])
        more = f" and {len(names) - _NAMED_MODELS} more" if len(names) > _NAMED_MODELS else ""
        super().__init__(f"model '{model}' not found" + (f"; there are {listed}{more}" if names else ""))


class UnknownPath(ClientError):
    """The path is not served."""

    status = 404
    kind = "unknown_path"


class MethodNotAllowed(ClientError):
    """The path is served, but not for this method; `allow` lists those that are."""

    status = 405
    kind = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTooSlow(ClientError):
    """No byte of the body came for too long."""

    status = 408
    kind = "slow_request"
    closes = True


class BodyTooLarge(ClientError):
    """The body is larger than the limit, as sent or once inflated."""

    status = 413
    kind = "body_too_large"
    closes = True


class UnsupportedEncoding(ClientError):
    """A Content-Encoding that is not read on this path."""

    status = 415
    kind = "unsupported_encoding"
    closes = True


class UnsupportedMediaType(ClientError):
    """A body that a page of elsewhere could send without being asked first."""

    status = 415
    kind = "unsupported_media_type"


class UnknownExpectation(ClientError):
    """An Expect header that is not understood."""

    status = 417
    kind = "unknown_expectation"
    closes = True


class HeadersTooLarge(ClientError):
    """All headers together are larger than the limit."""

    status = 431
    kind = "headers_too_large"
    closes = True


class SlowReader(ClientError):
    """The client left more of its answer unread than may be buffered for it."""

    status = 499
    kind = "slow_reader"


class ClientLeft(ClientError):
    """The client closed its connection; for logs and metrics only."""

    status = 499
    kind = "cancelled"


class FleetError(BalancerError):
    """The fleet cannot take the request now; `retry_after_seconds` is an estimate, None if unknown."""

    status = 503
    kind = "unavailable"

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(FleetError):
    """The queue holds as many requests as it may."""

    kind = "queue_full"


class QueueTooLong(QueueFull):
    """What is before the request would take longer than it may wait."""

    kind = "queue_too_long"


class Shed(QueueFull):
    """The fleet is overloaded, and requests of its class are turned away."""

    kind = "shed"


class NoInstance(FleetError):
    """No instance that could serve the request is usable."""

    kind = "no_instance"


class BodyBudgetSpent(FleetError):
    """The request bodies waiting take all the memory that they may."""

    kind = "body_budget"


class Stopping(FleetError):
    """The balancer is being stopped."""

    kind = "stopping"
    closes = True


class NoFiles(FleetError):
    """The balancer has as many files open as it may, which is no fault of an instance."""

    kind = "no_files"


class DeadlinePassed(FleetError):
    """The request waited as long as it may."""

    status = 504
    kind = "deadline"


class InstanceError(BalancerError):
    """An instance failed; retryable as long as no byte of an answer reached the client."""

    source = Source.INSTANCE
    status = 502
    retryable = True
    kind = "instance"


class ConnectFailed(InstanceError):
    """No connection: refused, unreachable, or not made in time."""

    kind = "connect"

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class ConnectionLost(InstanceError):
    """The connection ended before the answer was whole."""

    kind = "connection_lost"


class InstanceDown(InstanceError):
    """The instance was judged down while a request waited there for its first byte."""

    kind = "instance_down"


class BadResponse(InstanceError):
    """What came back is not HTTP, breaks its framing, or is larger than its bounds."""

    kind = "bad_response"


class InstanceStalled(InstanceError):
    """An answer had begun, and no further byte of it came for too long."""

    kind = "timeout"


class SlotLost(InstanceError):
    """The instance took the request and gives nothing, as its runner has lost the slot. Where it is `cured`
    the model was unloaded for that, so that the request can be sent there again."""

    kind = "slot_lost"

    def __init__(self, message: str, *, cured: bool) -> None:
        super().__init__(message)
        self.cured = cured


class Unfinished(InstanceError):
    """A stream ended properly before its first record."""

    kind = "unfinished"


class Unserved(InstanceError):
    """The runtime of an instance has no counterpart for what is asked, which an Ollama may have; 400 names
    a part of the request, 501 is for all of it. It says nothing of the instance."""

    kind = "unserved"

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
