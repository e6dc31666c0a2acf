"""Requests that change models, sent to one instance of every model store.

Instances with one store see each other's changes, and two that pull into it at once damage it, so
one of them does the work. Separate stores all do it, and the client gets one merged answer. With a
single store the answer passes byte for byte.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import msgspec

from balancer.clock import Clock
from balancer.core.names import ModelName
from balancer.core.operation import Operation
from balancer.errors import FleetError, InstanceError, NoInstance, Stopping, UnknownModel
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.forwarding.downstream import BodySource, Sink, send_whole
from balancer.forwarding.relay import Relayed, relay
from balancer.forwarding.tee import Tee
from balancer.protocol.errors import error_body
from balancer.protocol.headers import Headers
from balancer.protocol.progress import ProgressMerge, describe_failures
from balancer.upstream.client import UpstreamClient, UpstreamRequest
from balancer.upstream.exchange import Exchange, ResponseHead

_ANSWER_LIMIT_BYTES = 1 << 20
_NDJSON: Headers = (("Content-Type", "application/x-ndjson"),)
_JSON: Headers = (("Content-Type", "application/json; charset=utf-8"),)
_UNLOAD_SECONDS = 10.0
_REFRESH_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRequest:
    """What to do on every store; `body` is bytes, or an upload that can be read once."""

    operation: Operation
    method: str
    headers: Headers
    body: bytes | BodySource
    own_headers: Headers
    request_id: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one store answered: an exchange under way, or the reason why there is none."""

    instance: Instance
    exchange: Exchange | None = None
    head: ResponseHead | None = None
    error: str | None = None


class Stores:
    """`refresh` brings the fleet's lists up to date (older than, wait at most); `changed` is told of
    every change, after which no list read before is fresh."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        client: UpstreamClient,
        clock: Clock,
        refresh: Callable[[float, float], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        self._fleet = fleet
        self._client = client
        self._clock = clock
        self._refresh = refresh
        self._changed = changed

    async def serve(self, request: StoreRequest, sink: Sink) -> Relayed:
        """Do it on every store that it concerns.

        Raises:
            NoInstance: none is usable.
            UnknownModel: no store has the model that is to be deleted or copied.
            InstanceError: there is one store only, and its instance failed before it answered.
        """
        instances = await self._find(request.operation)
        if request.operation.upstream_path == "/api/delete":
            await self._unload(request.operation)
        try:
            if len(instances) == 1:
                return await self._pass(instances[0], request, sink)
            return await self._spread(instances, request, sink)
        finally:
            if request.operation.variant is not None:  # a blob is no model yet
                self._changed()

    async def _find(self, operation: Operation) -> Sequence[Instance]:
        """The instances that it concerns; a model that none seems to have is looked for once more."""
        try:
            return self._concerned(operation)
        except UnknownModel:
            await self._refresh(_REFRESH_SECONDS, _REFRESH_SECONDS)
        return self._concerned(operation)

    def _concerned(self, operation: Operation) -> Sequence[Instance]:
        """One usable instance of each store, one that is not drained where there is one."""
        by_store: dict[str, Instance] = {}
        model = operation.variant.model if operation.variant else None
        needs_model = operation.upstream_path in {"/api/delete", "/api/copy"}
        ollamas = [each for each in self._fleet.usable() if each.is_ollama]
        for instance in sorted(ollamas, key=lambda each: each.drained):
            if model is None or not needs_model or instance.holds(model):
                by_store.setdefault(instance.store, instance)
        if not by_store and needs_model and model is not None and ollamas:
            raise UnknownModel(operation.model or model, there_are=self._fleet.models())
        if not by_store:
            raise NoInstance("no instance that keeps models is usable now", retry_after_seconds=1.0)
        return tuple(by_store.values())

    async def _unload(self, operation: Operation) -> None:
        """A deleted model that is still resident cannot be unloaded any more, so that comes first.
        Source: observed on Ollama v0.33."""
        assert operation.variant is not None
        body = msgspec.json.encode({"model": operation.model, "keep_alive": 0})
        request = UpstreamRequest(method="POST", target="/api/generate", headers=_JSON, body=body)
        await self.tell_residents(operation.variant.model, request)

    async def tell_residents(self, model: ModelName, request: UpstreamRequest) -> None:
        """Send a small request to every instance where a model is resident now, whatever it answers."""
        await self._refresh(0.0, _REFRESH_SECONDS)
        resident = [each for each in self._fleet.usable() if each.is_ollama and each.resident(model)]
        await asyncio.gather(*(self._quietly(each, request) for each in resident))
        for instance in resident:
            self._fleet.unloaded(instance, model)
        self._changed()

    async def _quietly(self, instance: Instance, request: UpstreamRequest) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_UNLOAD_SECONDS):
                answer = await self._ask(instance, request)
                if answer.exchange is not None:
                    try:
                        await _read(answer.exchange)
                    finally:
                        answer.exchange.cancel()

    async def _pass(self, instance: Instance, request: StoreRequest, sink: Sink) -> Relayed:
        body = request.body if isinstance(request.body, bytes) else request.body.pieces()
        length = None if isinstance(request.body, bytes) else request.body.length
        upstream = _upstream(request, body, length)
        exchange = await self._client.exchange(instance.spec.url, upstream)
        try:
            return await relay(
                exchange,
                await exchange.response(),
                sink,
                operation=request.operation,
                own_headers=request.own_headers,
                request_id=request.request_id,
                now=self._clock.monotonic,
            )
        finally:
            exchange.cancel()

    async def _spread(self, instances: Sequence[Instance], request: StoreRequest, sink: Sink) -> Relayed:
        answers = await self._ask_all(instances, request)
        try:
            accepted = [each for each in answers if each.head is not None and each.head.status < 300]
            if request.operation.stream and accepted:
                return await _merge_streams(answers, request, sink)
            return await _merge_answers(answers, request, sink)
        finally:
            for each in answers:
                if each.exchange is not None:
                    each.exchange.cancel()

    async def _ask_all(self, instances: Sequence[Instance], request: StoreRequest) -> Sequence[_Answer]:
        if isinstance(request.body, bytes):
            upstream = _upstream(request, request.body, None)
            return await asyncio.gather(*(self._ask(each, upstream) for each in instances))
        tee = Tee(request.body.pieces(), len(instances))

        async def upload(index: int, instance: Instance) -> _Answer:
            assert not isinstance(request.body, bytes)
            try:
                return await self._ask(instance, _upstream(request, tee.branch(index), request.body.length))
            finally:
                tee.close(index)

        async with _tasks() as group:
            uploads = [group.create_task(upload(*item)) for item in enumerate(instances)]
            group.create_task(tee.run())
        return [each.result() for each in uploads]

    async def _ask(self, instance: Instance, request: UpstreamRequest) -> _Answer:
        """What one instance answers; that it does not, or that we cannot ask it, is an answer too."""
        try:
            exchange = await self._client.exchange(instance.spec.url, request)
            return _Answer(instance, exchange, await exchange.response())
        except (InstanceError, FleetError) as error:
            return _Answer(instance, error=str(error))


@asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A group of tasks whose first failure comes out by itself: what is told of it goes by its class."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures


def _upstream(
    request: StoreRequest, body: bytes | AsyncIterator[bytes], length: int | None
) -> UpstreamRequest:
    return UpstreamRequest(
        method=request.method,
        target=request.operation.upstream_path,
        headers=request.headers,
        body=body,
        length=length,
    )


async def _merge_answers(answers: Sequence[_Answer], request: StoreRequest, sink: Sink) -> Relayed:
    """One answer for all: the first of those that succeeded, where all did."""
    failures: dict[str, str] = {}
    status, success = 502, b""
    best: ResponseHead | None = None
    for each in answers:
        if each.exchange is None or each.head is None:
            failures[each.instance.id] = each.error or "no answer"
            continue
        body = b"" if request.method == "HEAD" else await _read(each.exchange)
        if each.head.status < 300:
            if best is None or each.head.status > best.status:
                best, success = each.head, body
        else:
            status = each.head.status
            failures[each.instance.id] = _error_text(body) or f"answered {status}"
    if failures or best is None:
        message = describe_failures(failures, len(answers))
        told = error_body(request.operation.dialect, status, message, request.request_id)
        await send_whole(sink, status, _JSON + request.own_headers, told, method=request.method)
        return Relayed("failed", status, len(told))
    content_type = tuple((name, value) for name, value in best.headers if name.casefold() == "content-type")
    await send_whole(sink, best.status, content_type + request.own_headers, success, method=request.method)
    return Relayed("ok", best.status, len(success))


async def _merge_streams(answers: Sequence[_Answer], request: StoreRequest, sink: Sink) -> Relayed:
    merge = ProgressMerge(tuple(each.instance.id for each in answers))
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()
    await sink.start(200, _NDJSON + request.own_headers, content_length=None)
    count = 0
    async with _tasks() as group:
        pumps = [group.create_task(_pump(index, each, merge, lines)) for index, each in enumerate(answers)]
        open_pumps = len(pumps)
        while open_pumps:
            line = await lines.get()
            if line is None:
                open_pumps -= 1
            else:
                count += len(line)
                await sink.write(line)
    whole = merge.last()
    await sink.write(msgspec.json.encode(whole) + b"\n")
    await sink.finish()
    return Relayed("ok" if merge.whole else "error_record", 200, count)


async def _pump(
    index: int, answer: _Answer, merge: ProgressMerge, lines: asyncio.Queue[bytes | None]
) -> None:
    """Feed one store's records into the merge, and the merged ones into `lines`; None at its end."""
    try:
        if answer.exchange is None or answer.head is None:
            merge.fail(index, answer.error or "no answer")
            return
        if answer.head.status >= 300:
            merge.fail(index, _error_text(await _read(answer.exchange)) or f"answered {answer.head.status}")
            return
        rest = b""
        while (chunk := await answer.exchange.next_chunk()) is not None:
            *complete, rest = (rest + chunk).split(b"\n")
            for line in complete:
                merged = merge.feed(index, _record(line)) if line.strip() else None
                if merged is not None:
                    await lines.put(msgspec.json.encode(merged) + b"\n")
    except (InstanceError, Stopping) as error:
        merge.fail(index, str(error))
    finally:
        lines.put_nowait(None)


async def _read(exchange: Exchange) -> bytes:
    """The rest of a small answer; what came of it where it failed."""
    body = bytearray()
    try:
        while len(body) < _ANSWER_LIMIT_BYTES and (chunk := await exchange.next_chunk()) is not None:
            body += chunk
    except (InstanceError, Stopping):
        return bytes(body)
    return bytes(body)


def _record(line: bytes) -> Mapping[str, object]:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {"error": "sent a line that is not JSON"}
    return value if isinstance(value, dict) else {}


def _error_text(body: bytes) -> str:
    return str(_record(body).get("error", "")) if body else ""
