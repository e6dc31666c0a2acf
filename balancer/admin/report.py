"""The state of the balancer as JSON-ready data: what the admin API answers and `status` prints."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from balancer.accounting.ledger import Ledger
from balancer.accounting.record import RequestRecord
from balancer.admin.device_report import device_row, show_devices
from balancer.admission.body_budget import BodyBudget
from balancer.admission.queue import RequestQueue
from balancer.clock import Clock
from balancer.control.device_watch import DeviceWatch
from balancer.control.instance_health import InstanceHealth, Judgement
from balancer.control.reloader import Reloader
from balancer.core.rates import Rates
from balancer.core.ticket import InstanceId, Ticket, TicketId
from balancer.core.variant import Variant
from balancer.fleet.breaker import BreakerState
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.fleet.offload import offloads
from balancer.scheduling.prefix_index import PrefixIndex
from balancer.telemetry.metrics import Metrics
from balancer.upstream.stream_memory import StreamMemory

_LARGEST = 2**63
_LEVELS = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class Report:
    """Reads the live objects; changes none of them, apart from the gauges that mirror them. `managed` tells
    of the process of an instance that the balancer has started, and None of any other."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        queue: RequestQueue,
        waits: Callable[[], Mapping[TicketId, tuple[int, float | None]]],
        ledger: Ledger,
        reloader: Reloader,
        metrics: Metrics,
        bodies: BodyBudget,
        streams: StreamMemory,
        prefixes: PrefixIndex,
        devices: DeviceWatch,
        health: InstanceHealth,
        clock: Clock,
        stopping: Callable[[], bool],
        managed: Callable[[InstanceId], Mapping[str, object] | None] = lambda _: None,
    ) -> None:
        self._fleet = fleet
        self._queue = queue
        self._waits = waits
        self._ledger = ledger
        self._reloader = reloader
        self._metrics = metrics
        self._bodies = bodies
        self._streams = streams
        self._prefixes = prefixes
        self._devices = devices
        self._health = health
        self._clock = clock
        self._stopping = stopping
        self._managed = managed

    @property
    def ready(self) -> bool:
        """Whether at least one instance is usable, and the balancer not being stopped."""
        return bool(self._fleet.usable()) and not self._stopping()

    def instances(self) -> Sequence[Mapping[str, object]]:
        """Every instance with its health, models, runners and leases."""
        return [self._instance(each, judged) for each, judged in self._health.judge_all().items()]

    def names(self) -> list[str]:
        """The id of every instance."""
        return [each.id for each in self._fleet.instances()]

    def instance(self, instance: InstanceId) -> Mapping[str, object]:
        """One instance as in `instances`. Raises KeyError."""
        found = self._fleet.get(instance)
        return self._instance(found, self._health.judge(found))

    def devices(self) -> Sequence[Mapping[str, object]]:
        """Every device that is watched, with its newest reading."""
        now = self._clock.monotonic()
        return [device_row(each, now) for each in self._devices.devices()]

    @property
    def undetected(self) -> str | None:
        """Why it is not known which devices there are; None where it is."""
        return self._devices.undetected or None

    def config(self) -> Mapping[str, object]:
        """Which configuration is in force, since when, and what a newer one was refused for."""
        return {
            "config": self._reloader.config,
            "loaded_seconds_ago": round(self._clock.monotonic() - self._reloader.loaded_at, 3),
            "refused": [str(each) for each in self._reloader.faults],
        }

    def queue(self) -> Mapping[str, object]:
        """The requests that wait, in the order in which they came: each with its place among those that wait
        for the same model, and how long it is likely to wait yet, None where that cannot be told."""
        now, waits = self._clock.monotonic(), self._waits()
        return {
            "limit": self._queue.limit,
            "waiting": len(self._queue),
            "requests": [_waiting(ticket, *waits[ticket.id], now) for ticket in self._queue.pending()],
        }

    def requests(self) -> Mapping[str, object]:
        """Requests under way and those that ended lately, newest last and newest first."""
        now = self._clock.monotonic()
        return {
            "live": [
                {
                    **record.summary(),
                    "stage": self._stage(record),
                    "age_seconds": round(now - record.received_at, 3),
                }
                for record in self._ledger.live()
            ],
            "recent": [record.summary() for record in self._ledger.recent()],
        }

    def decisions(self, request: str) -> Sequence[Mapping[str, object]] | None:
        """Every decision made for a request, None where none is remembered."""
        return self._ledger.decisions(request)

    def summary(self) -> Mapping[str, object]:
        """Health without names."""
        usable, total = len(self._fleet.usable()), len(self._fleet.instances())
        return {
            "status": "stopping" if self._stopping() else _status(usable, total, self.undetected),
            "usable_instances": usable,
            "requests_waiting": len(self._queue),
            "requests_live": len(self._ledger.live()),
        }

    def health(self) -> Mapping[str, object]:
        """Health in full, with names."""
        return {
            **self.summary(),
            "config": self._reloader.config,
            "devices_undetected": self.undetected,
            "instances": self.instances(),
        }

    def metrics(self) -> bytes:
        """All metrics in the text format, gauges of the live state brought up to date."""
        metrics = self._metrics
        now = self._clock.monotonic()
        for gauge in metrics.mirrored:
            gauge.clear()
        show_devices(metrics, self._devices.devices(), now)
        metrics.body_memory.set(self._bodies.held_bytes)
        metrics.stream_memory.set(self._streams.held_bytes)
        metrics.prefix_index_bytes.set(self._prefixes.bytes)
        for (model, priority), waiting in self._queue.waiting_by_model().items():
            metrics.requests_waiting.labels(model, priority).set(waiting)
        for (model, priority), seconds in self._queue.backlog.by_class().items():
            metrics.waiting_work.labels(model, priority).set(seconds)
        for instance, judged in self._health.judge_all().items():
            metrics.instance_up.labels(instance.id).set(1 if instance.usable else 0)
            metrics.instance_health.labels(instance.id).set(judged.score.value)
            metrics.instance_ejected.labels(instance.id).set(0 if instance.ejection is None else 1)
            metrics.breaker_state.labels(instance.id, "").set(_LEVELS[instance.breakers.state(now)])
            for model, state in instance.breakers.states(now).items():
                metrics.breaker_state.labels(instance.id, model).set(_LEVELS[state])
            for runner in instance.inventory.runners.values() if instance.inventory else ():
                size = runner.row.get("size_vram")
                if isinstance(size, int) and abs(size) < _LARGEST:
                    metrics.model_vram.labels(instance.id, runner.model).set(size)
        return metrics.render()

    def _stage(self, record: RequestRecord) -> str:
        """How far a request under way has come. One that tries again is queued again, so the queue is
        asked first; `received` is read, or answered without a slot of any instance."""
        if TicketId(record.id) in self._queue:
            return "queued"
        if record.answered_at is not None:
            return "streaming"
        return "waiting" if record.instance else "received"

    def _instance(self, instance: Instance, judged: Judgement) -> Mapping[str, object]:
        inventory = instance.inventory
        now = self._clock.monotonic()
        age = None if inventory is None else round(now - inventory.read_at, 3)
        spared = instance.held_until - now
        on_cpu = {each.model: round(100 * each.cpu_share, 1) for each in offloads(instance)}
        return {
            "id": instance.id,
            "url": instance.spec.url,
            "runtime": instance.runtime.value,
            "state": instance.health.state.value,
            "suspect": instance.suspect,
            "health": round(judged.score.value, 3),
            "health_factors": {term.value: round(left, 3) for term, left in judged.score.factors.items()},
            "ejected": _ejected(instance, now),
            "devices": instance.spec.devices,
            "error": instance.health.last_error,
            "drained": instance.drained,
            "drained_by": sorted(instance.drained_by),
            "managed": self._managed(instance.id),
            "spared_seconds": round(spared, 3) if spared > 0 else None,
            "breaker": instance.breakers.state(now).value,
            "breakers": {model: state.value for model, state in instance.breakers.states(now).items()},
            "version": instance.version,
            "weight": instance.spec.weight,
            "incarnation": instance.incarnation,
            "running": instance.running,
            "cooling": instance.cooling,
            "loading": [str(instance.loading)] if instance.loading else [],
            "max_concurrent_requests": instance.spec.max_concurrent_requests,
            "shared": instance.learned.shared,
            "store": instance.store,
            "models": sorted(inventory.models) if inventory else [],
            "runners": [
                {
                    "model": runner.model,
                    "digest": runner.digest,
                    "generation": runner.generation,
                    "slots": instance.slots(Variant(runner.model)),
                    "slots_learned": instance.learned.slots_learned(runner.model),
                    "rates": _rates(instance.learned.rates(runner.model)),
                    "running": instance.running_of(runner.model),
                    "size": runner.row.get("size"),
                    "size_vram": runner.row.get("size_vram"),
                    "cpu_percent": on_cpu.get(runner.model),
                    "context_length": runner.row.get("context_length"),
                }
                for runner in (inventory.runners.values() if inventory else ())
            ],
            "lists_age_seconds": age,
        }


def _rates(rates: Rates | None) -> Mapping[str, object] | None:
    """What was learned of a runner; without samples of its own, what was elsewhere."""
    return None if rates is None else dataclasses.asdict(rates)


def _ejected(instance: Instance, now: float) -> Mapping[str, object] | None:
    """Why it is left alone, with the health that it had, and for how long at least."""
    ejection = instance.ejection
    if ejection is None:
        return None
    left = round(max(0.0, ejection.until - now), 3)
    return {"reason": ejection.reason, "health": round(ejection.health, 3), "seconds": left}


def _status(usable: int, total: int, undetected: str | None) -> str:
    whole = usable == total and undetected is None
    return "ok" if whole else "degraded" if usable else "unavailable"


def _waiting(ticket: Ticket, position: int, wait_seconds: float | None, now: float) -> Mapping[str, object]:
    return {
        "id": ticket.id,
        "position": position,
        "model": ticket.variant.model if ticket.variant else None,
        "class": ticket.priority.value,
        "client": ticket.client,
        "attempt": ticket.attempt,
        "waited_seconds": round(now - ticket.queued_at, 3),
        "expected_wait_seconds": None if wait_seconds is None else round(wait_seconds, 3),
        "gives_up_in_seconds": round(ticket.deadline - now, 3),
    }
