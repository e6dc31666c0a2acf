"""The device ledger: bytes promised on each device, ours to keep, since separate Ollama processes on
one device cannot see each other's memory.

An instance that was planned has a share of its devices. A share is a reservation that idle siblings lend:
what a busy sibling has not used of its own is kept for it, all else is free. Instances that nobody
planned have devices that nobody here knows, so whatever they load is granted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from balancer.core.ticket import InstanceId

RUNNER_BYTES = 512 << 20
"""What a runner takes of a GPU beside what it reports (its CUDA context). Source: measured by users of
llama.cpp, some 0.3 to 0.5 GiB."""
_SHRINK = 0.8
_LEAST = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The devices of an instance and the bytes reserved for it on each."""

    devices: tuple[str, ...]
    bytes_each: int


@dataclass(frozen=True, slots=True)
class Holding:
    """What an instance holds now, over all its devices; `busy` ones lend nothing of their share."""

    instance: InstanceId
    used_bytes: int
    busy: bool


@dataclass(frozen=True, slots=True)
class Promise:
    """Memory promised to a load, by device; to be settled exactly once."""

    id: int
    instance: InstanceId
    bytes_by_device: tuple[tuple[str, int], ...]


class DeviceLedger:
    """Promises that have not become memory in use yet, against what devices have."""

    def __init__(self) -> None:
        self._capacities: Mapping[str, int] = {}
        self._shares: Mapping[InstanceId, Share] = {}
        self._limits: dict[InstanceId, int] = {}
        self._out: dict[int, Promise] = {}
        self._ids = count(1)

    def use(self, capacities: Mapping[str, int], shares: Mapping[InstanceId, Share]) -> None:
        """From now on these devices, by their bytes, and these shares of them."""
        self._capacities, self._shares = capacities, shares
        self._limits = {each: limit for each, limit in self._limits.items() if each in shares}

    def siblings(self, instance: InstanceId) -> frozenset[InstanceId]:
        """Those that share a device with it."""
        own = self._shares.get(instance)
        if own is None:
            return frozenset()
        return frozenset(
            name
            for name, each in self._shares.items()
            if name != instance and not set(own.devices).isdisjoint(each.devices)
        )

    def share(self, instance: InstanceId) -> Share | None:
        """What is reserved for it; None for one that nobody planned."""
        return self._shares.get(instance)

    def promise(
        self, instance: InstanceId, need_bytes: int, holdings: Sequence[Holding] = ()
    ) -> Promise | None:
        """Promise memory, an equal part on each of its devices; None where one has not so much left.
        `holdings` are those of all planned instances."""
        if not self.has_room(instance, need_bytes, holdings):
            return None
        return self._keep(instance, self._parts(instance, need_bytes))

    def promise_whole(self, instance: InstanceId) -> Promise | None:
        """Promise all that its devices have; None where something is promised of one already."""
        if not self.unpromised(instance):
            return None
        whole = tuple((each, self._capacities.get(each, 0)) for each in self._devices(instance))
        return self._keep(instance, whole)

    def unpromised(self, instance: InstanceId) -> bool:
        """Whether nothing is promised of its devices."""
        return not any(self.promised_bytes(each) for each in self._devices(instance))

    def has_room(self, instance: InstanceId, need_bytes: int, holdings: Sequence[Holding] = ()) -> bool:
        """Whether so much could be promised."""
        parts = self._parts(instance, need_bytes)
        return all(part <= self.room_bytes(instance, each, holdings) for each, part in parts)

    def _keep(self, instance: InstanceId, parts: tuple[tuple[str, int], ...]) -> Promise:
        promise = Promise(next(self._ids), instance, parts)
        self._out[promise.id] = promise
        return promise

    def _parts(self, instance: InstanceId, need_bytes: int) -> tuple[tuple[str, int], ...]:
        """An equal part on each of its devices."""
        devices = self._devices(instance)
        return tuple((each, -(-need_bytes // len(devices))) for each in devices)

    def _devices(self, instance: InstanceId) -> tuple[str, ...]:
        share = self._shares.get(instance)
        return share.devices if share is not None else ()

    def room_bytes(self, instance: InstanceId, device: str, holdings: Iterable[Holding]) -> int:
        """What an instance may still take of a device."""
        room = self._capacities.get(device, 0) - self.promised_bytes(device)
        own = 0
        for each in holdings:
            share = self._shares.get(each.instance)
            if share is None or device not in share.devices:
                continue
            used = -(-each.used_bytes // len(share.devices))
            room -= used
            held = used + self.promised_bytes(device, to=each.instance)
            if each.instance == instance:
                own = held
            elif each.busy:
                room -= max(0, share.bytes_each - held)
        limit = self._limits.get(instance)
        return room if limit is None else min(room, limit - own)

    def settle(self, promise: Promise) -> None:
        """The load has its memory, or is over. Raises KeyError for one that was settled before."""
        del self._out[promise.id]

    def promised_bytes(self, device: str, *, to: InstanceId | None = None) -> int:
        """All that is promised there, or to one instance."""
        return sum(
            size
            for each in self._out.values()
            if to is None or each.instance == to
            for name, size in each.bytes_by_device
            if name == device
        )

    def shrink(self, instance: InstanceId) -> int | None:
        """It met the end of its devices' memory, so it may take less of each from now on: that many bytes;
        None for one that nobody planned."""
        share = self._shares.get(instance)
        if share is None:
            return None
        whole = min(self._capacities.get(each, 0) for each in share.devices)
        before = self._limits.get(instance, whole)
        self._limits[instance] = max(int(before * _SHRINK), int(whole * _LEAST))
        return self._limits[instance]

    def grow(self, instance: InstanceId) -> None:
        """A load there went well: it may take more again, step by step."""
        share, limit = self._shares.get(instance), self._limits.get(instance)
        if share is not None and limit is not None:
            whole = min(self._capacities.get(each, 0) for each in share.devices)
            self._limits[instance] = int(limit / _SHRINK)
            if self._limits[instance] >= whole:
                del self._limits[instance]
