"""The health score of an instance: a number in [0, 1], the product of factors that can each be told.

    H = product of gates * exp(-sum of weight * burden)

A burden is 0 where nothing is wrong and counts as 3 at most. What is not known has no part in it. Where only
one of the two measures of speed is known it counts for both. Pure; who measures what is told in `conduct`,
`device_state` and `control.instance_health`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import exp, prod

HEAVIEST = 3.0


class Term(StrEnum):
    """What the score is made of. The last three are gates: what they leave of it is no matter of degree."""

    ERRORS = "errors"
    FIRST_TOKEN = "first_token"
    TOKEN = "token"
    WAITING = "waiting"
    PROBES = "probes"
    MEMORY = "memory"
    HEAT = "heat"
    READING_AGE = "reading_age"
    OFFLOAD = "offload"
    DEVICE_FAULT = "device_fault"
    DOWN = "down"


WEIGHTS: Mapping[Term, float] = {
    Term.ERRORS: 1.0,
    Term.FIRST_TOKEN: 0.6,
    Term.TOKEN: 0.6,
    Term.WAITING: 0.4,
    Term.PROBES: 0.3,
    Term.MEMORY: 0.5,
    Term.HEAT: 0.5,
    Term.READING_AGE: 0.3,
}
SPEED = (Term.FIRST_TOKEN, Term.TOKEN)
LATENCY = frozenset({*SPEED, Term.WAITING})


@dataclass(frozen=True, slots=True)
class HealthScore:
    """`factors` are what each term leaves of the score, each in [0, 1]."""

    factors: Mapping[Term, float]

    @property
    def value(self) -> float:
        """The score, 0 to 1."""
        return prod(self.factors.values())

    @property
    def worst(self) -> Term | None:
        """The term that takes most; None where none takes anything."""
        worst = min(self.factors, key=self.factors.__getitem__, default=None)
        return worst if worst is not None and self.factors[worst] < 1 else None

    def without(self, terms: Iterable[Term]) -> "HealthScore":
        """The same as if nothing were known of these."""
        left_out = set(terms)
        return HealthScore({term: left for term, left in self.factors.items() if term not in left_out})


def factors(burdens: Mapping[Term, float | None]) -> dict[Term, float]:
    """What each of these burdens leaves of a score; those that are not known (None) are left out."""
    known = {term: burden for term, burden in burdens.items() if burden is not None}
    return {
        term: exp(-_weight(term, known) * min(HEAVIEST, max(0.0, burden))) for term, burden in known.items()
    }


def _weight(term: Term, known: Mapping[Term, float]) -> float:
    if term in SPEED and not all(each in known for each in SPEED):
        return sum(WEIGHTS[each] for each in SPEED)
    return WEIGHTS[term]
