"""What is wrong with a configuration, told so that it can be put right: `Fault` is one line of it,
`SettingsError` carries all of them, and `explain` turns a validation error of the schema into a
problem and what is allowed instead. No values of credentials are quoted.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic_core import ErrorDetails

from balancer.settings.groups import Group
from balancer.settings.tree import Location, allowed_by, field_at, item_model
from balancer.settings.values import REFUSAL, shown

WHOLE_FILE = "(file)"

_PROBLEMS = (
    (("int",), "is not a whole number"),
    (("float", "finite"), "is not a number"),
    (("bool",), "is neither true nor false"),
    (("enum", "literal"), "is not known"),
    (("string",), "is not text"),
    (("list", "tuple"), "is not a list"),
    (("model", "dict"), "is not a mapping"),
    (("greater", "less"), "is out of range"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong: where it was said, under which key, what is wrong, and what is allowed.

    `source` is a file as it was named, `environment`, or `command line`; `key` is `(file)` when the
    file as a whole is meant.
    """

    source: str
    key: str
    problem: str
    allowed: str

    def __str__(self) -> str:
        text = f"{self.source}: {self.key}: {self.problem}, {self.allowed}"
        return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    """A character, or how Python writes it: a key may hold anything, and a fault is one line."""
    return character if character.isprintable() else ascii(character)[1:-1]


class SettingsError(Exception):
    """The configuration cannot be used; `faults` names everything wrong with it, `str()` one a line."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


def unknown(key: str, known: Iterable[str]) -> tuple[str, str]:
    """Problem and what is allowed for a key that nothing reads, with the closest known ones."""
    names = sorted(known)
    folded: dict[str, str] = {}
    for name in names:
        folded.setdefault(name.lower(), name)
    if exact := folded.get(key.lower()):
        return "unknown key", f"did you mean {exact!r}?"
    close = [folded[each] for each in difflib.get_close_matches(key.lower()[:100], folded, n=2, cutoff=0.6)]
    if close:
        return "unknown key", f"did you mean {' or '.join(repr(each) for each in close)}?"
    if len(names) > 40:
        return "unknown key", "nothing known is close to it"
    return "unknown key", f"known are {', '.join(names)}"


def explain(error: ErrorDetails, model: type[Group]) -> tuple[str, str]:
    """Problem and what is allowed for one validation error of `model`."""
    kind, location = error["type"], error["loc"]
    field = field_at(model, location)
    context = error.get("ctx", {})
    if kind == "extra_forbidden":
        parent = _item_at(model, location)
        return unknown(str(location[-1]), parent.model_fields if parent else ())
    allowed = allowed_by(field) if field else "another value"
    if field and isinstance(location[-1], int) and (item := item_model(field)):
        allowed = f"a mapping with {', '.join(item.model_fields)}"
    if kind == REFUSAL:
        return str(context["problem"]), str(context["allowed"] or allowed)
    if kind == "missing":
        return "is missing", allowed
    for prefixes, problem in _PROBLEMS:
        if kind.startswith(prefixes):
            return f"{shown(error['input'])} {problem}", allowed
    return f"{shown(error['input'])} is not valid", allowed


def _item_at(model: type[Group], location: Location) -> type[Group] | None:
    """The model of the list item that a location ends in."""
    field = field_at(model, location[:-2])
    return item_model(field) if field else None
