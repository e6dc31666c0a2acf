"""Plans of any machine: what must hold of each, whatever cards, settings and models it is made of."""

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, reject
from hypothesis import settings as examples
from hypothesis import strategies as st

from balancer.core.device import Device
from balancer.core.plan import Plan, PlannedInstance, Runtime
from balancer.provisioning import contexts
from balancer.provisioning.addresses import Addresses
from balancer.provisioning.kv_cache import CacheShape, KnownModel, cache_bytes
from balancer.provisioning.plan import make_plan
from balancer.provisioning.runtimes import CannotLaunch, Host
from balancer.provisioning.served_models import served_models
from balancer.settings import Settings, SettingsError
from tests.fakes.gguf_file import sparse

MIB, GIB = 2**20, 2**30
CARDS = (4096, 8188, 11264, 12288, 15360, 16376, 24564, 32607, 40960, 46068, 49140, 81559, 143771)
MOST_DEVICES = 16
ATTACHED = 11501
WEIGHTS = (1, 300, 2500)
"""The sizes of the files of weights, in MiB; each is named by its size."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with a model of each size for each runtime; they take no room on the disk."""
    folder = tmp_path_factory.mktemp("home")
    for mib in WEIGHTS:
        (folder / f"{mib}").mkdir()
        sparse(folder / f"{mib}.gguf", mib * MIB)
        with (folder / f"{mib}" / "model.safetensors").open("wb") as file:
            file.truncate(mib * MIB)
    return folder


sizes = st.one_of(st.sampled_from(CARDS), st.integers(0, 200_000)).map(lambda mib: mib * MIB)


@st.composite
def machines(draw: st.DrawFn) -> list[Device]:
    indices = draw(st.permutations(range(draw(st.integers(0, MOST_DEVICES)))))
    devices = []
    for index in indices:
        memory = draw(sizes)
        devices.append(
            Device(
                index=index,
                name=f"card {index}",
                memory_bytes=memory,
                free_bytes=draw(st.one_of(st.just(memory), st.integers(0, memory))),
                uuid=draw(st.sampled_from(["", f"GPU-{index}"])),
                mig=draw(st.integers(0, 9)) == 0,
            )
        )
    return devices


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


def places(devices: list[Device]) -> st.SearchStrategy[int]:
    """The index of a GPU, nearly always one that is there."""
    there = [device.index for device in devices if not device.mig]
    return st.sampled_from(there * 20 + [MOST_DEVICES])


@st.composite
def runtimes(draw: st.DrawFn, devices: list[Device]) -> dict[str, Any]:
    def entries(ending: str, places: list[st.SearchStrategy[Any]]) -> list[dict[str, Any]]:
        return [
            {
                "name": draw(st.sampled_from(["a", "me/b", "gpu0"])),
                "path": f"~/{draw(st.sampled_from(WEIGHTS))}{ending}",
                "devices": draw(st.one_of(places)),
                "memory_share": draw(optional(st.sampled_from([0.1, 0.25, 0.4]))),
            }
            for _ in range(draw(st.integers(0, 2)))
        ]

    anywhere = [st.just([])]
    on_gpus = [st.lists(places(devices), unique=True, max_size=3)] if devices else anywhere
    return {
        "vllm": {"enabled": True, "models": entries("", on_gpus) if devices else []},
        "llama_server": {"models": entries(".gguf", [*on_gpus, st.just(["cpu"])])},
    }


@st.composite
def configurations(draw: st.DrawFn, devices: list[Device]) -> Settings:
    free = st.integers(11480, 11530).filter(lambda port: port != ATTACHED)
    ports = draw(st.lists(free, unique=True, max_size=4)) if devices else []
    items = [
        {
            "gpu_id": draw(places(devices)),
            "port": port,
            "memory_limit": draw(optional(st.integers(64, 4096).map(lambda mib: mib * MIB))),
            "max_concurrent_requests": draw(optional(st.integers(1, 9))),
            "models": draw(st.lists(st.sampled_from(["a", "b:1b", "none"]), max_size=2)),
        }
        for port in ports
    ]
    own = [
        {"gpu_id": gpu_id, "instances": draw(st.integers(0, 64))}
        for gpu_id in draw(st.lists(places(devices), unique=True, max_size=2 if devices else 0))
    ]
    provisioning = {
        "several_instances": draw(st.integers(0, 4)) > 0,
        "instances_per_device": draw(optional(st.integers(1, 64))),
        "max_instances_per_device": draw(optional(st.integers(1, 64))),
        "devices": own,
        "cpu_instance": draw(st.booleans()),
        "memory_reserve_bytes": draw(st.sampled_from([0, GIB, 2 * GIB, 40 * GIB])),
        "model_size_estimate_bytes": draw(optional(st.integers(1, 40_000).map(lambda mib: mib * MIB))),
        "model": draw(st.sampled_from([None, "a", "none"])),
        "slots": draw(st.integers(1, 64)),
    }
    return Settings.model_validate(
        {
            "provisioning": provisioning,
            "gpu_instances": items,
            "instances": [{"url": f"http://gpu9:{ATTACHED}", "name": draw(st.sampled_from(["gpu0", "cpu"]))}],
            "cache": {"max_memory_percent": draw(st.floats(0, 100))},
            "load_balancing": {"enabled": draw(st.integers(0, 9)) > 0},
            "runtimes": draw(runtimes(devices)),
        }
    )


models = st.lists(
    st.builds(
        KnownModel,
        name=st.sampled_from(["a:latest", "b:1b", "c:70b"]),
        size_bytes=st.integers(0, 2**45),
        cache=optional(
            st.builds(
                CacheShape,
                full_elements=st.integers(0, 2**20),
                window_elements=st.integers(0, 2**20),
                window=st.integers(0, 2**20),
                state_bytes=st.integers(0, 2**30),
            )
        ),
        trained_context=optional(st.integers(1, 2**31)),
    ),
    max_size=4,
)


class Case(NamedTuple):
    devices: list[Device]
    host: int
    told: Settings
    known: list[KnownModel]

    def served(self, home: Path) -> tuple[PlannedInstance, ...]:
        """What vLLM and llama-server serve. Examples that ask for what is not there are no examples."""
        usable = tuple(device for device in self.devices if not device.mig)
        own = Host(usable, {"HOME": str(home)}, self.told)
        try:
            return served_models(own, host_memory_bytes=self.host, ports=Addresses(self.told).ports())
        except CannotLaunch:
            reject()

    def plan(self, served: tuple[PlannedInstance, ...]) -> Plan:
        """Its plan. Examples that ask for what is not there are no examples."""
        try:
            return make_plan(self.devices, self.host, self.told, models=self.known, served=served)
        except SettingsError:
            reject()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    devices = draw(machines())
    return Case(devices, draw(st.integers(2**32, 2**42)), draw(configurations(devices)), draw(models))


@examples(max_examples=200, deadline=None)
@given(case=cases())
def test_no_device_and_no_host_is_promised_more_than_it_has(home: Path, case: Case) -> None:
    served = case.served(home)
    plan = case.plan(served)

    memory = {device.key: device.memory_bytes for device in case.devices}
    promised: Counter[str] = Counter()
    for each in plan.instances:
        whole = sum(memory[key] for key in each.devices)
        for key in each.devices:
            promised[key] += Fraction(each.memory_bytes * memory[key], max(whole, 1))
    assert all(promised[device.key] <= device.memory_bytes for device in case.devices)
    assert not any(device.mig for device in case.devices if device.key in promised)
    on_host = sum(each.memory_bytes for each in plan.instances if not each.devices)
    assert on_host + sum(each.prompt_cache_bytes for each in plan.instances) <= case.host
    assert all(each.memory_bytes >= 0 and each.prompt_cache_bytes >= 0 for each in plan.instances)


@examples(max_examples=200, deadline=None)
@given(case=cases())
def test_every_instance_has_its_own_name_and_port_and_a_reason(home: Path, case: Case) -> None:
    served = case.served(home)
    plan = case.plan(served)

    told, attached = case.told, case.told.instances[0]
    names = [each.name for each in plan.instances] + [attached.name]
    ports = [each.port for each in plan.instances] + [attached.port, told.listen.port, told.admin_listen.port]
    assert len(set(names)) == len(names)
    assert len(set(ports)) == len(ports)
    assert all(0 < port <= 65535 for port in ports)
    assert all(each.reason and each.reason.isprintable() for each in plan.instances)
    assert all(each.weight > 0 for each in plan.instances)
    ollama = [each for each in plan.instances if each.runtime is Runtime.OLLAMA]
    assert sum(each.prunes for each in plan.instances) == bool(ollama)
    assert all(each.slots and each.context_length for each in ollama)
    assert ollama or served


@examples(max_examples=100, deadline=None)
@given(case=cases())
def test_the_same_machine_gets_the_same_plan_in_any_order(home: Path, case: Case) -> None:
    served = case.served(home)

    assert served == case.served(home)
    assert case.plan(served) == case._replace(devices=case.devices[::-1]).plan(served)


@examples(max_examples=200, deadline=None)
@given(case=cases())
def test_served_models_are_kept_and_come_before_ollama(home: Path, case: Case) -> None:
    served = case.served(home)
    plan = case.plan(served)

    def bare(each: PlannedInstance) -> PlannedInstance:
        return msgspec.structs.replace(each, weight=1.0, prompt_cache_bytes=0)

    for together in (*(device.instances for device in plan.devices), plan.spanning):
        alone = [bare(each) for each in together if each.runtime is not Runtime.OLLAMA]
        assert alone == [bare(each) for each in together[: len(alone)]]
        assert alone == [each for each in served if each in alone]
    kept = [each.name for each in plan.instances if each.runtime is not Runtime.OLLAMA]
    assert kept == [each.name for each in served]
    assert kept == [each.name for each in plan.instances][: len(kept)]


@examples(max_examples=200, deadline=None)
@given(case=cases())
def test_gpu_instances_are_kept_and_no_other_ollama_is_on_their_gpus(home: Path, case: Case) -> None:
    served = case.served(home)
    plan = case.plan(served)

    items = case.told.gpu_instances if case.told.load_balancing.enabled else case.told.gpu_instances[:1]
    by_port = {each.port: each for each in plan.instances}
    for item in items:
        own = by_port[item.port]
        assert (own.name, own.models) == (item.name, item.models)
        assert own.max_concurrent_requests == item.max_concurrent_requests
        assert item.memory_limit in (None, own.memory_bytes)
    for device in plan.devices:
        wanted = [item.port for item in items if device.gpu and item.gpu_id == device.gpu.index]
        ollama = [each.port for each in device.instances if each.runtime is Runtime.OLLAMA]
        assert not wanted or ollama == wanted


@examples(max_examples=200, deadline=None)
@given(
    model=models.filter(bool).map(lambda found: found[0]),
    share=st.integers(0, 2**38),
    slots=st.integers(1, 64),
    cache_type=st.sampled_from(["f16", "q8_0", "q4_0", "odd"]),
)
def test_a_context_fits_and_the_next_does_not(
    model: KnownModel, share: int, slots: int, cache_type: str
) -> None:
    chosen, reason = contexts.context_length(model, share_bytes=share, slots=slots, cache_type=cache_type)

    trained = model.trained_context or 131072
    allowed = sorted({min(each, trained) for each in contexts.CONTEXTS})
    assert chosen in allowed
    if model.cache is None:
        return
    room = share - model.size_bytes - 512 * MIB
    needs = [cache_bytes(model.cache, context=each, slots=slots, cache_type=cache_type) for each in allowed]
    place = allowed.index(chosen)
    assert (needs[place] <= room) or (place == 0 and "do not fit" in reason)
    assert place + 1 == len(allowed) or needs[place + 1] > room


@pytest.mark.parametrize("each", [1, 4, 64])
def test_the_work_does_not_grow_with_the_instances(monkeypatch: pytest.MonkeyPatch, each: int) -> None:
    """A context is worked out once for a device, in seven steps, and once for those that several share."""
    steps = 0

    def counted(*arguments: Any, **others: Any) -> int:
        nonlocal steps
        steps += 1
        return cache_bytes(*arguments, **others)

    monkeypatch.setattr(contexts, "cache_bytes", counted)
    devices = [
        Device(
            index=index, name="card", memory_bytes=CARDS[index % 13] * MIB, free_bytes=CARDS[index % 13] * MIB
        )
        for index in range(MOST_DEVICES)
    ]
    told = Settings.model_validate({"provisioning": {"instances_per_device": each, "cpu_instance": True}})

    plan = make_plan(devices, 2**37, told)

    assert len(plan.instances) == each * MOST_DEVICES + 2
    assert steps <= 7 * (MOST_DEVICES + 2)
