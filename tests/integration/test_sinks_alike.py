"""Both sinks put the same bytes on the wire, whatever the answer and however it ends."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.fakes.raw_client import request
from tests.fakes.running_balancer import balancing
from tests.fakes.scripted_instance import (
    DONE,
    END,
    Close,
    Reset,
    ScriptedInstance,
    Send,
    Step,
    Turn,
    chunk,
    chunked,
    head,
    whole,
)

LINE = b'{"model":"m","response":"a","done":false}\n'
EVENT = b'data: {"id":"1","object":"chat.completion.chunk","model":"m","choices":[]}\n\n'
LAST_EVENT = b"data: [DONE]\n\n"
NDJSON = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
SSE = head(200, "Content-Type: text/event-stream; charset=utf-8", "Transfer-Encoding: chunked")
BODY = {"model": "m", "messages": [], "prompt": "hi"}
ERROR = b'{"error":"it went wrong"}'
NEXT = request("/api/version", None, "X-Request-ID: run-2", "Connection: close", method="GET")
ODD_HEADERS = (
    "Server: an/instance",
    "Date: Thu, 01 Jan 1970 00:00:00 GMT",
    "x-ODD: 1",
    "Set-Cookie: a=1",
    "X-Other: 2",
    "Set-Cookie: b=2",
    "Connection: X-Named",
    "X-Named: gone",
    "Keep-Alive: timeout=5",
    "X-Empty:",
    "X-Wide: \xc3\xa4",
)


@dataclass(frozen=True)
class Case:
    """A request and what the instance does about it, once for each time that it is asked."""

    steps: Sequence[Step] = ()
    path: str = "/api/generate"
    body: bytes | dict[str, object] = b'{"model":"m","prompt":"hi"}'
    headers: tuple[str, ...] = ()
    status: int = 200


def lengthy(body: bytes, length: int, *headers: str, typed: str = "application/x-ndjson") -> bytes:
    return head(200, f"Content-Type: {typed}", f"Content-Length: {length}", *headers) + body


def streamed(*steps: Step) -> Case:
    return Case((Send(NDJSON + chunk(LINE)), Turn(), Send(chunk(LINE)), Turn(), *steps))


def told(status: int, *headers: str) -> Case:
    sent = head(status, "Content-Type: application/json", f"Content-Length: {len(ERROR)}", *headers) + ERROR
    return Case((Send(sent),), status=status)


CASES = {
    "whole": Case((Send(whole(b'{"a":1}')),)),
    "whole and chunked": Case((Send(chunked(b'{"a"', b":1}", content_type="application/json")),)),
    "whole and empty": Case((Send(whole(b"")),)),
    "whole to the end of the connection": Case((Send(head(200, "Content-Type: a/b") + b"abc"), Close())),
    "large": Case((Send(whole(b"x" * 1_000_000)),)),
    "odd headers": Case((Send(whole(b"{}", *ODD_HEADERS)),)),
    "stream with odd headers": Case((Send(lengthy(LINE + DONE, len(LINE + DONE), *ODD_HEADERS)),)),
    "no content type": Case((Send(head(200, "Content-Length: 2") + b"{}"),)),
    "204": Case((Send(head(204)),), status=204),
    "304": Case((Send(head(304, "ETag: x")),), status=304),
    "stream at once": Case((Send(NDJSON + chunk(LINE) + chunk(DONE) + END),)),
    "stream piece by piece": streamed(Send(chunk(DONE)), Turn(), Send(END)),
    "events": Case(
        (Send(SSE + chunk(EVENT)), Turn(), Send(chunk(EVENT)), Turn(), Send(chunk(LAST_EVENT) + END)),
        path="/v1/chat/completions",
        body={**BODY, "stream": True},
    ),
    "stream with a length": Case((Send(lengthy(LINE, len(LINE + DONE))), Turn(), Send(DONE))),
    "stream to the end of the connection": Case(
        (Send(head(200, "Content-Type: application/x-ndjson") + LINE), Turn(), Send(DONE), Close())
    ),
    "unfinished": streamed(Send(END)),
    "unfinished with a length": Case((Send(lengthy(LINE, len(LINE))),)),
    "error record": streamed(Send(chunk(ERROR + b"\n") + END)),
    "closed": streamed(Close()),
    "closed in a record": streamed(Send(b"%x\r\n" % len(LINE) + LINE[:12]), Turn(), Close()),
    "closed with a length": Case((Send(lengthy(LINE, 10 * len(LINE))), Turn(), Close())),
    "closed events": Case(
        (Send(SSE + chunk(EVENT)), Turn(), Close()),
        path="/v1/messages",
        body={**BODY, "stream": True},
    ),
    "reset": streamed(Reset()),
    "broken framing": streamed(Send(b"zz\r\n")),
    "closed in the whole": Case((Send(lengthy(b'{"a"', 50, typed="application/json")), Turn(), Close())),
    "closed before it had begun": Case((Close(),), status=502),
    "stream of nothing": Case((Send(NDJSON + END),), status=502),
    "no HTTP": Case((Send(b"SSH-2.0\r\n\r\n"),), status=502),
    "refused": told(400),
    "failed": told(500),
    "odd status": told(418),
    "busy": told(429),
    "busy for a while": told(503, "Retry-After: 7"),
    "no such path": Case(path="/nowhere", status=404),
    "no such method": Case(path="/api/version", status=405),
    "no such model": Case(body={"model": "other"}, status=404),
    "no JSON": Case(body=b"{", status=400),
    "no JSON for Anthropic": Case(path="/v1/messages", body=b"{", status=400),
    "no body": Case(body=b"", status=400),
    "too large": Case(body=b"x" * 5000, status=413),
    "coded": Case(headers=("Content-Encoding: br",), status=415),
    "of another origin": Case(
        (Send(whole()),), headers=("Origin: http://localhost:3000", "Content-Type: application/json")
    ),
    "of a page unasked": Case(headers=("Origin: http://localhost:3000",), status=415),
    "from a page of elsewhere": Case(headers=("Origin: http://evil.example",), status=403),
    "answered here": Case(path="/api/show", body={"model": "m"}),
    "merged stream": Case(
        (Send(chunked(b'{"status":"pulling"}\n', b'{"status":"success"}\n')),), path="/api/pull", body=BODY
    ),
    "expected": Case((Send(whole()),), headers=("Expect: 100-continue",)),
}
_CHANGING = re.compile(
    rb"(?m)^(Date(?!: Thu, 01 Jan 1970)|X-Balancer-Request|X-Balancer-Queue-Ms): [^\r\n]*(?=\r$)"
)


async def asked(one: ScriptedInstance, case: Case, *, fast: bool) -> list[bytes]:
    """All that comes on the wire: for the request and one behind it, and for the request as the last."""
    came = []
    limits = {"body_bytes": 4096}
    breaker = {"enabled": False}
    async with balancing(one, fast_path=fast, limits=limits, circuit_breaker=breaker) as running:
        for more, behind in (((), NEXT), (("Connection: close",), b"")):
            if case.steps:
                one.play(*case.steps)
            sent = request(case.path, case.body, "X-Request-ID: run-1", *case.headers, *more)
            async with running.client() as client:
                await client.send(sent + behind)
                came.append(_CHANGING.sub(rb"\1: some", await client.rest()))
    return came


@pytest.mark.parametrize("name", CASES)
async def test_both_sinks_put_the_same_on_the_wire(name: str) -> None:
    async with ScriptedInstance().running() as one:
        plain = await asked(one, CASES[name], fast=False)
        fast = await asked(one, CASES[name], fast=True)

    assert plain == fast
    assert all(b"HTTP/1.1 %d " % CASES[name].status in each for each in fast)
