"""What no balancer can go below: the time that each request takes alone. The loads that cannot be avoided are
in model_loads.py, waiting times by theory in queueing.py.
"""

from array import array
from collections.abc import Mapping, Sequence
from math import nan
from typing import NamedTuple

from balancer.simulator.service_model import ServiceRates
from balancer.simulator.virtual.outcomes import Outcome, Outcomes


class Floors(NamedTuple):
    """Seconds in the order of an Outcomes' rows; NaN where the request was not answered whole."""

    ttft_seconds: "array[float]"
    total_seconds: "array[float]"


def floor(outcomes: Outcomes, rates: Mapping[str, Sequence[ServiceRates]]) -> Floors:
    """The least that each request can have taken: the tokens that no earlier request to its model began
    with, evaluated alone on the device that is fastest at it, and then its output as the one stream of the
    device that is fastest at that. Nothing waits, nothing is loaded, every cache is infinite.

    `rates` are those of a model, by its name, on each device, at their best where they vary. The first byte
    is taken to leave as soon as the prompt is evaluated, of which one token always has to be.
    Raises KeyError for a model without rates.
    """
    prefill = [max(each.prefill_tokens_per_second for each in rates[name]) for name in outcomes.models]
    decode = [max(each.decode_tokens_per_second for each in rates[name]) for name in outcomes.models]
    floors = Floors(array("d"), array("d"))
    names = ("outcome", "model", "prompt_tokens", "shared_tokens", "output_tokens")
    columns = (outcomes.columns[name] for name in names)
    for outcome, model, prompt, shared, output in zip(*columns, strict=True):
        whole = outcome == Outcome.OK
        ttft = max(prompt - shared, 1) / prefill[model] if whole else nan
        floors.ttft_seconds.append(ttft)
        floors.total_seconds.append(ttft + output / decode[model])
    return floors
