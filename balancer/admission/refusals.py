"""What a request is told that gets no lease."""

from balancer.core.decision import Decision, Standing
from balancer.core.ticket import Ticket
from balancer.errors import DeadlinePassed, NoInstance, Stopping, UnknownModel, Unserved


def stopping() -> Stopping:
    """Nothing is lent any more."""
    return Stopping("the balancer is being stopped; try again soon", retry_after_seconds=1.0)


def deadline_passed(ticket: Ticket, now: float, *, retry_after_seconds: float) -> DeadlinePassed:
    """It waited as long as it may."""
    told = f"no slot became free, or the model was not loaded, in {now - ticket.queued_at:.1f} s"
    return DeadlinePassed(told, retry_after_seconds=retry_after_seconds)


def dead_end(decision: Decision, last_error: str | None) -> UnknownModel | NoInstance | Unserved:
    """No instance is able to serve it. `last_error` is what opened breakers, where they are open."""
    variant = decision.ticket.variant
    if decision.standing is Standing.UNKNOWN_MODEL and variant is not None:
        return UnknownModel(variant.model)
    if decision.standing is Standing.UNSERVED:
        of_model = f" for '{variant.model}'" if variant is not None else ""
        told = f"{decision.ticket.path} is not served{of_model} by the runtimes that there are"
        return Unserved(told, status=501)
    if decision.standing is Standing.EXHAUSTED:
        return NoInstance("every instance that could serve the request failed it", retry_after_seconds=1.0)
    wanted = f" that has '{variant.model}'" if variant is not None else ""
    if decision.standing is Standing.HELD_BACK and variant is not None:
        wait = max(1.0, (decision.next_wake_at or 0.0) - decision.at)
        return NoInstance(
            f"every instance{wanted} is left alone for a while after failures; the last one: "
            + (last_error or "unknown"),
            retry_after_seconds=wait,
        )
    return NoInstance(f"no instance{wanted} is usable now", retry_after_seconds=1.0)
