"""What scores are made of: facts that were taken down when a decision looked, and formulas over facts alone.

So a score can be told term by term, and computed again, long after the fleet has gone on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import overload

import msgspec

from balancer.core.rates import Rates
from balancer.core.ticket import InstanceId, Ticket

Terms = Mapping[str, float]
CACHED_TOKENS = "cached_tokens"
"""What a strategy adds to the facts that knows how many tokens of a prompt need no evaluation."""
RATE_NAMES = tuple(each.name for each in fields(Rates))


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What of a request counts: an upper bound of its prompt's tokens, 0 where that is not known, and whether
    it needs a slot of a model's runner."""

    prompt_tokens: int
    needs_slot: bool

    @classmethod
    def by(cls, ticket: Ticket) -> "Asked":
        """What the ticket asks for."""
        return cls(ticket.prompt_tokens or 0, ticket.needs_slot and ticket.variant is not None)


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An instance as it was when a decision looked. `running` leases are out there, `running_of_model` of
    them for the model; `warm`: the variant needs no load, which else takes `load_seconds`; `sharing` runners
    work on its devices, the model's included. `rates` and `answer_tokens` are None where no answer has taught
    them; `slots` is None where no model is concerned."""

    id: InstanceId
    weight: float = 1.0
    health: float = 1.0
    running: int = 0
    running_of_model: int = 0
    slots: int | None = None
    warm: bool = True
    load_seconds: float = 0.0
    sharing: int = 1
    rates: Rates | None = None
    answer_tokens: float | None = None

    def new_tokens(self, asked: Asked, cached: float) -> float:
        """How many of the prompt are to be evaluated there; where the variant must be loaded, all."""
        return max(0, asked.prompt_tokens - cached) if self.warm else asked.prompt_tokens


@dataclass(frozen=True, slots=True)
class Formula:
    """How a score is made. `parts` of a candidate add up to it, the lower the better; the third argument is
    what the strategy itself knows of the candidate: `own_fact` names it, None where that is nothing. `names`
    has the names of the parts for each number of them that there can be. `because` says in a short phrase why
    the candidate of that index was taken."""

    parts: Callable[[Asked, Candidate, float], tuple[float, ...]]
    names: Sequence[Sequence[str]]
    because: Callable[["Scores", int], str]
    own_fact: str | None = None
    tie: float = 1.0
    """Scores within this factor of the best are as good as that."""

    def terms(self, asked: Asked, candidate: Candidate, own: float) -> Terms:
        """The parts by their names."""
        parts = self.parts(asked, candidate, own)
        return dict(zip(next(each for each in self.names if len(each) == len(parts)), parts, strict=True))


class Scores(Sequence[Terms]):
    """The scores of candidates, in their order, in `values`; as a sequence the terms of each, which are
    computed when they are asked for. `own` has a number for each where the formula wants one."""

    __slots__ = ("asked", "candidates", "formula", "own", "values")

    def __init__(
        self, formula: Formula, asked: Asked, candidates: Sequence[Candidate], own: Sequence[float] = ()
    ) -> None:
        self.formula = formula
        self.asked = asked
        self.candidates = candidates
        self.own = own
        parts = formula.parts
        self.values: Sequence[float] = (
            [sum(parts(asked, each, mine)) for each, mine in zip(candidates, own, strict=True)]
            if own
            else [sum(parts(asked, each, 0.0)) for each in candidates]
        )

    @overload
    def __getitem__(self, index: int) -> Terms: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Terms]: ...
    def __getitem__(self, index: int | slice) -> Terms | Sequence[Terms]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self.formula.terms(self.asked, self.candidates[index], self.own[index] if self.own else 0.0)

    def __len__(self) -> int:
        return len(self.candidates)

    def best(self) -> list[int]:
        """Who has the lowest score, or one as good."""
        most = min(self.values) * self.formula.tie
        return [index for index, value in enumerate(self.values) if value <= most]

    def facts(self, index: int) -> Mapping[str, object]:
        """What the score of that candidate was computed from, as JSON-ready data by plain names."""
        facts = facts_of(self.candidates[index], self.asked)
        own_fact = self.formula.own_fact
        if own_fact is not None and self.own:
            facts[own_fact] = self.own[index]
        if own_fact == CACHED_TOKENS and self.asked.needs_slot:
            facts["new_tokens"] = self.candidates[index].new_tokens(self.asked, self.own[index])
        return facts


def facts_of(candidate: Candidate, asked: Asked) -> dict[str, object]:
    """A candidate as JSON-ready data; what concerns a model's runner only where one is concerned."""
    facts: dict[str, object] = {
        "weight": candidate.weight,
        "health": candidate.health,
        "running": candidate.running,
    }
    if asked.needs_slot:
        rates = candidate.rates
        facts |= {
            "running_of_model": candidate.running_of_model,
            "slots": candidate.slots,
            "warm": candidate.warm,
            "load_seconds": candidate.load_seconds,
            "runners_sharing_device": candidate.sharing,
            "rates": None if rates is None else {name: getattr(rates, name) for name in RATE_NAMES},
            "answer_tokens": candidate.answer_tokens,
        }
    return facts


def told(asked: Asked, candidates: Sequence[Candidate], terms: Sequence[Terms]) -> Scores:
    """Scores of a strategy that tells the terms of each candidate and has no formula over facts."""
    formula = Formula(
        parts=lambda _asked, _candidate, index: tuple(terms[int(index)].values()),
        names=[tuple(each) for each in terms],
        because=lambda scores, _index: f"lowest score of {len(scores)}",
    )
    return Scores(formula, asked, candidates, range(len(terms)))
