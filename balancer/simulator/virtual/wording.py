"""Figures as people read them, the same in tables and reports."""

import math

from balancer.simulator.virtual.comparison import Comparison, Figure

NONE = "none"


def quantity(value: float, figure: Figure) -> str:
    """A figure's value with its unit, to three digits."""
    if math.isnan(value):
        return NONE
    match figure.unit:
        case "s":
            return f"{value * 1000:.3g} ms" if 0 < value < 0.1 else f"{_digits(value)} s"
        case "%":
            return f"{value * 100:.1f} %"
        case unit:
            return f"{_digits(value)}{unit.removeprefix('1')}"


def times(ratio: float) -> str:
    """A ratio to two digits behind the point, or as many as tell something."""
    if math.isnan(ratio):
        return NONE
    if math.isinf(ratio):
        return "∞"
    return f"{ratio:.2f}" if 0.1 <= ratio < 10 else _digits(float(f"{ratio:.2g}"))


def with_interval(found: Comparison) -> str:
    """The mean ratio and its interval."""
    if math.isnan(found.low):
        return times(found.mean)
    return f"{times(found.mean)} [{times(found.low)}, {times(found.high)}]"


def won(found: Comparison) -> str:
    """In how many of the seeds it was better."""
    return f"{found.wins}/{len(found.ratios)}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
