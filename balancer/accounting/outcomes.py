"""How a lease ended, by how the answer did that was given under it."""

import msgspec

from balancer.accounting.record import RequestRecord
from balancer.core.ticket import Blame, Outcome, Verdict
from balancer.errors import BalancerError, InstanceError, InstanceStalled
from balancer.protocol.endings import Ending, judge
from balancer.protocol.failures import STATUS, classify, error_message
from balancer.upstream.exchange import Exchange

WHOLE = Outcome(verdict=Verdict.SUCCESS, kind="ok")


def broken(kind: str, error: str) -> Outcome:
    """A failure of the instance itself, whatever was asked of it."""
    return Outcome(verdict=Verdict.FAILURE, kind=kind, error=error, blames=Blame.INSTANCE)


def _of_record(message: str) -> Outcome:
    """What an error that ended a stream says; the same texts as in error answers."""
    told = classify(500, message, has_model=True) or STATUS
    return msgspec.structs.replace(told.outcome(message), kind="error_record")


def outcome_of(exchange: Exchange, record: RequestRecord, error: BalancerError | None) -> Outcome:
    """What the end of a good answer says of its instance; a client's leaving says nothing."""
    operation = record.operation
    if exchange.left or operation is None:
        return Outcome(verdict=Verdict.NEUTRAL, kind="cancelled")
    if isinstance(error, InstanceError):
        kind = error.kind if isinstance(error, InstanceStalled) else "truncated"
        return broken(kind, str(error))
    if error is not None:
        return Outcome(verdict=Verdict.NEUTRAL, kind="cancelled")
    if exchange.is_page:
        return broken("wrong_body", "it answered with a web page")
    if not exchange.streams:
        return WHOLE
    match judge(operation, exchange.tail):
        case Ending.WHOLE:
            return WHOLE
        case Ending.ERROR:
            return _of_record(error_message(exchange.tail.last_line))
        case Ending.UNFINISHED:
            return Outcome(verdict=Verdict.NEUTRAL, kind="unfinished")
