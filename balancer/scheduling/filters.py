"""The filters: each looks at one instance for one ticket and says why it is out, or None.

They run in the order of `FILTERS`; the first reason stands in the decision. `slot_free` is last
and apart, since an instance that only lacks a free slot is worth waiting for.
"""

from collections.abc import Callable

from balancer.core.ticket import Ticket
from balancer.core.views import InstanceView

Filter = Callable[[Ticket, InstanceView], str | None]


def not_excluded(ticket: Ticket, instance: InstanceView) -> str | None:
    """Out where an earlier try of the same request failed."""
    return "failed this request before" if instance.id in ticket.excluded else None


def healthy(_ticket: Ticket, instance: InstanceView) -> str | None:
    """Out where the probes find no answer."""
    return None if instance.usable else "not up"


def not_drained(_ticket: Ticket, instance: InstanceView) -> str | None:
    """Out where the operator wants no new requests."""
    return "drained" if instance.drained else None


def holds_model(ticket: Ticket, instance: InstanceView) -> str | None:
    """Out where the model is not."""
    if ticket.variant is None or instance.holds(ticket.variant.model):
        return None
    return "model not there"


def slot_free(ticket: Ticket, instance: InstanceView) -> str | None:
    """Out, for now, where every slot is lent."""
    if not ticket.needs_slot or ticket.variant is None or instance.has_free_slot(ticket.variant):
        return None
    return "no free slot"


FILTERS: tuple[Filter, ...] = (holds_model, healthy, not_drained, not_excluded)
