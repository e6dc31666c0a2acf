"""Scenario files: what is said of a broken one, which come along, and what fleet one describes."""

import hashlib
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from balancer.settings import SettingsError
from balancer.settings.scenario import Scenario
from balancer.simulator.virtual.hardware import instances_of, needed_bytes, slots_of
from balancer.simulator.virtual.scenario_file import (
    checked,
    load_scenario,
    standard_scenarios,
    standard_seeds,
)
from balancer.simulator.virtual.work import FaultKind
from balancer.simulator.virtual.workload import faults

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "balancer" / "simulator" / "scenarios"

# A frozen scenario is never edited: results told of it would no longer be those of its name.
FROZEN = {
    "fair-shares.yaml": "1affa728be5dc0c0",
    "hidden-slots.yaml": "2da7b290323528c0",
    "one-device.yaml": "26d296cff6888eb4",
    "one-model-four-devices.yaml": "0199c4b48b118694",
    "overload.yaml": "1a5101250455b6d9",
    "seeds.json": "ba0d0519cd7894af",
    "several-models-resident.yaml": "8941110bb1687d2f",
    "tight-memory.yaml": "ab4ff35a896f0d39",
    "two-devices.yaml": "ca3a88cb4baeaed9",
}

SOUND = {
    "name": "name: a",
    "devices": "devices: [{gpu: RTX 4090, count: 2}]",
    "models": "models: [{name: a, size_bytes: 5GB}, {name: e, size_bytes: 1GB, embeds: true}]",
    "workload": "workload: {populations: [{kind: chat}]}",
}

# the lines that replace or join the sound ones, the key, what the problem says, what is said to be allowed
BROKEN: list[tuple[dict[str, str], str, str, str]] = [
    ({"devices": ""}, "devices", "is missing", "a list of mappings with gpu, memory_bytes"),
    ({"workload": ""}, "workload.populations", "is missing", "a list of mappings with kind"),
    ({"workload": "workload: {load: 1}"}, "workload.populations", "is missing", "a list of mappings"),
    ({"workload": "workload: 3"}, "workload", "is not a mapping", "a mapping with load"),
    ({"x": "wrkload: {}"}, "wrkload", "unknown key", "did you mean 'workload'?"),
    ({"x": "noise: {rate: 0}"}, "noise.rate", "unknown key", "did you mean 'rates'?"),
    ({"x": "requests: 0"}, "requests", "0 is out of range", "a whole number from 1 to"),
    ({"x": "requests: many"}, "requests", "'many' is not a whole number", "a whole number from 1 to"),
    ({"x": "instances: {slots: yes}"}, "instances.slots", "true is not a number", "1 to 64"),
    ({"x": "noise: {work: 1}"}, "noise.work", "1 is out of range", "from 0 to 0.99"),
    ({"name": "name: a/b"}, "name", "'a/b' is not a usable name", "1 to 64 printable"),
    ({"devices": "devices: []"}, "devices", "is empty", "at least one"),
    ({"devices": "devices: [{gpus: 2}]"}, "devices[0].gpus", "unknown key", "did you mean 'gpu'?"),
    (
        {"devices": "devices: [{gpu: Abacus, memory_bytes: 24GiB}]"},
        "devices[0].gpu",
        "'Abacus' is not a known GPU",
        "the rates of every model",
    ),
    (
        {"devices": "devices: [{gpu: RTX 2060}]"},
        "devices[0].gpu",
        "'RTX 2060' is sold with 6GiB or 12GiB",
        "memory_bytes beside it",
    ),
    (
        {"devices": "devices: [{gpu: RTX 4090, count: 1000, instances: 2}]"},
        "devices",
        "2000 instances are described",
        "at most 1024",
    ),
    ({"models": "models: [{name: a}]"}, "models[0].size_bytes", "is missing", "a size from 1 MiB"),
    (
        {"models": "models: [{name: a, size_bytes: 23GB}]"},
        "models[0].size_bytes",
        "'a' takes 25.0 GiB with all of its slots and fits on no device",
        "at most 24.0 GiB",
    ),
    (
        {"models": "models: [{name: a, size_bytes: 5GB}, {name: a, size_bytes: 5GB}]"},
        "models[1].name",
        "'a' is the name of models[0] already",
        "each model once",
    ),
    ({"workload": "workload: {populations: []}"}, "workload.populations", "is empty", "at least one"),
    (
        {"workload": "workload: {populations: [{kind: chat, priority: high}]}"},
        "workload.populations[0].priority",
        "'high' is not known",
        "one of interactive, normal, batch",
    ),
    (
        {"workload": "workload: {populations: [{kind: crowd}]}"},
        "workload.populations[0].kind",
        "'crowd' is not known",
        "one of chat, agent, embedding, batch",
    ),
    (
        {"workload": "workload: {populations: [{kind: chat, turn: 3}]}"},
        "workload.populations[0].turn",
        "unknown key",
        "did you mean 'turns'?",
    ),
    (
        {"workload": "workload: {populations: [{kind: chat, inputs: 3}]}"},
        "workload.populations[0].inputs",
        "means nothing for kind chat",
        "nothing there",
    ),
    (
        {"workload": "workload: {populations: [{kind: chat, models: [b]}]}"},
        "workload.populations[0].models[0]",
        "'b' is none of the models",
        "known are a, e",
    ),
    (
        {"workload": "workload: {populations: [{kind: chat, models: [a, e]}]}"},
        "workload.populations[0].models[1]",
        "'e' embeds",
        "a model for kind chat",
    ),
    (
        {"workload": "workload: {populations: [{kind: embedding, models: [a]}]}"},
        "workload.populations[0].models[0]",
        "'a' does not embed",
        "a model for kind embedding",
    ),
    (
        {
            "models": "models: [{name: a, size_bytes: 5GB}]",
            "workload": "workload: {populations: [{kind: embedding}]}",
        },
        "workload.populations[0].kind",
        "kind embedding has no model to ask for",
        "a model with embeds: true",
    ),
    (
        {"workload": "workload: {load: 1, sessions_per_second: 1, populations: [{kind: chat}]}"},
        "workload.load",
        "is given beside sessions_per_second",
        "one of the two",
    ),
    (
        {"workload": "workload: {foreign_share: 0.0001, populations: [{kind: chat}]}"},
        "workload.foreign_share",
        "0.0001 is out of range",
        "0, or a number from 0.001 to 0.9",
    ),
    (
        {"workload": "workload: {foreign_instances: [0, 2], populations: [{kind: chat}]}"},
        "workload.foreign_instances[1]",
        "there is no instance 2",
        "a whole number from 0 to 1",
    ),
    (
        {"x": "faults: [{kind: kill, at_seconds: 1, seconds: 1, instance: 2}]"},
        "faults[0].instance",
        "there is no instance 2",
        "a whole number from 0 to 1",
    ),
    (
        {"x": "faults: [{kind: melt, at_seconds: 1, seconds: 1}]"},
        "faults[0].kind",
        "'melt' is not known",
        "one of kill, hang, slow, loads_fail",
    ),
]


def written(folder: Path, **lines: str) -> Path:
    path = folder / "scenario.yaml"
    path.write_text("\n".join((SOUND | lines).values()))
    return path


def read(folder: Path, **lines: str) -> Scenario:
    return load_scenario(written(folder, **lines))


@pytest.mark.parametrize(("lines", "key", "problem", "allowed"), BROKEN)
def test_a_broken_scenario_is_told_by_key_problem_and_what_is_allowed(
    tmp_path: Path, lines: dict[str, str], key: str, problem: str, allowed: str
) -> None:
    path = written(tmp_path, **lines)

    with pytest.raises(SettingsError) as raised:
        load_scenario(path)

    (fault,) = raised.value.faults
    assert (str(path), key) == (fault.source, fault.key)
    assert problem in fault.problem
    assert allowed in fault.allowed


def test_every_fault_of_single_settings_is_told_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        name="",
        devices="devices: [{count: 0}, {gpu: RTX 4090, mem: 1}]",
        x="requests: 0\nnoise: {rates: 2, load: 1}",
    )

    with pytest.raises(SettingsError) as raised:
        load_scenario(path)

    assert {
        "devices[0].count",
        "devices[1].mem",
        "requests",
        "noise.rates",
        "noise.load",
        "name",
    } == {fault.key for fault in raised.value.faults}


def test_text_that_is_no_yaml_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: [")

    with pytest.raises(SettingsError, match=r"a\.yaml: \(file\): line 1: .*, well-formed YAML$"):
        load_scenario(path)


def test_a_name_that_is_no_scenario_is_told_which_there_are() -> None:
    with pytest.raises(
        SettingsError, match=r"^no-such: \(file\): does not exist, an existing file, or one of "
    ) as e:
        load_scenario("no-such")

    assert all(name in str(e.value) for name in standard_scenarios())


def test_a_changed_scenario_is_held_to_the_rules_too() -> None:
    scenario = load_scenario("tight-memory")
    small = scenario.devices[0].model_copy(update={"gpu": "RTX 3060", "memory_bytes": 12 * 2**30})

    with pytest.raises(
        SettingsError, match=r"^command line: models\[2\].size_bytes: 'gemma3:27b' takes 19.4 GiB"
    ):
        checked(scenario.model_copy(update={"devices": (small,)}), "command line")


@pytest.mark.parametrize("name", standard_scenarios())
def test_standard_scenarios_load_under_their_own_names(name: str) -> None:
    scenario = load_scenario(name)

    assert (name, 20_000) == (scenario.name, scenario.requests)
    assert "# Frozen" in (FOLDER / f"{name}.yaml").read_text()


def test_standard_scenarios_are_frozen() -> None:
    assert {path.name: digest(path) for path in FOLDER.iterdir()} == FROZEN


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_no_seed_is_both_for_tuning_and_held_out() -> None:
    seeds = standard_seeds()

    assert (len(set(seeds.tuning)), len(set(seeds.held_out))) == (10, 10)
    assert set(seeds.tuning).isdisjoint(seeds.held_out)


def test_the_wheel_holds_the_standard_scenarios(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])

    names = set(zipfile.ZipFile(wheel).namelist())

    assert {f"balancer/simulator/scenarios/{path.name}" for path in FOLDER.iterdir()} <= names


def test_only_tight_memory_has_models_that_do_not_fit_together() -> None:
    for name in standard_scenarios():
        scenario = load_scenario(name)
        devices = {shape.device: shape.memory_bytes for shape in instances_of(scenario)}
        needed = sum(needed_bytes(scenario, model) for model in scenario.models)

        assert (name == "tight-memory") == (needed > 0.9 * sum(devices.values())), name


def test_instances_of_a_device_share_it_and_are_numbered_through_all_devices(tmp_path: Path) -> None:
    scenario = read(
        tmp_path, devices="devices: [{gpu: RTX 4090, count: 2, instances: 2}, {gpu: RTX 3060, speed: 0.5}]"
    )

    shapes = instances_of(scenario)

    assert [shape.id for shape in shapes] == ["gpu0-0", "gpu0-1", "gpu1-0", "gpu1-1", "gpu2"]
    assert [shape.device for shape in shapes] == [0, 0, 1, 1, 2]
    assert [shape.memory_bytes for shape in shapes] == [24 * 2**30] * 4 + [12 * 2**30]


def test_rates_follow_bandwidth_size_and_speed_unless_told(tmp_path: Path) -> None:
    scenario = read(
        tmp_path,
        devices="devices: [{gpu: RTX 4090}, {gpu: RTX 4090, speed: 0.5}]",
        models="models: [{name: a, size_bytes: 6GB}, {name: b, size_bytes: 6GB, "
        "decode_tokens_per_second: 50, prefill_tokens_per_second: 700}]",
        x="instances: {load_base_seconds: 1, load_bytes_per_second: 3GB, parallel_slowdown: 0.2}",
    )

    full, half = (shape.rates for shape in instances_of(scenario))

    assert pytest.approx(full["a"].decode_tokens_per_second) == 0.6 * 1008 / 6
    assert pytest.approx(full["a"].prefill_tokens_per_second) == 30 * 0.6 * 1008 / 6
    assert (full["b"].decode_tokens_per_second, full["b"].prefill_tokens_per_second) == (50, 700)
    assert (half["b"].decode_tokens_per_second, half["b"].prefill_tokens_per_second) == (25, 350)
    assert (
        half["a"].load_base_seconds,
        half["a"].load_bytes_per_second,
        half["a"].parallel_slowdown,
    ) == (1, 3e9, 0.2)


def test_an_unknown_gpu_will_do_where_everything_is_told(tmp_path: Path) -> None:
    scenario = read(
        tmp_path,
        devices="devices: [{gpu: Abacus, memory_bytes: 12GiB}]",
        models="models: [{name: a, size_bytes: 5GB, decode_tokens_per_second: 10}, "
        "{name: e, size_bytes: 1GB, embeds: true, prefill_tokens_per_second: 100}]",
    )

    (shape,) = instances_of(scenario)

    assert shape.memory_bytes == 12 * 2**30
    assert (
        shape.rates["a"].decode_tokens_per_second,
        shape.rates["a"].prefill_tokens_per_second,
    ) == (10, 300)
    assert shape.rates["e"].prefill_tokens_per_second == 100


def test_a_model_that_embeds_has_one_slot(tmp_path: Path) -> None:
    scenario = read(tmp_path, x="instances: {slots: 6}")

    assert [slots_of(scenario, model) for model in scenario.models] == [6, 1]


def test_faults_come_in_the_order_of_time_and_draw_their_instance_by_the_seed(tmp_path: Path) -> None:
    scenario = read(
        tmp_path,
        devices="devices: [{gpu: RTX 4090, count: 8}]",
        x="faults: [{kind: slow, at_seconds: 9, seconds: 2, factor: 5, instance: 3}, "
        "{kind: hang, at_seconds: 1, seconds: 2}]",
    )

    drawn = [faults(scenario, seed) for seed in range(40)]

    assert all([fault.at for fault in each] == [1, 9] for each in drawn)
    assert all((e.kind, e.instance, e.factor, e.seconds) == (FaultKind.SLOW, 3, 5.0, 2.0) for _, e in drawn)
    assert set(range(8)) == {hang.instance for hang, _ in drawn}
    assert drawn == [faults(scenario, seed) for seed in range(40)]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["chat", "a", "RTX 4090", "24GiB", "kill"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["gpu", "name", "size_bytes", "kind", "populations", "load", "slots", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@profile(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from([*Scenario.model_fields, "x"]), VALUES))
def test_no_value_crashes_the_loader(tmp_path: Path, values: dict[str, object]) -> None:
    sound = yaml.safe_load("\n".join(SOUND.values()))
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(sound | values))

    with suppress(SettingsError):
        load_scenario(path)
