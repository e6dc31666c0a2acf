"""What `frontend.connection` takes for granted of aiohttp's inside; a version that breaks it fails here."""

import ast
import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.helpers import rfc822_formatted_time, set_exception
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from balancer.frontend import connection as ours
from tests.fakes.raw_client import RawClient, connected, request
from tests.fakes.running_balancer import until

# Attributes of a connection, with their values when it is made.
STATE: dict[str, object] = {
    "_messages": [],
    "_current_request": None,
    "_request_in_progress": False,
    "_handler_waiter": None,
    "_buffer_paused": False,
    "_reading_paused": False,
    "transport": None,
    "writing_paused": False,
    "peername": None,
}
# What is called or overridden: its parameters, in their order, and whether it is a coroutine.
CALLS: dict[str, tuple[object, list[str], bool]] = {
    "connection_made": (RequestHandler, ["self", "transport"], False),
    "connection_lost": (RequestHandler, ["self", "exc"], False),
    "data_received": (RequestHandler, ["self", "data"], False),
    "handle_error": (RequestHandler, ["self", "request", "status", "exc", "message"], False),
    "_handle_request": (RequestHandler, ["self", "request", "start_time", "request_handler"], True),
    "_drain_helper": (RequestHandler, ["self"], True),
    "start": (RequestHandler, ["self"], True),
    "_make_request": (web.Server, ["self", "message", "payload", "protocol", "writer", "task"], False),
    "pre_shutdown": (web.Server, ["self"], False),
    "shutdown": (web.Server, ["self", "timeout"], True),
    "__call__": (web.Server, ["self"], False),
    "is_eof": (StreamReader, ["self"], False),
    "at_eof": (StreamReader, ["self"], False),
    "exception": (StreamReader, ["self"], False),
    "read_nowait": (StreamReader, ["self", "n"], False),
    "readany": (StreamReader, ["self"], True),
    "_cancel": (web.BaseRequest, ["self", "exc"], False),
}
KEYWORDS: dict[Callable[..., object], set[str]] = {
    RequestHandler: {
        "loop",
        "keepalive_timeout",
        "max_line_size",
        "max_field_size",
        "max_headers",
        "auto_decompress",
        "lingering_time",
        "read_bufsize",
        "access_log",
        "logger",
    },
    web.Server: {"handler_cancellation", "request_factory"},
}
MESSAGE_FIELDS = {"method", "path", "version", "headers", "should_close", "upgrade"}
OF_SERVER = {"_loop", "connections", "request_factory", "handler_cancellation"}
OWN = {
    "_server",
    "_heads",
    "_begun",
    "_body",
    "_between_bytes",
    "_break_body",
    "_last_look",
    "_let_go",
    "_start",
    "_watch_body",
    "_limits",
    "_fast",
    "_most",
    "_message",
    "_task",
    "_request",
}


@contextlib.asynccontextmanager
async def serving(server: web.Server) -> AsyncIterator[RawClient]:
    """A client of aiohttp's own loop over requests."""
    listening = await asyncio.get_running_loop().create_server(cast("Any", server), "127.0.0.1", 0)
    try:
        async with connected(*listening.sockets[0].getsockname()[:2]) as client:
            yield client
    finally:
        listening.close()
        await server.shutdown(0.1)


class Watched:
    """Has what it is given, and remembers what it was asked for."""

    def __init__(self, **has: object) -> None:
        vars(self).update(has, asked=set())

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__") and name != "asked":
            self.asked.add(name)
        return super().__getattribute__(name)


class Bare(RequestHandler):
    """Overrides what the fast path does, and answers by hand."""

    __slots__ = ()

    async def _handle_request(
        self,
        request: Any,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        self._current_request = request
        self._request_in_progress = True
        try:
            return await request_handler(request), False
        finally:
            self._current_request = None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)


class BareServer(web.Server):
    """Of such connections; `made` are the requests, as Watched."""

    def __init__(self, handler: Callable[[Any], Awaitable[Any]]) -> None:
        super().__init__(handler, handler_cancellation=True, request_factory=cast("Any", self._watched))
        self.made: list[Watched] = []
        self.protocols: list[RequestHandler] = []
        self.left: list[BaseException] = []

    def _watched(
        self, message: RawRequestMessage, payload: StreamReader, protocol: RequestHandler, *_rest: object
    ) -> Watched:
        self.made.append(Watched(message=message, payload=payload, _cancel=self.left.append, _task=None))
        self.protocols.append(protocol)
        return self.made[-1]

    def __call__(self) -> RequestHandler:
        return Bare(self, loop=self._loop)


def written(server: BareServer, text: bytes) -> None:
    transport = server.protocols[-1].transport
    assert transport is not None
    transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))


def test_all_that_is_touched_stands_in_the_tables() -> None:
    """Or a table that is not kept up would promise more than it holds."""
    tree = ast.parse(inspect.getsource(ours))
    names = {each.attr for each in ast.walk(tree) if isinstance(each, ast.Attribute)}
    private = {name for name in names if name.startswith("_") and not name.startswith("__")}

    assert private - OWN <= STATE.keys() | CALLS.keys() | OF_SERVER


@pytest.mark.parametrize("name", CALLS)
def test_what_is_called_has_its_parameters(name: str) -> None:
    of, parameters, waits = CALLS[name]
    found = getattr(of, name)

    assert parameters == list(inspect.signature(found).parameters)
    assert inspect.iscoroutinefunction(found) is waits


@pytest.mark.parametrize("of", KEYWORDS)
def test_what_is_made_takes_its_keywords(of: Callable[..., object]) -> None:
    assert KEYWORDS[of] <= inspect.signature(of).parameters.keys()


async def test_a_connection_is_made_in_its_state() -> None:
    server = web.Server(cast("Any", None))
    made = RequestHandler(server, loop=asyncio.get_running_loop())

    state = {name: getattr(made, name) for name in STATE}
    assert {**state, "_messages": list(made._messages)} == STATE
    assert all(hasattr(server, name) for name in OF_SERVER)
    assert server.request_factory == server._make_request


def test_messages_payloads_and_errors_are_as_they_are_read() -> None:
    assert all(hasattr(RawRequestMessage, name) for name in MESSAGE_FIELDS)
    assert EMPTY_PAYLOAD.is_eof()
    assert EMPTY_PAYLOAD.exception() is None
    assert EMPTY_PAYLOAD.read_nowait() == b""
    assert issubclass(LineTooLong, BadHttpMessage)
    assert LineTooLong(b"/path", 1).args[0] == b"/path"
    assert rfc822_formatted_time().endswith(" GMT")


async def test_a_payload_tells_its_end_its_error_and_all_that_is_in() -> None:
    loop = asyncio.get_running_loop()
    payload = StreamReader(BaseProtocol(loop), 1 << 16, loop=loop)
    payload.feed_data(b"one ")
    payload.feed_data(b"two")
    assert not payload.is_eof()
    payload.feed_eof()
    assert (payload.is_eof(), payload.exception()) == (True, None)
    assert payload.read_nowait() == b"one two"

    broken = StreamReader(BaseProtocol(loop), 1 << 16, loop=loop)
    set_exception(broken, ConnectionResetError("gone"))
    assert isinstance(broken.exception(), ConnectionResetError)
    with pytest.raises(ConnectionResetError):
        await broken.readany()


async def test_a_connection_waits_for_a_paused_writer_and_not_after_its_loss() -> None:
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    with pytest.raises(ConnectionError):
        await protocol._drain_helper()

    protocol.transport = asyncio.Transport()
    await protocol._drain_helper()
    protocol.pause_writing()
    assert protocol.writing_paused
    waiting = loop.create_task(protocol._drain_helper())
    await asyncio.sleep(0)
    assert not waiting.done()
    protocol.resume_writing()
    await waiting

    protocol.pause_writing()
    waiting = loop.create_task(protocol._drain_helper())
    await asyncio.sleep(0)
    protocol.connection_lost(ConnectionResetError("gone"))
    with pytest.raises(ConnectionError):
        await waiting


async def test_the_loop_over_requests_asks_an_answer_for_keep_alive_alone() -> None:
    """And a request for nothing, where what handles it is overridden."""
    answers = [Watched(keep_alive=True), Watched(keep_alive=False)]

    async def handle(_request: Watched) -> Watched:
        written(server, b"%d" % len(server.made))
        return answers[len(server.made) - 1]

    server = BareServer(handle)
    async with serving(server) as client:
        for number in (b"1", b"2"):
            await client.send(request("/", b"body"))
            assert (await client.answer()).body == number
        assert await client.rest() == b""

    assert [each.asked for each in answers] == [{"keep_alive"}] * 2
    assert [each.asked for each in server.made] == [set()] * 2
    assert len({id(each) for each in server.protocols}) == 1


async def test_the_loss_of_a_connection_is_told_to_its_request_and_cancels_the_handler() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handle(_request: Watched) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    server = BareServer(handle)
    async with serving(server) as client:
        await client.send(request("/", b"body"))
        await asyncio.wait_for(begun.wait(), 20)
        client.reset()
        await asyncio.wait_for(ended.wait(), 20)

    assert [isinstance(each, ConnectionError) for each in server.left] == [True]


async def test_an_error_of_the_handler_closes_the_connection() -> None:
    async def handle(_request: Watched) -> None:
        raise ValueError

    server = BareServer(handle)
    async with serving(server) as client:
        await client.send(request("/", b"body"))
        assert await client.rest() == b""


async def test_a_stop_waits_for_the_handler_that_says_that_it_is_done() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handle(_request: Watched) -> Watched:
        begun.set()
        await go_on.wait()
        written(server, b"late")
        return Watched(keep_alive=True)

    server = BareServer(handle)
    async with serving(server) as client:
        await client.send(request("/", b"body"))
        await asyncio.wait_for(begun.wait(), 20)
        stopping = asyncio.create_task(server.shutdown(20))
        await until(lambda: server.protocols[0]._handler_waiter is not None)
        go_on.set()

        assert (await client.answer()).body == b"late"
        await asyncio.wait_for(stopping, 20)


async def test_reading_on_comes_as_data_of_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which must not be taken for the begin of a head."""
    came: list[bytes] = []
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    monkeypatch.setattr(BaseProtocol, "data_received", lambda _self, data: came.append(data), raising=False)

    protocol.resume_reading()

    assert came == [b""]
