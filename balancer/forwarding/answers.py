"""Answers that need no instance now: merged lists from the newest inventories, versions, health.

A dead instance cannot slow them: a list is asked for anew where it is not fresh, but waited for only
a moment, and what an instance said last stands in for what it does not say now.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from balancer.core.names import canonical_name
from balancer.errors import NoInstance, UnknownModel
from balancer.fleet.fleet import Fleet
from balancer.protocol.headers import Headers
from balancer.protocol.lists import (
    Row,
    lowest_version,
    merge_ps,
    merge_tags,
    openai_model,
    openai_models,
)
from balancer.protocol.parse import estimate_prompt_tokens
from balancer.protocol.routes import Match
from balancer.protocol.translation.shapes import API_VERSION

_TEXT: Headers = (("Content-Type", "text/plain; charset=utf-8"),)
_JSON: Headers = (("Content-Type", "application/json; charset=utf-8"),)
_OPENAI_JSON: Headers = (("Content-Type", "application/json"),)
_RETRY: Headers = (("Retry-After", "1"),)
_ESTIMATE: Headers = (*_OPENAI_JSON, ("X-Balancer-Estimate", "true"))

FRESH_SECONDS = 0.25
WAIT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes


Refresh = Callable[[float, float], Awaitable[None]]
"""Bring lists older than so many seconds up to date, waiting for at most so many."""


class Answers:
    """Answers the routes whose treatment is `answered` or `merged`."""

    def __init__(
        self, *, fleet: Fleet, refresh: Refresh, waiting: Callable[[], int], stopping: Callable[[], bool]
    ) -> None:
        self._fleet = fleet
        self._refresh = refresh
        self._waiting = waiting
        self._stopping = stopping

    async def answer(self, match: Match, body: bytes) -> Answer:
        """The answer of a route. Raises UnknownModel, MalformedRequest, NoInstance."""
        match match.route.path:
            case "/":
                return Answer(200, _TEXT, b"Ollama is running")
            case "/livez":
                return Answer(200, _TEXT, b"ok")
            case "/readyz":
                return self._ready()
            case "/health":
                return self._health()
            case "/api/version":
                return self._version()
            case "/v1/messages/count_tokens":
                return _json({"input_tokens": estimate_prompt_tokens(body)}, _ESTIMATE)
            case _:
                return await self._list(match)

    async def _list(self, match: Match) -> Answer:
        await self._refresh(FRESH_SECONDS, WAIT_SECONDS)
        if not self._fleet.usable():
            raise NoInstance("no instance is usable now", retry_after_seconds=1.0)
        match match.route.path:
            case "/api/tags":
                return _json(merge_tags(self._models()))
            case "/api/ps":
                return _json(merge_ps(self._runners()))
            case "/v1/models":
                return _json(openai_models(_rows(merge_tags(self._models()))), _OPENAI_JSON)
            case _:
                return self._model(match.parameter or "")

    def _model(self, name: str) -> Answer:
        wanted = canonical_name(name)
        for row in _rows(merge_tags(self._models())):
            if canonical_name(str(row["name"])) == wanted:
                return _json(openai_model(name, row), _OPENAI_JSON)
        raise UnknownModel(name)

    def _models(self) -> list[Sequence[Row]]:
        return [list(each.inventory.models.values()) for each in self._fleet.usable() if each.inventory]

    def _runners(self) -> list[Sequence[Row]]:
        return [
            [runner.row for runner in each.inventory.runners.values()]
            for each in self._fleet.usable()
            if each.inventory
        ]

    def _version(self) -> Answer:
        ollamas = [each for each in self._fleet.instances() if each.is_ollama]
        if not ollamas and self._fleet.usable():
            return _json({"version": API_VERSION})
        usable = [each.version for each in ollamas if each.usable and each.version]
        version = lowest_version(usable or [each.version for each in ollamas if each.version])
        if version is None:
            raise NoInstance("no instance has answered yet", retry_after_seconds=1.0)
        return _json({"version": version})

    def _ready(self) -> Answer:
        usable = len(self._fleet.usable())
        text = f"{usable} of {len(self._fleet.instances())} instances usable"
        if self._stopping():
            usable, text = 0, "the balancer is being stopped"
        return Answer(200, _TEXT, text.encode()) if usable else Answer(503, _TEXT + _RETRY, text.encode())

    def _health(self) -> Answer:
        usable, total = len(self._fleet.usable()), len(self._fleet.instances())
        status = "ok" if usable == total else "degraded" if usable else "unavailable"
        if self._stopping():
            usable, status = 0, "stopping"
        body = {
            "status": status,
            "instances": {"usable": usable, "total": total},
            "models": len(self._fleet.models()),
            "requests_waiting": self._waiting(),
        }
        encoded = msgspec.json.encode(body)
        return Answer(200, _JSON, encoded) if usable else Answer(503, _JSON + _RETRY, encoded)


def _json(value: object, headers: Headers = _JSON) -> Answer:
    return Answer(200, headers, msgspec.json.encode(value))


def _rows(merged: dict[str, object]) -> list[Row]:
    rows = merged["models"]
    assert isinstance(rows, list)
    return rows
