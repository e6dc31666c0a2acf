"""Settings from environment variables: `BALANCER_*` by path with `__` between the levels, lists and
groups as JSON, and the `GPU_*` and `MODEL_POOL_*` synonyms; both also from a `.env` file. A variable
that is set but empty counts as not set. Variables of other programs are left alone.
"""

import re
from collections.abc import Iterator, Mapping
from io import StringIO

from dotenv.parser import parse_stream

from balancer.settings.faults import Fault, unknown
from balancer.settings.layers import Layer, from_text, judged
from balancer.settings.schema import Settings
from balancer.settings.synonyms import GIB_VARIABLES, VARIABLES
from balancer.settings.tree import Entry, Path, field_at, is_optional, leaves
from balancer.settings.values import shown

ENVIRONMENT = "environment"
PREFIX = "BALANCER_"
_CONCERNING = (PREFIX, "GPU_", "MODEL_POOL_")
# Kubernetes puts these into every pod beside a Service of the name 'balancer'.
_SERVICE_LINK = re.compile(
    r"BALANCER_(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)\Z"
)
_NAME = re.compile(r"\s*(?:export\s+)?['\"]?(\w+)")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?\Z")


def variable(path: Path) -> str:
    """The environment variable of a setting."""
    return PREFIX + "__".join(path).upper()


def read_dotenv(text: str, source: str) -> tuple[dict[str, str], list[Fault]]:
    """The variables of a `.env` text that may concern the balancer, the last of a name, and a fault for
    each line that begins with such a name and cannot be read. No value is quoted: it may be a key."""
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for each in parse_stream(StringIO(text)):
        if each.error:
            name = _NAME.match(each.original.string)
            if name and name.group(1).startswith(_CONCERNING):
                line = each.original.line + name.group().count("\n")
                told = f"line {line}: cannot be read", "NAME=value, with quotes closed"
                faults.append(Fault(source, shown_name(name.group(1)), *told))
        elif each.key is not None and each.key.startswith(_CONCERNING):
            found[each.key] = each.value or ""
    return found, faults


def own_layer(variables: Mapping[str, str], source: str) -> Layer:
    """The layer of the `BALANCER_*` variables."""
    return judged(_own(variables, source), Settings)


def synonym_layer(variables: Mapping[str, str], source: str) -> Layer:
    """The layer of the `GPU_*` and `MODEL_POOL_*` variables."""
    return judged(_synonyms(variables, source), Settings)


def _own(variables: Mapping[str, str], source: str) -> Iterator[Entry | Fault]:
    known: dict[str, Path] = {}
    for path, _ in leaves(Settings):
        for depth in range(1, len(path) + 1):
            known[variable(path[:depth])] = path[:depth]
    # Sorted, so that a whole group comes before single settings of it, which win.
    for name in sorted(variables):
        text = variables[name]
        if not name.startswith(PREFIX) or _SERVICE_LINK.match(name) or not text.strip():
            continue
        path = known.get(name.upper(), ())
        if path:
            yield from from_text(text, Settings, path, source, name)
        else:
            yield Fault(source, shown_name(name), *unknown(name, known))


def _synonyms(variables: Mapping[str, str], source: str) -> Iterator[Entry | Fault]:
    for name, path in VARIABLES.items():
        text = variables.get(name, "").strip()
        field = field_at(Settings, path)
        if not text or field is None or (text.lower() in ("null", "none") and not is_optional(field)):
            continue
        if name not in GIB_VARIABLES:
            yield from from_text(text, Settings, path, source, name)
        elif _NUMBER.match(text):
            yield Entry(path, f"{text} GiB", source, name)
        else:
            yield Fault(source, name, f"{shown(text)} is not a number", "a number of GiB, such as 1.5")


def shown_name(name: str) -> str:
    """A variable's name as a fault quotes it."""
    return name[:100] if name.isprintable() else ascii(name)[1:-1][:100]
