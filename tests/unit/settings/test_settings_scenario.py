"""The example of a scenario loads, says everything, and matches the schema that lies beside it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic.fields import FieldInfo

from balancer.settings.groups import Group
from balancer.settings.json_schema import scenario_schema_text
from balancer.settings.scenario import Scenario
from balancer.settings.tree import allowed_by, group_of, item_model
from balancer.simulator.virtual.scenario_file import load_scenario, standard_scenarios

CONFIG = Path(__file__).parents[3] / "config"
EXAMPLE = CONFIG / "scenario.yaml"
SCENARIOS = Path(__file__).parents[3] / "balancer" / "simulator" / "scenarios"
BOUNDED = ("a whole", "a number", "a size", "one of")


def all_settings(model: type[Group] = Scenario, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field
        below = group_of(field) or item_model(field)
        if below is not None:
            yield from all_settings(below, f"{prefix}{name}.")


def given_keys(data: object, prefix: str = "") -> Iterator[str]:
    if isinstance(data, dict):
        for name, value in data.items():
            yield prefix + name
            yield from given_keys(value, f"{prefix}{name}.")
    elif isinstance(data, list):
        for item in data:
            yield from given_keys(item, prefix)


def told() -> str:
    return " ".join(line.strip().lstrip("# ") for line in EXAMPLE.read_text().splitlines())


def test_scenario_schema_file_is_current() -> None:
    """If not: python -m balancer.settings.json_schema scenario > config/scenario.schema.json"""
    assert scenario_schema_text() == (CONFIG / "scenario.schema.json").read_text()


def test_scenario_schema_takes_the_example_and_every_standard_scenario() -> None:
    schema = json.loads(scenario_schema_text())
    Draft202012Validator.check_schema(schema)

    for path in (EXAMPLE, *(SCENARIOS / f"{name}.yaml" for name in standard_scenarios())):
        Draft202012Validator(schema).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "change",
    [
        {"requests": 0},
        {"models": [{"name": "a"}]},
        {"devices": [{"gpu": "RTX 4090", "memory": 1}]},
        {"workload": {"load": 0.5}},
        {"workload": {"populations": [{"kind": "crowd"}]}},
        {"faults": [{"kind": "kill", "at_seconds": 1, "seconds": 0}]},
        {"instances": {"slots": "4"}},
    ],
)
def test_scenario_schema_refuses_what_the_loader_refuses(change: dict[str, object]) -> None:
    sound = yaml.safe_load((SCENARIOS / "overload.yaml").read_text())
    validator = Draft202012Validator(json.loads(scenario_schema_text()))

    assert validator.is_valid(sound)
    assert not validator.is_valid(sound | change)


def test_scenario_example_names_every_setting() -> None:
    given = set(given_keys(yaml.safe_load(EXAMPLE.read_text())))

    assert {name for name, _ in all_settings()} == given


def test_scenario_example_holds_the_defaults() -> None:
    example = load_scenario(EXAMPLE)

    for group in ("instances", "noise", "objectives"):
        assert Scenario.model_fields[group].get_default(call_default_factory=True) == getattr(example, group)
    for model, holder in ((Scenario, example), (type(example.workload), example.workload)):
        for name, field in model.model_fields.items():
            if not field.is_required() and item_model(field) is None and group_of(field) is None:
                assert field.default == getattr(holder, name), name


def test_scenario_example_tells_meaning_and_range_of_every_setting() -> None:
    text = told()

    for name, field in all_settings():
        assert field.description, name
        assert field.description in text, name
        if allowed_by(field).startswith(BOUNDED):
            assert allowed_by(field)[1:] in text, name


def test_every_number_of_a_scenario_has_bounds() -> None:
    for name, field in all_settings():
        if allowed_by(field).startswith(("a whole", "a number", "a size")):
            assert " to " in allowed_by(field), name
