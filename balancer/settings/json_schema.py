"""The JSON Schema of a configuration file and that of a scenario, for editors and other tools. `python -m
balancer.settings.json_schema` prints the first, with `scenario` behind it the second;
`config/balancer.schema.json` and `config/scenario.schema.json` hold the results. They describe single values;
the rules between several settings are checked where files are read.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from balancer.settings.groups import Group
from balancer.settings.scenario import Scenario
from balancer.settings.schema import PENDING
from balancer.settings.synonyms import FileSettings
from balancer.settings.tree import bounds, group_of, is_optional, is_size, item_model
from balancer.settings.values import Address

_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum"}
_SIZE_TEXT = r"^[0-9]+(\.[0-9]+)? ?([kKmMgGtT][iI]?)?[bB]?$"


def schema_text() -> str:
    """The configuration's schema as JSON, with a line end; the same for the same settings."""
    schema = _schema(FileSettings, "Configuration of the Ollama Balancer")
    for name, feature in PENDING.items():
        group, _, key = name.rpartition(".")
        described = schema["$defs"][_group(group).__name__] if group else schema
        described["properties"][key]["description"] += f" {pending_note(feature)}"
    instances = schema["properties"]["instances"]
    instances["items"] = {"anyOf": [instances["items"], {"type": "string", "description": "its URL"}]}
    return _text(schema)


def scenario_schema_text() -> str:
    """The same of a scenario."""
    return _text(_schema(Scenario, "Scenario of the Ollama Balancer's simulation"))


def pending_note(feature: str) -> str:
    """The sentence that tells of a setting that it has no effect yet."""
    return f"Accepted; takes effect with {feature}."


def _group(name: str) -> type[Group]:
    group = group_of(FileSettings.model_fields[name])
    assert group is not None, f"{name} is no group of settings"
    return group


def _schema(root: type[Group], title: str) -> dict[str, Any]:
    schema = root.model_json_schema()
    for model in _models(root):
        described = schema if model is root else schema["$defs"][model.__name__]
        for name, field in model.model_fields.items():
            properties = described["properties"]
            properties[name] = _corrected(properties[name], field)
    schema["title"] = title
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _models(model: type[Group]) -> Iterator[type[Group]]:
    yield model
    for field in model.model_fields.values():
        below = group_of(field) or item_model(field)
        if below is not None:
            yield from _models(below)


def _corrected(generated: dict[str, object], field: FieldInfo) -> dict[str, object]:
    """A field's schema with what generation gets wrong put right: addresses as text, sizes with a unit."""
    corrected = {key: value for key, value in generated.items() if key != "title"}
    corrected["description"] = field.description
    forms = corrected.get("anyOf")
    for form in forms if isinstance(forms, list) else []:
        form |= {keyword: form.pop(bound) for bound, keyword in _BOUNDS.items() if bound in form}
    if isinstance(field.default, Address):
        corrected["default"] = str(field.default)
    if is_size(field):
        low, _, high = bounds(field)
        sizes: list[object] = [
            {"type": "integer", "minimum": low, "maximum": high},
            {"type": "string", "pattern": _SIZE_TEXT},
        ]
        corrected = {key: corrected[key] for key in ("default", "description") if key in corrected}
        corrected["anyOf"] = [*sizes, {"type": "null"}] if is_optional(field) else sizes
    return corrected


if __name__ == "__main__":
    print(scenario_schema_text() if sys.argv[1:] == ["scenario"] else schema_text(), end="")
