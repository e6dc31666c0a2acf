"""What the record of an answer tells of how fast its instance was. Pure."""

from balancer.accounting.record import RequestRecord
from balancer.fleet.conduct import Observation

PROMPT_OFFSET_TOKENS = 64
"""What an instance does before the first token whatever the prompt, in tokens of one."""
_FEW_TOKENS = 8
"""Shorter answers say more of what surrounds them than of the pace of their tokens."""


def observation(record: RequestRecord) -> Observation | None:
    """What the record of a whole answer tells that has not paid for a load; None where it tells nothing."""
    counters, operation = record.counters, record.operation
    if record.leased_at is None or record.answered_at is None or operation is None:
        return None
    if not counters.prompt_tokens:
        return None
    generating = counters.generation_seconds or 0.0
    first_token = record.answered_at - record.leased_at - (0.0 if operation.stream else generating)
    answer_tokens = counters.generated_tokens or 0
    waiting = None
    if counters.prompt_seconds is not None:
        waiting = max(0.0, first_token - counters.prompt_seconds - (counters.load_seconds or 0.0))
    return Observation(
        leased_at=record.leased_at,
        first_token=max(0.0, first_token) / (counters.prompt_tokens + PROMPT_OFFSET_TOKENS),
        token=generating / answer_tokens if answer_tokens >= _FEW_TOKENS else None,
        waiting=waiting,
    )
