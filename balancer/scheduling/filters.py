"""The filters: what of an instance takes it out for a ticket, or holds it back, and in which words.

What takes it out does so for good, as far as one decision goes. What holds it back will end, so an instance
that is only held is worth waiting for; a hold says when it ends at the latest, where that is known. Each
function tells the first thing that it finds, and looks for what explains most first.
"""

from dataclasses import dataclass

from balancer.core.decision import MODEL_NOT_THERE
from balancer.core.ticket import Ticket
from balancer.core.views import InstanceView

BREAKER_OPEN = "breaker open"
FAILED_BEFORE = "failed this request before"
NO_ROOM = "no room for a load"
NO_SLOT = "no free slot"
NOT_SERVED = "runtime does not serve this"


@dataclass(frozen=True, slots=True)
class Hold:
    """Why an instance takes nothing for now; `until` (monotonic seconds) is None where an event ends it."""

    reason: str
    until: float | None = None


def why_out(ticket: Ticket, instance: InstanceView, now: float) -> str | None:
    """Why an instance cannot serve a ticket at all; None where it can.

    It has not the model; its runtime, which is no Ollama, cannot be asked for this; the probes find no
    answer; the operator wants no new requests there; an earlier try of the same request failed there; it is
    spare, and the model too large to run there; it, or the model there, has failed too often lately.
    """
    variant = ticket.variant
    if variant is not None and not instance.holds(variant.model):
        return MODEL_NOT_THERE
    if not instance.serves(ticket.path):
        return NOT_SERVED
    if not instance.usable and not instance.unproven:
        return "not up"
    if instance.drained:
        return "drained"
    if instance.id in ticket.excluded:
        return FAILED_BEFORE
    if variant is None or not ticket.needs_slot:
        return None
    if instance.spare and not instance.small_enough(variant.model):
        return "too large for a spare instance"
    return None if instance.breaker_reopens_at(variant, now) is None else BREAKER_OPEN


def why_held(ticket: Ticket, instance: InstanceView, now: float) -> Hold | None:
    """What keeps an instance from taking a ticket for now; None where nothing does.

    It is new and its first probe is under way; a half-open breaker has all of its trials out; it has said
    that its own queue is full; running requests are to end there so that another model can be loaded; every
    slot is lent, or as many as one lends that is back since a moment; or the variant is still to be loaded,
    and something is being loaded already or there was no room for it a moment ago.
    """
    if instance.unproven:
        return Hold("not probed yet")
    variant = ticket.variant
    if variant is None or not ticket.needs_slot:
        return None
    if not instance.breaker_allows(variant, now):
        return Hold("breaker half-open, on trial")
    if (paused := instance.paused_until(now)) is not None:
        return Hold("paused for a moment", paused)
    if (gated := instance.gated_until(variant, now)) is not None:
        return Hold("held for a load", gated)
    if not instance.has_free_slot(variant):
        return SLOTS_TAKEN
    if (slow_start := instance.slow_start_until(variant, now)) is not None:
        return Hold("slow start", slow_start)
    loading, no_room_until = instance.loading, instance.no_room_until(variant, now)
    if (loading is None and no_room_until is None) or instance.warm(variant):
        return None
    return Hold("loading") if loading is not None else Hold(NO_ROOM, no_room_until)


SLOTS_TAKEN = Hold(NO_SLOT)
