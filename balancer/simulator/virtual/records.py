"""What a run writes down of each request: what it met on its way, and what others had said before it."""

from collections import defaultdict
from collections.abc import Callable
from math import nan
from typing import TypeVar

from balancer.core.names import ModelName
from balancer.core.ticket import Ticket
from balancer.simulator.virtual.instances import Served
from balancer.simulator.virtual.outcomes import PRIORITIES, Outcome, Outcomes
from balancer.simulator.virtual.work import Segment

_PROGRESS_EVERY = 250


class Tally:
    """What one request has met so far; `number` is that of its arrival, `answer` what it will be told."""

    __slots__ = (
        "answer",
        "arrived_at",
        "attempts",
        "inputs",
        "instance",
        "load_seconds",
        "number",
        "queued_seconds",
        "served",
    )

    def __init__(self, number: int, arrived_at: float, *, answer: Segment, inputs: int) -> None:
        self.number = number
        self.arrived_at = arrived_at
        self.answer = answer
        self.inputs = inputs
        self.attempts = 0
        self.instance = -1
        self.queued_seconds = 0.0
        self.load_seconds = 0.0
        self.served: Served | None = None


class Records:
    """The rows of a run. `on_progress` is told from time to time how many there are."""

    def __init__(self, on_progress: Callable[[int], None]) -> None:
        self.outcomes = Outcomes()
        self._on_progress = on_progress
        self._models: dict[ModelName, int] = {}
        self._clients: dict[str, int] = {}
        self._said: defaultdict[ModelName, dict[int, int]] = defaultdict(dict)

    def said(self, model: ModelName, marks: tuple[tuple[int, int], ...], number: int) -> None:
        """A request begins with these marks; the first to say one is remembered."""
        first = self._said[model]
        for mark, _ in reversed(marks):
            if first.setdefault(mark, number) != number:
                break  # and so was all that comes before it

    def add(self, ticket: Ticket, tally: Tally, outcome: Outcome, now: float) -> None:
        """A request has ended. An answer is part of what is known from now on."""
        assert ticket.variant is not None
        served = tally.served
        if served is not None:
            self._said[ticket.variant.model].setdefault(tally.answer[0], -1)
        self.outcomes.add(
            tally.arrived_at,
            _number(self._clients, ticket.client, self.outcomes.clients),
            _number(self._models, ticket.variant.model, self.outcomes.models),
            PRIORITIES.index(ticket.priority),
            outcome,
            tally.inputs > 0,
            ticket.prompt_tokens or 0,
            tally.answer[1],
            0 if tally.inputs else self._shared(ticket.variant.model, ticket.prefix, tally.number),
            served.cached_tokens if served else 0,
            served.first_byte_at - tally.arrived_at if served else nan,
            now - tally.arrived_at,
            tally.queued_seconds,
            tally.load_seconds,
            tally.attempts,
            tally.instance,
        )
        if len(self.outcomes) % _PROGRESS_EVERY == 0:
            self._on_progress(len(self.outcomes))

    def _shared(self, model: ModelName, marks: tuple[tuple[int, int], ...], number: int) -> int:
        """Tokens that somebody else has said first: of the longest such beginning."""
        first = self._said[model]
        return next((tokens for mark, tokens in reversed(marks) if first[mark] != number), 0)


Key = TypeVar("Key", bound=str)


def _number(numbers: dict[Key, int], name: Key, names: list[str]) -> int:
    if name not in numbers:
        numbers[name] = len(numbers)
        names.append(name)
    return numbers[name]
