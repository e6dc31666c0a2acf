"""Every strategy that can be compared, by name."""

from collections.abc import Callable, Mapping
from enum import Enum, auto
from random import Random

from balancer.scheduling.strategies import STRATEGIES, Strategy
from balancer.simulator.virtual.rivals import RIVALS

IMMEDIATE = "@immediate"
"""Ends the name of a strategy that binds a request on its arrival, as a proxy without a queue does."""


class Informed(Enum):
    """Strategies that know more than what they are shown of candidates."""

    ADAPTIVE = auto()
    CLAIRVOYANT = auto()


SHELF: Mapping[str, Callable[[Random], Strategy] | Informed] = {
    "adaptive": Informed.ADAPTIVE,
    **STRATEGIES,
    **RIVALS,
    "clairvoyant": Informed.CLAIRVOYANT,
}


def strategy_names() -> tuple[str, ...]:
    """All that can be compared."""
    return (*SHELF, *(name + IMMEDIATE for name in SHELF))
