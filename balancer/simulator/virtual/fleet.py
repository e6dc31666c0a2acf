"""The parts of a balancer over instances in virtual time, put together as `app` puts them together.

The store, the queue, the dispatcher, the scheduler, the loader, the device ledger and the prober are the
product's own. In the place of the pipeline and of the tries of a request stands `run`.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from balancer.admission.overload import WaitLimits
from balancer.admission.queue import RequestQueue
from balancer.control.loader import Loader
from balancer.control.prober import Prober, ProbeTimes
from balancer.control.room import Room
from balancer.core.names import canonical_name
from balancer.core.ticket import InstanceId
from balancer.dispatch import Dispatcher
from balancer.fleet.breaker import BreakerPolicy, Breakers
from balancer.fleet.device_ledger import DeviceLedger, Share
from balancer.fleet.fleet import Fleet
from balancer.fleet.health import Health, HealthPolicy
from balancer.fleet.instance import Instance
from balancer.fleet.instance_spec import InstanceSpec
from balancer.scheduling.adaptive import Adaptive
from balancer.scheduling.prefix_index import PrefixIndex
from balancer.scheduling.scheduler import Scheduler
from balancer.scheduling.strategies import Strategy
from balancer.settings.groups import LimitsSettings
from balancer.settings.scenario import Scenario
from balancer.simulator.configuration import ServerConfig
from balancer.simulator.models import Kind, Model, ModelSpec, weights_of
from balancer.simulator.names import parse_name
from balancer.simulator.virtual.clairvoyant import Clairvoyant
from balancer.simulator.virtual.clients import VirtualControl, VirtualUpstream
from balancer.simulator.virtual.execution import Device
from balancer.simulator.virtual.hardware import InstanceShape
from balancer.simulator.virtual.instances import VirtualInstance
from balancer.simulator.virtual.loop import VirtualClock
from balancer.simulator.virtual.oracle import TrueState
from balancer.simulator.virtual.school import School
from balancer.simulator.virtual.shelf import Informed
from balancer.telemetry.logs import make_logger
from balancer.telemetry.metrics import Metrics

_LOG = make_logger(level="critical", output_format="json")
_NO_LIMIT = 1_000_000
_PROBES = ProbeTimes(interval_seconds=30.0, timeout_seconds=5.0)
_INDEX_BYTES = 64 << 20
_RESERVE = 0.05
"""Part of a device that the balancer leaves free."""


class VirtualFleet:
    """One balancer and its instances, on the running loop. `strategy` decides; with `immediate` the balancer
    is not told that slots are ever taken."""

    def __init__(
        self,
        scenario: Scenario,
        shapes: Sequence[InstanceShape],
        strategy: Callable[[Random], Strategy] | Informed,
        *,
        immediate: bool,
        seed: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._immediate = immediate
        clock = self._clock = VirtualClock(loop)
        self.models = {name: _model(name, each) for name, each in _specs(scenario).items()}
        self.devices = [Device(loop) for _ in range(1 + max(each.device for each in shapes))]
        self.instances = self._instances(scenario, shapes, seed, clock)
        by_url = {each.url: each for each in self.instances}
        self.by_id = {InstanceId(each.name): each for each in self.instances}
        known = scenario.instances.slots if scenario.instances.slots_known else None
        slots = _NO_LIMIT if immediate else known
        self.fleet = Fleet(
            [
                _instance(each, slots, shape.device)
                for each, shape in zip(self.instances, shapes, strict=True)
            ],
            clock=clock,
        )
        self.fleet.listen(on_down=lambda instance: self.by_id[instance.id].abandon())
        self.queue = RequestQueue(limit=scenario.queue_requests)
        control = VirtualControl(by_url)
        self.prober = Prober(
            fleet=self.fleet, client=control, times=_PROBES, clock=clock, log=_LOG, find_local=lambda _: None
        )
        ledger = DeviceLedger()
        if scenario.instances.slots_known:
            ledger.use(*_shares(shapes))
        self.loader = self._loader(VirtualUpstream(by_url), control, ledger, clock)
        index = PrefixIndex(limit_bytes=_INDEX_BYTES if strategy is Informed.ADAPTIVE else 0)
        self.school = School(self.fleet, index, clock, immediate=immediate)
        chance = Random(f"{seed} ties")
        self.oracle: TrueState | None = None
        """What the clairvoyant strategy knows; None for all others."""
        self.strategy: Strategy
        if strategy is Informed.CLAIRVOYANT:
            self.oracle = TrueState(self.by_id, clock)
            self.strategy = Clairvoyant(self.oracle)
        elif strategy is Informed.ADAPTIVE:
            self.strategy = Adaptive(index)
        else:
            self.strategy = strategy(chance)
        shelf = {"": lambda _random: self.strategy}
        self.scheduler = Scheduler(self.fleet, strategy="", random=chance, shelf=shelf)
        self.decisions = 0
        self.dispatcher = Dispatcher(
            fleet=self.fleet,
            queue=self.queue,
            scheduler=self.scheduler,
            clock=clock,
            load=self.loader.begin,
            wait_limits=WaitLimits(longest=scenario.queue_seconds, standing=LimitsSettings().standing_delays),
            on_decision=self._decided,
        )

    def _loader(
        self, upstream: VirtualUpstream, control: VirtualControl, ledger: DeviceLedger, clock: VirtualClock
    ) -> Loader:
        metrics = Metrics()
        self.room = Room(
            ledger=ledger,
            fleet=self.fleet,
            client=control,
            restart=lambda _: False,
            metrics=metrics,
            log=_LOG,
        )
        return Loader(
            fleet=self.fleet,
            client=upstream,
            ledger=ledger,
            room=self.room,
            look=self.prober.look,
            read=self.prober.read,
            metrics=metrics,
            clock=clock,
            log=_LOG,
        )

    async def open(self, *, warm: bool) -> None:
        """Begin to probe and to load. With `warm` models are in memory from the start, as far as they fit:
        each instance begins with another one."""
        loop = asyncio.get_running_loop()
        for index, instance in enumerate(self.instances if warm else ()):
            await _warm_up(instance, list(self.models)[index % len(self.models) :] + list(self.models))
        self._loops = [loop.create_task(self.prober.run()), loop.create_task(self.loader.run())]
        await self.prober.probed.wait()

    def _instances(
        self, scenario: Scenario, shapes: Sequence[InstanceShape], seed: int, clock: VirtualClock
    ) -> list[VirtualInstance]:
        neighbours: list[list[VirtualInstance]] = [[] for _ in self.devices]
        for shape in shapes:
            beside = neighbours[shape.device]
            beside.append(
                VirtualInstance(
                    shape.id,
                    device=self.devices[shape.device],
                    neighbours=beside,
                    config=_config(scenario, shape),
                    models=self.models,
                    rates={canonical_name(name): each for name, each in shape.rates.items()},
                    clock=clock,
                    noise=scenario.noise,
                    chance=Random(f"{seed} {shape.id}"),
                )
            )
        by_name = {each.name: each for beside in neighbours for each in beside}
        return [by_name[shape.id] for shape in shapes]

    def _decided(self, _decision: object) -> None:
        self.decisions += 1


async def _warm_up(instance: VirtualInstance, models: Sequence[str]) -> None:
    """Load models that fit beside those that are there, in no time."""
    instance.loads_at_once = True
    for model in dict.fromkeys(models):
        if instance.has_room_for(model):
            await instance.load(model)
    instance.loads_at_once = False
    instance.seen.loads = 0


def _specs(scenario: Scenario) -> dict[str, ModelSpec]:
    return {
        canonical_name(each.name): ModelSpec(
            name=canonical_name(each.name),
            size_bytes=each.size_bytes,
            kind=Kind.EMBEDDING if each.embeds else Kind.CHAT,
        )
        for each in scenario.models
    }


def _model(name: str, spec: ModelSpec) -> Model:
    return Model(name=parse_name(name), weights=weights_of(spec), modified_at=VirtualClock.EPOCH)


def _config(scenario: Scenario, shape: InstanceShape) -> ServerConfig:
    own = scenario.instances
    return ServerConfig(
        name=shape.id,
        slots=own.slots,
        max_loaded_models=own.max_loaded_models,
        memory_bytes=shape.memory_bytes,
        context_length=own.context_length,
        keep_alive_seconds=own.keep_alive_seconds,
        prefix_cache_tokens=own.prefix_cache_tokens,
    )


def _instance(of: VirtualInstance, slots: int | None, device: int) -> Instance:
    spec = InstanceSpec(
        id=InstanceId(of.name),
        url=of.url,
        slots=slots,
        models=frozenset(),
        devices=(str(device),),
    )
    return Instance(spec, Health(HealthPolicy()), Breakers(BreakerPolicy()))


def _shares(shapes: Sequence[InstanceShape]) -> tuple[dict[str, int], dict[InstanceId, Share]]:
    """What the balancer may promise of each device, an equal part reserved for each of its instances."""
    capacities = {str(each.device): int(each.memory_bytes * (1 - _RESERVE)) for each in shapes}
    on_it = {key: sum(str(each.device) == key for each in shapes) for key in capacities}
    shares = {}
    for each in shapes:
        key = str(each.device)
        shares[each.id] = Share(devices=(key,), bytes_each=capacities[key] // on_it[key])
    return capacities, shares
