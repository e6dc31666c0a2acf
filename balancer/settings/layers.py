"""One source of settings as a layer: its values under the schema's paths, each judged by itself, with a
fault for whatever cannot be used. What is left of a faulty list stays usable, so that the rules between
settings can still be checked and every fault be told at once. Layers are merged by `sources`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from balancer.settings.faults import Fault, explain, unknown
from balancer.settings.groups import Group
from balancer.settings.tree import (
    Entry,
    Location,
    Path,
    allowed_by,
    field_at,
    group_of,
    is_list,
    is_optional,
    item_model,
    leaves,
    nest,
)

_NO_VALUE = frozenset(("", "null", "none"))


@dataclass(frozen=True, slots=True)
class Layer:
    """The usable entries of one source, its faults, and the paths that it broke."""

    entries: tuple[Entry, ...] = ()
    faults: tuple[Fault, ...] = ()
    broken: frozenset[Path] = frozenset()


def judged(found: Iterable[Entry | Fault], model: type[Group]) -> Layer:
    """A layer of what a reader found: every entry validated, the faulty ones told and left out."""
    usable: list[Entry] = []
    faults: list[Fault] = []
    broken: set[Path] = set()
    for each in found:
        if isinstance(each, Fault):
            faults.append(each)
            continue
        entry, wrong = _judge(each, model)
        faults.extend(wrong)
        if entry is None:
            broken.add(each.path)
        else:
            usable.append(entry)
    return Layer(tuple(usable), tuple(faults), frozenset(broken))


def missing(layer: Layer, model: type[Group], source: str) -> Iterator[Fault]:
    """A fault for each setting of the model that must be there and that the layer does not have, unless it or
    a group around it is at fault already."""
    given = {entry.path for entry in layer.entries} | layer.broken
    faulty = {fault.key for fault in layer.faults}
    for path, field in leaves(model):
        around = (".".join(path[:depth]) for depth in range(1, len(path)))
        if field.is_required() and path not in given and faulty.isdisjoint(around):
            yield Fault(source, ".".join(path), "is missing", allowed_by(field))


def flatten(
    data: Mapping[str, object], model: type[Group], source: str, *, key: str = "", path: Path = ()
) -> Iterator[Entry | Fault]:
    """The entries of nested data under a model at `path`, and a fault for each unknown key."""
    for name, value in data.items():
        label = f"{key}.{name}" if key else name
        field = model.model_fields.get(name)
        if field is None:
            yield Fault(source, label, *unknown(name, model.model_fields))
            continue
        group = group_of(field)
        if group is None:
            yield Entry((*path, name), value, source, label)
        elif isinstance(value, Mapping):
            yield from flatten(value, group, source, key=label, path=(*path, name))
        elif value is not None:  # a group with nothing under it is fine
            yield Fault(source, label, "is not a mapping", allowed_by(field))


def from_text(text: str, model: type[Group], path: Path, source: str, key: str) -> Iterator[Entry | Fault]:
    """The entries of a value given as text: a list or a group in JSON, anything else as it stands.

    `null` stands for no value where there may be none.
    """
    field = field_at(model, path)
    assert field is not None, "the path is known"
    group = group_of(field)
    if group is not None:
        data = _json(text, "{")
        if isinstance(data, dict):
            yield from flatten(data, group, source, key=key, path=path)
        else:
            yield Fault(source, key, "is not a JSON object", f"{allowed_by(field)}, as JSON")
        return
    yield from _leaf_from_text(text, field, path, source, key)


def _leaf_from_text(
    text: str, field: FieldInfo, path: Path, source: str, key: str
) -> Iterator[Entry | Fault]:
    if is_optional(field) and text.strip().lower() in _NO_VALUE:
        yield Entry(path, None, source, key)
    elif not is_list(field) or (path == ("drop_dir",) and not text.lstrip().startswith("[")):
        yield Entry(path, text, source, key)
    else:
        data = _json(text, "[")
        if data is None:
            yield Fault(source, key, "is not a JSON list", 'a list in JSON, such as ["…", "…"], [] for none')
        else:
            yield Entry(path, data, source, key)


def _json(text: str, opening: str) -> object:
    """JSON data that begins with a bracket, None for anything else."""
    if not text.lstrip().startswith(opening):
        return None
    try:
        data: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data


def _judge(entry: Entry, model: type[Group]) -> tuple[Entry | None, list[Fault]]:
    try:
        model.model_validate(nest([entry]))
    except ValidationError as error:
        faults: list[Fault] = []
        locations: list[Location] = []
        for each in error.errors(include_url=False):
            if each["type"] == "default_factory_not_called":
                continue  # follows from another error, which is told
            if each["loc"][: len(entry.path)] != entry.path:
                continue  # another setting that must be there: `missing` tells of those
            rest = each["loc"][len(entry.path) :]
            locations.append(rest)
            faults.append(Fault(entry.source, entry.label(rest), *explain(each, model)))
        if not faults:
            return entry, []
        field = field_at(model, entry.path)
        return (_pruned(entry, field, locations) if field else None), faults
    return entry, []


def _pruned(entry: Entry, field: FieldInfo, locations: Iterable[Location]) -> Entry | None:
    """A list without its unusable items, and items without unusable values that they can do without."""
    if not isinstance(entry.value, list | tuple):
        return None
    items: list[object] = list(entry.value)
    item = item_model(field)
    dropped: set[int] = set()
    for location in locations:
        if not location or not isinstance(location[0], int):
            return None
        index, rest = location[0], location[1:]
        content = items[index]
        name = rest[0] if rest else None
        known = item.model_fields.get(str(name)) if item and name is not None else None
        if isinstance(content, dict) and name is not None and not (known and known.is_required()):
            items[index] = {key: value for key, value in content.items() if key != name}
        else:
            dropped.add(index)
    kept = tuple(index for index in range(len(items)) if index not in dropped)
    return replace(entry, value=[items[index] for index in kept], indices=kept)
