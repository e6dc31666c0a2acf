"""The fleet's lists, merged from what each instance lists; rows pass as the instances sent them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from balancer.core.names import canonical_name, namespace_of

Row = Mapping[str, object]

_FRACTION = re.compile(r"\.(\d{1,6})\d*")


def merge_tags(lists: Iterable[Iterable[Row]]) -> dict[str, object]:
    """`/api/tags` of the fleet: each model once, newest first. Where instances disagree on a name, the
    row of the first of them stands, and so does its order within one second.

    Source: Ollama v0.33 server/routes.go sorts its lists by whole seconds."""
    rows: dict[str, Row] = {}
    for models in lists:
        for row in models:
            rows.setdefault(canonical_name(str(row["name"])), row)
    newest_first = sorted(rows.values(), key=lambda row: int(timestamp(row.get("modified_at"))), reverse=True)
    return {"models": newest_first}


def merge_ps(lists: Iterable[Iterable[Row]]) -> dict[str, object]:
    """`/api/ps` of the fleet: one row a runner, so a model that is resident twice stands there
    twice; the latest to expire first."""
    rows = [row for runners in lists for row in runners]
    rows.sort(key=lambda row: int(timestamp(row.get("expires_at"))), reverse=True)
    return {"models": rows}


def openai_models(tags: Sequence[Row]) -> dict[str, object]:
    """`/v1/models` made of `/api/tags`. Source: Ollama v0.33 openai/openai.go, ToListCompletion;
    `data` is null there for an empty list."""
    return {"object": "list", "data": [openai_model(str(row["name"]), row) for row in tags] or None}


def openai_model(name: str, row: Row) -> dict[str, object]:
    """One item of `/v1/models`, under the name that was asked for. Source: as above, ToModel."""
    return {
        "id": name,
        "object": "model",
        "created": int(timestamp(row.get("modified_at"))),
        "owned_by": namespace_of(name),
    }


def lowest_version(versions: Iterable[str]) -> str | None:
    """The lowest of the versions: what every instance can do. None where there are none."""
    return min(versions, key=_version_key, default=None)


def timestamp(value: object) -> float:
    """Seconds since the epoch of an RFC 3339 time with up to nanoseconds; 0 for anything else."""
    if not isinstance(value, str):
        return 0.0
    try:
        return datetime.fromisoformat(_FRACTION.sub(r".\1", value)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _version_key(version: str) -> tuple[tuple[int, ...], bool, str]:
    """By the numbers; a release candidate stands before its release."""
    numbers = tuple(int(number) for number in re.findall(r"\d{1,9}", version)[:3])
    return numbers, "-rc" not in version, version
