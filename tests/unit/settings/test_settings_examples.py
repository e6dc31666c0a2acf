"""The examples in config/ load, say everything, and match the schema that lies beside them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic.fields import FieldInfo

from balancer.settings import (
    PENDING,
    DeviceSettings,
    GpuInstanceSettings,
    InstanceSettings,
    ServedModelSettings,
    Settings,
    load,
)
from balancer.settings.environment import read_dotenv
from balancer.settings.json_schema import pending_note, schema_text
from balancer.settings.synonyms import INI_KEYS, VARIABLES
from balancer.settings.tree import allowed_by, field_at, is_size, leaves

CONFIG = Path(__file__).parents[3] / "config"
EXAMPLE = CONFIG / "balancer.yaml"
RUNTIMES = CONFIG / "runtimes.yaml"
BOUNDED = ("a whole", "a number", "a size", "one of")


def all_settings() -> Iterator[tuple[str, FieldInfo]]:
    for model, prefix in (
        (Settings, ""),
        (InstanceSettings, "instances."),
        (GpuInstanceSettings, "gpu_instances."),
        (DeviceSettings, "provisioning.devices."),
    ):
        for path, field in leaves(model):
            yield prefix + ".".join(path), field


def given_keys(data: object, prefix: str = "") -> Iterator[str]:
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield prefix + name
            yield from given_keys(value, f"{prefix}{name}.")
    elif isinstance(data, list):
        for item in data:
            yield from given_keys(item, prefix)


def test_schema_file_is_current() -> None:
    """If not: python -m balancer.settings.json_schema > config/balancer.schema.json"""
    assert schema_text() == (CONFIG / "balancer.schema.json").read_text()


def test_schema_is_valid_and_takes_the_examples() -> None:
    schema = json.loads(schema_text())
    Draft202012Validator.check_schema(schema)

    for name in ("balancer.yaml", "gpu_instances.yaml", "runtimes.yaml"):
        Draft202012Validator(schema).validate(yaml.safe_load((CONFIG / name).read_text()))


@pytest.mark.parametrize(
    "data",
    [
        {"strateg": "random"},
        {"strategy": "clairvoyant"},
        {"listen": 5},
        {"instances": [{"name": "a"}]},
        {"instances": [{"url": "http://a", "slots": 0}]},
        {"gpu_instances": [{"gpu_id": 0, "port": 70000}]},
        {"limits": {"body_bytes": 1}},
        {"limits": {"body_bytes": "7XB"}},
        {"health": {"interval_seconds": 0}},
        {"runtimes": {"ollama": {"environment": {"OLLAMA_HOST": "0.0.0.0"}}}},
        {"runtimes": {"vllm": {"models": [{"name": "a"}]}}},
        {"runtimes": {"vllm": {"models": [{"name": "a", "path": "/a", "memory_share": 1}]}}},
    ],
)
def test_schema_refuses_what_the_loader_refuses(data: dict[str, object]) -> None:
    assert not Draft202012Validator(json.loads(schema_text())).is_valid(data)


def test_example_names_every_setting() -> None:
    given = set(given_keys(yaml.safe_load(EXAMPLE.read_text())))

    assert set() == {name for name, _ in all_settings()} - given


def test_example_holds_the_defaults() -> None:
    shown = {"instances": True, "gpu_instances": True, "provisioning": {"devices"}}

    assert Settings().model_dump(exclude=shown) == load([EXAMPLE], environ={}).model_dump(exclude=shown)


def test_example_tells_meaning_and_range_of_every_setting() -> None:
    text = " ".join(line.strip().lstrip("# ") for line in EXAMPLE.read_text().splitlines())

    for name, field in all_settings():
        assert field.description, name
        assert field.description in text, name
        if allowed_by(field).startswith(BOUNDED):
            assert allowed_by(field)[1:] in text, name


def test_runtimes_example_tells_every_setting_of_a_served_model() -> None:
    given = set(given_keys(yaml.safe_load(RUNTIMES.read_text())))
    text = " ".join(line.strip().lstrip("# ") for line in RUNTIMES.read_text().splitlines())

    for name, field in ServedModelSettings.model_fields.items():
        assert f"runtimes.vllm.models.{name}" in given
        assert field.description is not None
        assert field.description in text, name
        if allowed_by(field).startswith(BOUNDED):
            assert allowed_by(field)[1:] in text, name


def test_example_tells_what_has_no_effect_yet() -> None:
    text = " ".join(line.strip().lstrip("# ") for line in EXAMPLE.read_text().splitlines())

    for name, feature in PENDING.items():
        field = field_at(Settings, tuple(name.split(".")))
        assert field is not None, name
        assert f"{field.description} {pending_note(feature)}" in text
    assert text.count(pending_note("")[:-1]) == len(PENDING)


def test_every_number_has_bounds() -> None:
    for name, field in all_settings():
        if allowed_by(field).startswith(("a whole", "a number", "a size")):
            assert " to " in allowed_by(field), name


def test_every_size_and_duration_names_its_unit() -> None:
    for name, field in all_settings():
        if is_size(field) and name != "gpu_instances.memory_limit":
            assert name.endswith("_bytes")
        if "seconds" in (field.description or "").partition(".")[0] and "in seconds" in (
            field.description or ""
        ):
            assert name.endswith("_seconds")


def test_every_example_loads_alone_and_together() -> None:
    names = ("gpu_loadbalancing.ini", "gpu_instances.yaml", "runtimes.yaml")
    files = [CONFIG / name for name in names]

    for file in (*files, EXAMPLE):
        load([file], environ={})
    load(files, environ={}, dotenv=CONFIG / ".env.example")


def test_gpu_section_and_environment_examples_name_every_key() -> None:
    section = (CONFIG / "gpu_loadbalancing.ini").read_text()
    variables, _ = read_dotenv((CONFIG / ".env.example").read_text(), ".env.example")

    assert all(f"\n{key} = " in section for key in INI_KEYS)
    assert set(VARIABLES) == set(variables)
