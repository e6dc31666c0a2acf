"""Outliers: who is ejected serves only where nobody else can, or too few others can.

Looks at those that can take a ticket, so that whatever else stands in the way of the others counts: their
breakers, drains, earlier tries.
"""

from collections.abc import MutableMapping

from balancer.core.ticket import InstanceId
from balancer.core.views import InstanceView


def without_outliers(
    able: list[InstanceView], filtered: MutableMapping[InstanceId, str]
) -> list[InstanceView]:
    """Those that are not ejected. Where they are fewer than half, those that are only slow serve too: then it
    is the load rather than they; and where there are none of both, all. Who is left out is filtered."""
    out = [each for each in able if each.ejection is not None]
    if 2 * (len(able) - len(out)) < len(able):
        out = [each for each in out if each.ejection is not None and not each.ejection.slow]
    if not out or len(out) == len(able):
        return able
    for each in out:
        assert each.ejection is not None
        filtered[each.id] = f"ejected: {each.ejection.reason}"
    return [each for each in able if each not in out]
