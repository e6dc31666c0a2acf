"""What is learned of one instance from the answers that it gives: rates, slots, and whether others use it.

Dispatch's and accounting's side tells when a request is sent, when its answer begins and how it ended; what
an instance counted is believed only of whole answers. Rates go into the fleet's rate book.
"""

from typing import NamedTuple

from balancer.core.names import ModelName
from balancer.core.rates import Rates
from balancer.core.ticket import Ticket
from balancer.fleet.courses import Course, Courses
from balancer.fleet.learned_slots import LearnedSlots, has_waited
from balancer.fleet.rates import RateBook, Work

_LIMIT = 256
_BATCH_TOKENS = 512
"""A runner's default num_batch. Source: Ollama v0.33 api/types.go."""
_COOLING_UNKNOWN_SECONDS = 0.25
_COOLING_LONGEST_SECONDS = 5.0


class _Runner(NamedTuple):
    courses: Courses
    slots: LearnedSlots


class Learned:
    """Of the instance at that URL. `book` is shared by the instances of a fleet."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.book = RateBook()
        self._runners: dict[ModelName, _Runner] = {}

    @property
    def shared(self) -> bool:
        """Whether others send it requests, too."""
        return any(each.slots.shared for each in self._runners.values())

    def slots(self, model: ModelName, told: int | None) -> int:
        """How many slots of a model's runner to use where so many were told; see `LearnedSlots.slots`."""
        runner = self._runners.get(model)
        return runner.slots.slots(told) if runner is not None else told or 1

    def slots_learned(self, model: ModelName) -> int | None:
        """How many a runner turned out to have, None where that is what was told."""
        runner = self._runners.get(model)
        return runner.slots.limit if runner is not None else None

    def rates(self, model: ModelName) -> Rates | None:
        """How fast a model's runner works here; as elsewhere where nothing was measured here."""
        return self.book.rates(self._url, model)

    def load_seconds(self, model: ModelName, size_bytes: int) -> float:
        """How long to load a model of that size is expected to take."""
        return self.book.load_seconds(self._url, model, size_bytes)

    def output_tokens(self, model: ModelName) -> float | None:
        """As `RateBook.output_tokens`."""
        return self.book.output_tokens(model)

    def remaining_tokens(self, model: ModelName, emitted: float) -> float | None:
        """As `RateBook.remaining_tokens`."""
        return self.book.remaining_tokens(model, emitted)

    def cooling_seconds(self, ticket: Ticket) -> float:
        """How long a runner goes on with a prompt that was cancelled: it stops at the end of a batch.
        Source: observed on Ollama v0.33, 2 s to 3 s at 175 tokens/s."""
        variant = ticket.variant
        rates = self.rates(variant.model) if variant is not None else None
        if variant is None or rates is None:
            return _COOLING_UNKNOWN_SECONDS
        asked = dict(variant.options).get("num_batch")
        batch = asked if isinstance(asked, int) and asked > 0 else _BATCH_TOKENS
        tokens = batch if ticket.prompt_tokens is None else min(batch, ticket.prompt_tokens)
        return min(rates.prefill_seconds(tokens), _COOLING_LONGEST_SECONDS)

    def prefill_seconds(self, ticket: Ticket) -> float:
        """How long its prompt takes with nothing of it cached, by what was measured; 0 where nothing was."""
        rates = self.rates(ticket.variant.model) if ticket.variant is not None else None
        return rates.prefill_seconds(ticket.prompt_tokens or 0) if rates is not None else 0.0

    def begin(self, model: ModelName, now: float, *, streams: bool, sharing: int) -> Course:
        """A request for a model is sent; see `Courses.begin`."""
        runner = self._runners.get(model)
        if runner is None:
            self._make_place()
            runner = self._runners[model] = _Runner(Courses(), LearnedSlots())
        return runner.courses.begin(now, streams=streams, sharing=sharing)

    def learn_load(self, model: ModelName, seconds: float) -> None:
        """A load took so long, from when it was decided."""
        self.book.learn_load(self._url, model, seconds)

    def learn(
        self,
        model: ModelName,
        course: Course,
        work: Work | None,
        now: float,
        *,
        left: bool,
        sharing: int,
        told: int | None,
        generation: int,
    ) -> None:
        """A request has ended; `work` tells of it where its answer was whole and the instance is still in the
        same life, and with `left` it was given up. `told` is how many slots its runner has, as for `slots`,
        and `generation` which runner it is."""
        company = course.end(now, left=left, sharing=sharing)
        if work is None:
            return
        self.book.learn(self._url, model, work, company)
        runner = self._runners[model]
        if work.left_over_seconds is None or work.prompt_seconds is None:
            return
        runner.slots.learn(
            waited=has_waited(
                work.left_over_seconds,
                work_seconds=work.prompt_seconds + (work.output_seconds or 0.0),
                asked_tokens=work.asked_tokens,
            ),
            proof=course.proof,
            possible=course.possible,
            told=told,
            generation=generation,
            now=now,
        )

    def forget_strangers(self, now: float) -> bool:
        """Whether strangers that were met are gone for long enough, for which their slots are used again."""
        return sum(each.slots.forget_strangers(now) for each in self._runners.values()) > 0

    def _make_place(self) -> None:
        """For one more runner: forget the oldest that runs nothing."""
        if len(self._runners) >= _LIMIT:
            idle = next((model for model, each in self._runners.items() if not len(each.courses)), None)
            if idle is not None:
                del self._runners[idle]
