"""The loader: brings a variant into an instance's memory, in a request of the balancer's own.

Ollama aborts a load when its requester leaves, and the next request begins it anew. So no client's
request carries a load: those that wait for it stay in the queue, where they can leave, be re-ordered
or go elsewhere. One load per instance at a time, for Ollama does them one after the other too.

A load can wait for ever while requests for another model overlap there, as only a moment without any
lets Ollama unload it. So when a load takes much longer than it should, the others are gated: they get
no new slots there until the load is over or the gate's time is up.
Source: observed on Ollama v0.33 (disconnects during loads, starvation, what loads without a prompt).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from balancer.clock import Clock
from balancer.control.room import NoRoom, Room
from balancer.core.ticket import Blame, InstanceId, Outcome, Verdict
from balancer.core.variant import Variant
from balancer.errors import BalancerError, ConnectFailed, FleetError
from balancer.fleet.device_ledger import DeviceLedger, Promise
from balancer.fleet.fleet import Fleet, Load
from balancer.fleet.instance import Instance
from balancer.fleet.residency import EVICTION_SECONDS
from balancer.protocol.failures import LOAD_FAILED, OUT_OF_MEMORY, REQUEST, STATUS, classify, error_message
from balancer.protocol.headers import Headers
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics
from balancer.upstream.client import UpstreamRequest

_HEADERS: Headers = (
    ("User-Agent", "ollama-balancer"),
    ("Content-Type", "application/json"),
    ("Accept", "application/json"),
)
_ANSWER_BYTES = 65536
_ANSWER_SECONDS = 5.0
_READ_SECONDS = 2.0
_SILENCE_SECONDS = 2.0
"""A load that takes longer is no sign of trouble, but the instance is probed once more than planned."""
_LONGEST_SECONDS = 900.0
"""Longer than Ollama's own bound of a load that makes no progress (OLLAMA_LOAD_TIMEOUT, 5 min)."""
_SLOWEST_BYTES_PER_SECOND = 200e6
"""What a load from a slow disk still reaches; with it a model's size bounds how long it should take."""
_SLOWER = 2.0
"""So much longer than the fastest one of the same variant there a load may take."""
_LEARNED_LIMIT = 1000
_GATE_AFTER_SECONDS = 2.0
_GATE_AFTER_LONGEST_SECONDS = 60.0
_GATE_SECONDS = 60.0


class Asks(Protocol):
    """What of the upstream client a load needs."""

    async def ask(
        self, url: str, request: UpstreamRequest, *, limit_bytes: int, within_seconds: float
    ) -> tuple[int, bytes]: ...


class Loader:
    """`look` asks for a probe of an instance and its lists soon, `read` reads its lists now and waits at
    most so long. `gate_after_seconds` is the least time that a load gets before other models are held
    back for it."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        client: Asks,
        ledger: DeviceLedger,
        room: Room,
        look: Callable[[InstanceId], None],
        read: Callable[[Instance, float], Awaitable[None]],
        metrics: Metrics,
        clock: Clock,
        log: Logger,
        gate_after_seconds: float = _GATE_AFTER_SECONDS,
    ) -> None:
        self._fleet = fleet
        self._client = client
        self._ledger = ledger
        self._room = room
        self._look = look
        self._read = read
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._gate_after_seconds = gate_after_seconds
        self._fastest: dict[tuple[InstanceId, Variant], float] = {}
        self._tasks: dict[Instance, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        fleet.listen(on_members=self._abort_removed)

    async def run(self) -> None:
        """Load what is asked for until cancelled, which aborts what is under way."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None  # what ends by this may ask for the next load

    def begin(self, instance: Instance, variant: Variant) -> bool:
        """Begin a load where nothing is being loaded; the fleet tells of its end. False where there is no
        room for it, which the instance remembers."""
        if self._group is None:
            return True
        if not self._room.possible(instance, variant):
            self._fleet.no_room(instance, variant, among=self._room.sharers(instance))
            return False
        patience = self._patience_seconds(instance, variant)
        load = self._fleet.load_began(instance, variant, patience_seconds=patience)
        self._metrics.model_loads.labels(instance.id, variant.model, "request").inc()
        task = self._group.create_task(self._guarded(instance, load))
        self._tasks[instance] = task
        task.add_done_callback(lambda done: self._forget(instance, done))
        return True

    async def _guarded(self, instance: Instance, load: Load) -> None:
        """One load and what it means. A defect met in it must not end the balancer."""
        outcome = Outcome(verdict=Verdict.NEUTRAL, kind="aborted")
        promise: Promise | None = None
        gate = asyncio.get_running_loop().call_later(
            self._patience_seconds(instance, load.variant), self._gate, instance, load
        )
        looks = [
            asyncio.get_running_loop().call_later(after, self._look, instance.id)
            for after in (EVICTION_SECONDS, _SILENCE_SECONDS)
        ]
        try:
            async with asyncio.timeout(_LONGEST_SECONDS):
                promise = await self._room.promise(instance, load.variant)
                outcome = await self._load(instance, load.variant)
            # What Ollama unloaded for it, and whether the model is still there, is in its lists.
            self._fleet.loaded(instance, load, outcome)
            await self._read(instance, _READ_SECONDS)
        except NoRoom:
            self._fleet.no_room(instance, load.variant, among=self._room.sharers(instance))
            outcome = Outcome(verdict=Verdict.NEUTRAL, kind="no_room", error="its device has no memory left")
        except TimeoutError:
            late = f"it was not loaded in {_LONGEST_SECONDS:g} s"
            outcome = Outcome(verdict=Verdict.NEUTRAL, kind="timeout", error=late)
        except BalancerError as error:
            outcome = self._failed(instance, load, error)
        except Exception as error:  # noqa: BLE001 - a boundary of tasks, see above
            outcome = LOAD_FAILED.outcome("internal error")
            self._log.error("load_defect", instance=instance.id, exc_info=error)
        finally:
            gate.cancel()
            for look in looks:
                look.cancel()
            if promise is not None:
                self._ledger.settle(promise)
            self._ended(instance, load, outcome)

    async def _load(self, instance: Instance, variant: Variant) -> Outcome:
        """Ask for it, first as a model that generates, then as one that embeds."""
        status, body = await self._ask(instance, "/api/generate", _load_body(instance, variant))
        if status == 400:
            status, body = await self._ask(instance, "/api/embed", _load_body(instance, variant, input=[]))
        if status < 300:
            return Outcome(verdict=Verdict.SUCCESS, kind="ok")
        message = error_message(body)
        told = classify(status, message, has_model=True)
        if told is STATUS:
            return LOAD_FAILED.outcome(message)
        # Where it is the request's fault, those that wait are let through to be told themselves.
        return told.outcome(message) if told is not None else REQUEST.outcome(message)

    async def _ask(self, instance: Instance, path: str, body: bytes) -> tuple[int, bytes]:
        request = UpstreamRequest(method="POST", target=path, headers=_HEADERS, body=body)
        return await self._client.ask(
            instance.spec.url, request, limit_bytes=_ANSWER_BYTES, within_seconds=_ANSWER_SECONDS
        )

    def _failed(self, instance: Instance, load: Load, error: BalancerError) -> Outcome:
        if isinstance(error, FleetError):  # stopping, or no files are left to open: it is ours
            return Outcome(verdict=Verdict.NEUTRAL, kind=error.kind, error=str(error))
        if isinstance(error, ConnectFailed) and error.refused:
            self._fleet.failed(instance, str(error), refused=True, incarnation=load.incarnation)
        self._look(instance.id)
        return Outcome(verdict=Verdict.FAILURE, kind=error.kind, error=str(error), blames=Blame.INSTANCE)

    def _ended(self, instance: Instance, load: Load, outcome: Outcome) -> None:
        seconds = self._clock.monotonic() - load.began_at
        model = load.variant.model
        if outcome.verdict is Verdict.SUCCESS:
            self._metrics.model_load_duration.labels(model).observe(seconds)
            self._learn(instance, load.variant, seconds)
            self._room.loaded(instance, load.variant)
        elif outcome.verdict is Verdict.FAILURE:
            self._metrics.errors.labels(instance.id, model, outcome.kind).inc()
        if outcome.kind == OUT_OF_MEMORY.kind:
            self._room.out_of_memory(instance)
        self._log.info(
            "load_ended",
            instance=instance.id,
            variant=str(load.variant),
            seconds=round(seconds, 3),
            outcome=outcome.kind,
            error=outcome.error or None,
        )
        self._fleet.load_ended(instance, load, outcome)

    def _patience_seconds(self, instance: Instance, variant: Variant) -> float:
        """How long a load may take before it looks as if others keep it from beginning: by how long the
        fastest one took there, or by the model's size."""
        fastest = self._fastest.get((instance.id, variant))
        expected = instance.size_bytes(variant.model) / _SLOWEST_BYTES_PER_SECOND
        if fastest is not None:
            expected = min(expected, _SLOWER * fastest)
        return min(max(self._gate_after_seconds, expected), _GATE_AFTER_LONGEST_SECONDS)

    def _learn(self, instance: Instance, variant: Variant, seconds: float) -> None:
        known = self._fastest.pop((instance.id, variant), seconds)
        self._fastest[instance.id, variant] = min(known, seconds)
        if len(self._fastest) > _LEARNED_LIMIT:
            del self._fastest[next(iter(self._fastest))]

    def _gate(self, instance: Instance, load: Load) -> None:
        if instance.running and instance.loading == load.variant:
            self._log.info("gated_for_load", instance=instance.id, variant=str(load.variant))
            self._fleet.gate(instance, load.variant, for_seconds=_GATE_SECONDS)

    def _abort_removed(self) -> None:
        """A load at an instance that is no more of the fleet is for nobody."""
        present = set(self._fleet.instances())
        for instance, task in self._tasks.items():
            if instance not in present:
                task.cancel()

    def _forget(self, instance: Instance, done: asyncio.Task[None]) -> None:
        if self._tasks.get(instance) is done:
            del self._tasks[instance]


def _load_body(instance: Instance, variant: Variant, **more: object) -> bytes:
    """A request without a prompt, with the options that the runner depends on and no others. It sets
    no keep_alive, so that the instance's own holds until a client asks for another."""
    row = instance.inventory.models.get(variant.model) if instance.inventory else None
    options = {name: value for name, value in variant.options if name != "shift"}
    shift = {name: value for name, value in variant.options if name == "shift"}
    name = row["name"] if row is not None else variant.model
    return msgspec.json.encode({"model": name, "stream": False, "options": options, **shift, **more})
