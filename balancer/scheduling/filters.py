"""The filters: each looks at one instance for one ticket and says why it is out, or None.

`FILTERS` run in their order and take out for good, as far as this decision goes; the first reason
stands in the decision. `HOLDS` are of another kind: what they find will end, so an instance that
only they take out is worth waiting for. They say when it ends at the latest, where that is known.
"""

from collections.abc import Callable
from dataclasses import dataclass

from balancer.core.ticket import Ticket
from balancer.core.views import InstanceView

BREAKER_OPEN = "breaker open"
FAILED_BEFORE = "failed this request before"
MODEL_NOT_THERE = "model not there"
NOT_SERVED = "runtime does not serve this"

Filter = Callable[[Ticket, InstanceView, float], str | None]


@dataclass(frozen=True, slots=True)
class Hold:
    """Why an instance takes nothing for now; `until` (monotonic seconds) is None where an event ends it."""

    reason: str
    until: float | None = None


HoldFilter = Callable[[Ticket, InstanceView, float], Hold | None]


def not_excluded(ticket: Ticket, instance: InstanceView, _now: float) -> str | None:
    """Out where an earlier try of the same request failed."""
    return FAILED_BEFORE if instance.id in ticket.excluded else None


def healthy(_ticket: Ticket, instance: InstanceView, _now: float) -> str | None:
    """Out where the probes find no answer."""
    return None if instance.usable or instance.unproven else "not up"


def not_drained(_ticket: Ticket, instance: InstanceView, _now: float) -> str | None:
    """Out where the operator wants no new requests."""
    return "drained" if instance.drained else None


def holds_model(ticket: Ticket, instance: InstanceView, _now: float) -> str | None:
    """Out where the model is not."""
    if ticket.variant is None or instance.holds(ticket.variant.model):
        return None
    return MODEL_NOT_THERE


def serves_path(ticket: Ticket, instance: InstanceView, _now: float) -> str | None:
    """Out where the runtime is of a make that cannot be asked for this."""
    return None if instance.serves(ticket.path) else NOT_SERVED


def small_enough(ticket: Ticket, instance: InstanceView, _now: float) -> str | None:
    """Out where the instance is spare, and the model too large to run there."""
    if not instance.spare or not ticket.needs_slot or ticket.variant is None:
        return None
    return None if instance.small_enough(ticket.variant.model) else "too large for a spare instance"


def breaker_not_open(ticket: Ticket, instance: InstanceView, now: float) -> str | None:
    """Out where the instance, or the model there, has failed too often lately."""
    if not ticket.needs_slot or ticket.variant is None:
        return None
    return None if instance.breaker_reopens_at(ticket.variant, now) is None else BREAKER_OPEN


def probed(_ticket: Ticket, instance: InstanceView, _now: float) -> Hold | None:
    """Held where it is new and its first probe is under way."""
    return Hold("not probed yet") if instance.unproven else None


def no_trial_out(ticket: Ticket, instance: InstanceView, now: float) -> Hold | None:
    """Held while a half-open breaker has all of its trials out."""
    if not ticket.needs_slot or ticket.variant is None:
        return None
    allowed = instance.breaker_allows(ticket.variant, now)
    return None if allowed else Hold("breaker half-open, on trial")


def not_paused(ticket: Ticket, instance: InstanceView, now: float) -> Hold | None:
    """Held for a moment where the instance has said that its own queue is full, or a load there came to
    nothing."""
    until = instance.paused_until(now) if ticket.needs_slot else None
    return None if until is None else Hold("paused for a moment", until)


def not_gated(ticket: Ticket, instance: InstanceView, now: float) -> Hold | None:
    """Held where running requests are to end so that another model can be loaded."""
    if not ticket.needs_slot or ticket.variant is None:
        return None
    until = instance.gated_until(ticket.variant, now)
    return None if until is None else Hold("held for a load", until)


def slot_free(ticket: Ticket, instance: InstanceView, _now: float) -> Hold | None:
    """Held where every slot is lent."""
    if not ticket.needs_slot or ticket.variant is None or instance.has_free_slot(ticket.variant):
        return None
    return Hold("no free slot")


def may_load(ticket: Ticket, instance: InstanceView, now: float) -> Hold | None:
    """Held where the variant is still to be loaded, and something is being loaded already or there was no
    room a moment ago."""
    if not ticket.needs_slot or ticket.variant is None:
        return None
    loading, no_room_until = instance.loading, instance.no_room_until(now)
    if (loading is None and no_room_until is None) or instance.warm(ticket.variant):
        return None
    return Hold("loading") if loading is not None else Hold("no room for a load", no_room_until)


def why_out(ticket: Ticket, instance: InstanceView, now: float) -> str | None:
    """What the first filter that takes it out says; None where all let it through."""
    for each in FILTERS:
        reason = each(ticket, instance, now)
        if reason is not None:
            return reason
    return None


def why_held(ticket: Ticket, instance: InstanceView, now: float) -> Hold | None:
    """What holds it first; None where nothing does."""
    for each in HOLDS:
        hold = each(ticket, instance, now)
        if hold is not None:
            return hold
    return None


FILTERS: tuple[Filter, ...] = (
    holds_model,
    serves_path,
    healthy,
    not_drained,
    not_excluded,
    small_enough,
    breaker_not_open,
)
HOLDS: tuple[HoldFilter, ...] = (
    probed,
    no_trial_out,
    not_paused,
    not_gated,
    slot_free,
    may_load,
)
