"""What clients ask for: sessions of turns, as a workload draws them and a run serves them. Plain data.

A prompt is told by its segments and not by its tokens: what two prompts have in common is what their first
segments have in common. Times are in seconds of virtual time.
"""

from enum import StrEnum

import msgspec

from balancer.core.names import ModelName
from balancer.core.ticket import InstanceId, Priority

Segment = tuple[int, int]
"""An identity and a count of tokens. Equal identities are equal text; no two texts share one."""


class Turn(msgspec.Struct, frozen=True, gc=False):
    """One request of a session: its prompt is all that was said before, and these segments.

    `think_seconds` pass after the answer before it (after the session's start, for the first). A client
    leaves `patience_seconds` after it has sent the request, unless the answer is whole by then; None
    never. `inputs` above 0 makes it an embedding of so many texts, which says nothing and adds nothing to
    the history: `output_tokens` is 0 then, and each input has an equal part of the tokens.
    """

    segments: tuple[Segment, ...]
    output_tokens: int
    think_seconds: float = 0.0
    patience_seconds: float | None = None
    inputs: int = 0


class Session(msgspec.Struct, frozen=True, gc=False):
    """The turns of one client with one model, one after the other. `answer_id` begins a run of identities,
    one for each turn, that no other segment has: the answers'. A `foreign` one goes straight to the
    instance of that index, past the balancer."""

    starts_at: float
    client: str
    model: str
    priority: Priority
    answer_id: int
    turns: tuple[Turn, ...]
    num_ctx: int | None = None
    foreign: int | None = None


class FaultKind(StrEnum):
    """What goes wrong: the process ends and is back after a while; it answers nothing for a while; it is
    slower by a factor for a while; loads fail for want of memory for a while."""

    KILL = "kill"
    HANG = "hang"
    SLOW = "slow"
    LOADS_FAIL = "loads_fail"


class Fault(msgspec.Struct, frozen=True):
    """One fault of the instance of that index. `factor` matters for a slow one."""

    kind: FaultKind
    at: float
    instance: int
    seconds: float
    factor: float = 3.0


class Observation(msgspec.Struct, frozen=True, gc=False):
    """What an answer tells of its instance, as Ollama's counters do: tokens of the prompt, cached ones among
    them, the time that their evaluation took, tokens of the answer and their time; and what the balancer
    itself has measured, from sending to the first byte and to the end, which was `at` that time."""

    instance: InstanceId
    model: ModelName
    prompt_tokens: int
    prompt_seconds: float
    output_tokens: int
    output_seconds: float
    first_byte_seconds: float
    total_seconds: float
    at: float
