"""The configuration as a tree of keys: walking the schema's groups, finding the field that a location
belongs to, telling in words what a field allows, and turning flat entries into nested data. Every
value travels as an `Entry`, which remembers where it was said, so that a fault can name its source.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from balancer.settings.groups import Group
from balancer.settings.values import parse_size

Path = tuple[str, ...]
Location = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of one setting, and where it was said.

    `indices` holds, for a list that lost unusable items, the place that each one left had at first.
    """

    path: Path
    value: object
    source: str
    key: str
    indices: tuple[int, ...] | None = None

    def label(self, rest: Location = ()) -> str:
        """The key as its author wrote it, followed by a location inside the value."""
        return self.key + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)

    def original(self, index: int) -> int:
        """The place that an item of the list had where it was written."""
        return index if self.indices is None else self.indices[index]


def group_of(field: FieldInfo) -> type[Group] | None:
    """The group that a field holds, None for a plain setting."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Group) else None


def item_model(field: FieldInfo) -> type[Group] | None:
    """The model of a list's items, None where the field is no list of models."""
    arguments = get_args(field.annotation) if get_origin(field.annotation) is tuple else ()
    first = arguments[0] if arguments else None
    return first if isinstance(first, type) and issubclass(first, Group) else None


def leaves(model: type[Group], prefix: Path = ()) -> Iterator[tuple[Path, FieldInfo]]:
    """Every plain setting below a model, with its path."""
    for name, field in model.model_fields.items():
        group = group_of(field)
        if group is None:
            yield (*prefix, name), field
        else:
            yield from leaves(group, (*prefix, name))


def field_at(model: type[Group], location: Location) -> FieldInfo | None:
    """The innermost field that a location runs through, None when it names none."""
    field: FieldInfo | None = None
    current: type[Group] | None = model
    for part in location:
        if isinstance(part, int):
            current = item_model(field) if field else None
            continue
        if current is None or part not in current.model_fields:
            return field
        field = current.model_fields[part]
        current = group_of(field)
    return field


def is_list(field: FieldInfo) -> bool:
    """Whether a setting takes a list."""
    return get_origin(field.annotation) is tuple


def is_optional(field: FieldInfo) -> bool:
    """Whether a setting may be null."""
    return NoneType in get_args(field.annotation) and get_origin(field.annotation) in (Union, UnionType)


def nest(entries: Iterable[Entry]) -> dict[str, object]:
    """Nested data of entries, a later one of the same path in place of an earlier one."""
    data: dict[str, object] = {}
    for entry in entries:
        here = data
        for part in entry.path[:-1]:
            below = here.setdefault(part, {})
            assert isinstance(below, dict), "a path runs through groups only"
            here = below
        here[entry.path[-1]] = entry.value
    return data


def allowed_by(field: FieldInfo) -> str:
    """In words, the values that a field takes."""
    kind, metadata = _base(field)
    group = group_of(field) or item_model(field)
    if group is not None:
        noun = "a list of mappings with" if is_list(field) else "a mapping with"
        return f"{noun} {', '.join(group.model_fields)}"
    ending = " or null" if is_optional(field) else ""
    if is_list(field):
        return "a list, [] for none"
    if kind is bool:
        return "true or false" + ending
    if kind in (int, float):
        return _range(kind is int, metadata) + ending
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(str(each.value) for each in kind) + ending
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind))) + ending
    sentence = (field.description or "another value").partition(". ")[0].rstrip(".")
    return sentence[:1].lower() + sentence[1:] + ending


def size_text(size: int) -> str:
    """A size in the largest binary unit that divides it."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"


def is_size(field: FieldInfo) -> bool:
    """Whether a setting is a size in bytes, which may be written with a unit."""
    return _is_size(_base(field)[1])


def bounds(field: FieldInfo) -> tuple[float | None, bool, float | None]:
    """Lower bound, whether it lies outside, and upper bound of a number."""
    return _bounds(_base(field)[1])


def _base(field: FieldInfo) -> tuple[object, list[object]]:
    kind: object = field.annotation
    metadata: list[object] = list(field.metadata)
    if is_optional(field):
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        metadata += more
    return kind, metadata


def _is_size(metadata: Iterable[object]) -> bool:
    return any(isinstance(each, BeforeValidator) and each.func is parse_size for each in metadata)


def _bounds(metadata: Iterable[object]) -> tuple[float | None, bool, float | None]:
    found: dict[str, float] = {}
    for each in metadata:
        for name in ("ge", "gt", "le"):
            bound = getattr(each, name, None)
            if isinstance(bound, int | float):
                found[name] = bound
    return found.get("ge", found.get("gt")), "gt" in found, found.get("le")


def _range(whole: bool, metadata: list[object]) -> str:
    low, outside, high = _bounds(metadata)
    sized = _is_size(metadata)
    noun = "a size" if sized else "a whole number" if whole else "a number"
    if low is None or high is None:
        return noun
    first, last = (size_text(int(each)) if sized else f"{each:.15g}" for each in (low, high))
    return f"{noun} above {first}, up to {last}" if outside else f"{noun} from {first} to {last}"
