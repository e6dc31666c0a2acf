"""The prober: whether each instance answers, which models it has and which it has loaded.

Liveness is `/api/version` alone: it never loads a model and answers while one loads. `/api/tags` and
`/api/ps` have deadlines of their own, and a slow one is never 'down'. Runtimes of another make are asked
in their own words (see `runtime_facts`). Sole writer of probe health, inventories and learned slots.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from balancer.clock import Clock
from balancer.control.runtime_facts import HEALTH_PATH, VLLM_SLOTS, read_facts
from balancer.core.names import ModelName
from balancer.core.plan import Runtime
from balancer.core.ticket import InstanceId
from balancer.errors import ConnectFailed, ConnectionLost, InstanceError
from balancer.fleet.fleet import Fleet
from balancer.fleet.health import HealthState
from balancer.fleet.instance import Instance
from balancer.fleet.residency import Inventory, Row
from balancer.provisioning.local import LocalOllama
from balancer.telemetry.logs import Logger
from balancer.upstream.control_client import ControlClient

_DOWN_SECONDS = 1.0
_LOOK_SECONDS = 0.25
"""At least so long between two probes of one instance that were asked for, however many ask."""
_CHANGED_SECONDS = 1.0
"""Lists that are asked for after a change are to tell of it, so they may take so long once."""
_VERSION = re.compile(r"[!-~]{1,64}")
_BLOB = re.compile(r"^FROM .*sha256-([0-9a-f]{64})", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTimes:
    """How often to probe an instance that is up, and how long to wait for an answer, seconds."""

    interval_seconds: float
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class _Renewal:
    task: asyncio.Task[None]
    began_at: float


class Prober:
    """One loop an instance. `times` may be replaced at any time. `find_local` looks for an Ollama
    process behind a loopback port; it may block and is called in a thread."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        client: ControlClient,
        times: ProbeTimes,
        clock: Clock,
        log: Logger,
        find_local: Callable[[Instance], LocalOllama | None],
    ) -> None:
        self._fleet = fleet
        self._client = client
        self.times = times
        self._clock = clock
        self._log = log
        self._find_local = find_local
        self._renewing: dict[InstanceId, _Renewal] = {}
        self._nudges: dict[InstanceId, asyncio.Event] = {}
        self._blobs: dict[str, str] = {}
        self._changed_at = float("-inf")
        self._looked_at: dict[InstanceId, float] = {}
        self._warned: set[InstanceId] = set()
        self._seen_locally: set[InstanceId] = set()
        self._group: asyncio.TaskGroup | None = None
        self._watching: dict[Instance, asyncio.Task[None]] = {}
        self._unprobed = {each.id for each in fleet.instances()}
        self.probed = asyncio.Event()
        """Set once every instance was probed, whatever came of it."""

    async def run(self) -> None:
        """Probe until cancelled."""
        self._fleet.listen(on_members=self._watch_members)
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._watch_members()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    async def run_once(self, instance: Instance) -> None:
        """One probe of one instance."""
        incarnation = instance.incarnation
        path = "/api/version" if instance.is_ollama else HEALTH_PATH
        try:
            answer = await self._client.get(
                instance.spec.url, path, timeout_seconds=self.times.timeout_seconds
            )
        except InstanceError as error:
            self._fleet.failed(instance, str(error), refused=_refused(error), incarnation=incarnation)
            return
        if not instance.usable:
            # Its lists first: a request must not be sent there for a model that it does not have.
            await self._read_lists(instance)
        version = _version(answer.get("version") if instance.is_ollama else instance.version)
        if self._fleet.probe_succeeded(instance, version=version, incarnation=incarnation):
            self._log.info("instance_up", instance=instance.id, version=instance.version)
            self._warn_of_slots(instance)
        elif self._age(instance) >= self.times.interval_seconds / 2:
            self._renew(instance, self._clock.monotonic())

    async def refresh(self, older_than_seconds: float, wait_seconds: float) -> None:
        """Read anew the lists of usable instances that are older than so many seconds, and wait for
        at most so many, or a little longer where models were changed through us since; what comes
        later is taken over when it comes."""
        stale = [each for each in self._fleet.usable() if self._age(each) >= older_than_seconds]
        if any(each.inventory and each.inventory.read_at <= self._changed_at for each in stale):
            wait_seconds = max(wait_seconds, _CHANGED_SECONDS)
        now = self._clock.monotonic()
        for instance in stale:
            self._renew(instance, now)
        # Who did not answer the last one that waited will not answer this one sooner.
        renewing = [
            renewal.task
            for each in stale
            if (renewal := self._renewing.get(each.id)) and now - renewal.began_at < wait_seconds
        ]
        if renewing:
            await asyncio.wait(renewing, timeout=wait_seconds)

    async def read(self, instance: Instance, wait_seconds: float) -> None:
        """Read the lists of one instance now, and wait for that at most so long."""
        now = self._looked_at[instance.id] = self._clock.monotonic()
        self._renew(instance, now)
        if (renewal := self._renewing.get(instance.id)) is not None:
            await asyncio.wait((renewal.task,), timeout=wait_seconds)

    async def is_idle(self, instance: Instance, model: ModelName) -> bool | None:
        """Whether the runner of a model says that it works at nothing; None where it cannot be asked, as it
        is not of this machine, or not to be seen. Source: llama.cpp tools/server README, `GET /slots`."""
        runner = instance.inventory.runners.get(model) if instance.inventory else None
        local = await asyncio.to_thread(self._find_local, instance)
        if runner is None or local is None:
            return None
        blob = self._blobs.get(runner.digest) or await self._blob_of(instance, str(runner.row["name"]))
        if blob not in local.ports:
            return None
        url = f"http://127.0.0.1:{local.ports[blob]}"
        try:
            slots = await self._client.get_rows(url, "/slots", timeout_seconds=self.times.timeout_seconds)
        except InstanceError:
            return None
        told = [each.get("is_processing") for each in slots]
        return not any(told) if told and all(isinstance(each, bool) for each in told) else None

    def changed(self) -> None:
        """Models were changed through us: no list that was read before is fresh any more."""
        self._changed_at = self._clock.monotonic()

    def look(self, instance: InstanceId) -> None:
        """Probe now, or soon where that was done just before: a request there has been silent, or has
        loaded a model. No list that was read there before is fresh any more."""
        if instance in self._nudges:
            self._looked_at[instance] = self._clock.monotonic()
            self._nudges[instance].set()

    def _watch_members(self) -> None:
        """Watch the instances that there are now, and no others."""
        present = set(self._fleet.instances())
        for gone in self._watching.keys() - present:
            self._watching.pop(gone).cancel()
            for kept in (self._nudges, self._looked_at, self._renewing):
                kept.pop(gone.id, None)
            self._warned.discard(gone.id)
            self._seen_locally.discard(gone.id)
        for instance in self._fleet.instances():
            if self._group is not None and instance not in self._watching:
                self._watching[instance] = self._group.create_task(self._watch(instance))

    async def _watch(self, instance: Instance) -> None:
        nudge = self._nudges.setdefault(instance.id, asyncio.Event())
        while True:
            nudge.clear()
            probed_at = self._clock.monotonic()
            await self._guarded(instance, self.run_once)
            self._note_first_round(instance)
            settled = instance.health.state is HealthState.UP and not instance.suspect
            pause = (
                self.times.interval_seconds if settled else min(_DOWN_SECONDS, self.times.interval_seconds)
            )
            try:
                async with asyncio.timeout(pause):
                    await nudge.wait()
            except TimeoutError:
                continue
            since_probe = self._clock.monotonic() - probed_at
            await asyncio.sleep(max(0.0, _LOOK_SECONDS - since_probe))
            self._renew(instance, self._clock.monotonic())

    async def _guarded(self, instance: Instance, probe: Callable[[Instance], Awaitable[None]]) -> None:
        """The boundary of the loops: a defect met with one instance must not end the balancer."""
        try:
            await probe(instance)
        except Exception as error:  # noqa: BLE001 - see above; the task group would end everything
            self._log.error("probe_failed", instance=instance.id, exc_info=error)

    def _note_first_round(self, instance: Instance) -> None:
        self._unprobed.discard(instance.id)
        if not self._unprobed:
            self.probed.set()

    def _age(self, instance: Instance) -> float:
        """How old its lists are, from when their reading began; infinite where a change came since."""
        if instance.inventory is None or not self._current(instance.inventory, instance):
            return float("inf")
        return self._clock.monotonic() - instance.inventory.read_at

    def _current(self, inventory: Inventory, instance: Instance) -> bool:
        """Whether nothing is known to have changed since the lists were read."""
        looked_at = self._looked_at.get(instance.id, float("-inf"))
        return inventory.read_at > self._changed_at and inventory.read_at >= looked_at

    def _renew(self, instance: Instance, now: float) -> None:
        """Begin to renew its lists unless that is under way."""
        renewal = self._renewing.get(instance.id)
        if (renewal is None or renewal.task.done()) and self._group is not None:
            task = self._group.create_task(self._read_anew(instance))
            self._renewing[instance.id] = _Renewal(task, now)

    async def _read_anew(self, instance: Instance) -> None:
        """Read its lists, and once more where something changed while they were read."""
        for _ in range(2):
            await self._guarded(instance, self._read_lists)
            if instance.inventory is None or self._current(instance.inventory, instance):
                return

    async def _read_lists(self, instance: Instance) -> None:
        if not instance.is_ollama:
            await self._read_runtime(instance)
            return
        incarnation, began_at = instance.incarnation, self._clock.monotonic()
        models, runners = await asyncio.gather(
            self._rows(instance, "/api/tags"), self._rows(instance, "/api/ps")
        )
        slots: Mapping[str, int] = {}
        local = await asyncio.to_thread(self._find_local, instance)
        if local is not None:
            self._seen_locally.add(instance.id)
            instance.learned_store = f"directory:{local.models_id}"
            slots = await self._learn_slots(instance, runners or (), local)
        if incarnation == instance.incarnation:
            self._fleet.inventory_read(instance, models=models, runners=runners, slots=slots, at=began_at)

    async def _read_runtime(self, instance: Instance) -> None:
        """What a runtime of another make serves, which is in its memory for as long as it answers."""
        incarnation, began_at = instance.incarnation, self._clock.monotonic()
        facts = await read_facts(instance.runtime, lambda path: self._asked(instance, path))
        if facts is not None and incarnation == instance.incarnation:
            instance.version = _version(facts.version)
            self._fleet.inventory_read(
                instance,
                models=[row for row in facts.models if _is_row(row)],
                runners=[row for row in facts.runners if _is_row(row)],
                slots=facts.slots,
                at=began_at,
            )

    async def _asked(self, instance: Instance, path: str) -> Mapping[str, object] | None:
        """What a path tells, None where it could not be read. A slow answer says nothing of health, a
        refused connection does."""
        incarnation = instance.incarnation
        try:
            return await self._client.get(instance.spec.url, path, timeout_seconds=self.times.timeout_seconds)
        except InstanceError as error:
            self._log.debug("list_unread", instance=instance.id, path=path, error=str(error))
            if _refused(error):
                self._fleet.failed(instance, str(error), refused=True, incarnation=incarnation)
            return None

    async def _rows(self, instance: Instance, path: str) -> Sequence[Row] | None:
        """The items of a list, None where it could not be read."""
        answer = await self._asked(instance, path)
        if answer is None:
            return None
        rows = answer.get("models")
        if not isinstance(rows, list):
            return ()
        return [row for row in rows if _is_row(row)]

    async def _learn_slots(
        self, instance: Instance, runners: Sequence[Row], local: LocalOllama
    ) -> Mapping[str, int]:
        """Slots of the runners by their manifest's digest, which is what lists name them by."""
        slots: dict[str, int] = {}
        for row in runners:
            digest = str(row.get("digest", ""))
            if digest not in self._blobs:
                self._blobs[digest] = await self._blob_of(instance, str(row["name"]))
            if self._blobs[digest] in local.slots:
                slots[digest] = local.slots[self._blobs[digest]]
        return slots

    async def _blob_of(self, instance: Instance, name: str) -> str:
        try:
            shown = await self._client.post(
                instance.spec.url, "/api/show", {"model": name}, timeout_seconds=self.times.timeout_seconds
            )
        except InstanceError:
            return ""
        found = _BLOB.search(str(shown.get("modelfile", "")))
        return found.group(1) if found else ""

    def _warn_of_slots(self, instance: Instance) -> None:
        spec = instance.spec
        known = spec.slots is not None or spec.max_concurrent_requests is not None
        if instance.runtime is Runtime.VLLM and not known and instance.id not in self._warned:
            self._warned.add(instance.id)
            self._log.warning(
                "slots_assumed",
                instance=instance.id,
                slots=VLLM_SLOTS,
                advice="set slots to its --max-num-seqs",
            )
        if not instance.is_ollama:
            return
        if not known and instance.id not in self._seen_locally and instance.id not in self._warned:
            self._warned.add(instance.id)
            self._log.warning(
                "slots_assumed", instance=instance.id, slots=1, advice="set slots to its OLLAMA_NUM_PARALLEL"
            )


def _version(told: object) -> str:
    """A version as it may be shown and compared."""
    return told if isinstance(told, str) and _VERSION.fullmatch(told) else "unknown"


def _is_row(row: object) -> bool:
    """Whether it has a name, and can be told to clients again."""
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        return False
    try:
        msgspec.json.encode(row)
    except (UnicodeEncodeError, msgspec.MsgspecError, RecursionError, OverflowError):
        return False
    return True


def _refused(error: InstanceError) -> bool:
    """Whether nothing listens there, or what does hangs up."""
    return isinstance(error, ConnectionLost) or (isinstance(error, ConnectFailed) and error.refused)
