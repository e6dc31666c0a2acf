"""A ticket is a request's place in the queue; a lease is the slot lent to it; an outcome ends it.

All three are plain data: they could cross a process boundary. Every lease and outcome names the
incarnation of the instance and the generation of the runner that it belongs to, so that what
arrives late from an earlier life changes nothing.
"""

from enum import StrEnum
from typing import NewType

import msgspec

from balancer.core.plan import Runtime
from balancer.core.variant import Variant

InstanceId = NewType("InstanceId", str)
ClientId = NewType("ClientId", str)
"""A key's label, else a source address."""
TicketId = NewType("TicketId", str)
Prefix = tuple[tuple[int, int], ...]
"""Which prompts begin alike: marks, each of all that comes before it in a prompt, with how many tokens that
is, in ascending order."""


class Priority(StrEnum):
    """The class that a request asks to be queued in."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """What dispatch needs to know of a request.

    `arrival` orders the queue and is kept by a retry, which so stands at the head of its class.
    `queued_at` and `deadline` are monotonic seconds. Without a variant any instance will do; a
    ticket that needs no slot never waits for one. `path` is what is asked for, as an Ollama has it.
    `prompt_tokens` is a rough estimate, an upper bound; the tokens of `prefix`, which is empty where nothing
    is known of the prompt, are estimated likewise.
    """

    id: TicketId
    arrival: int
    client: ClientId
    priority: Priority
    variant: Variant | None
    needs_slot: bool
    queued_at: float
    deadline: float
    path: str = ""
    prompt_tokens: int | None = None
    prefix: Prefix = ()
    session: str | None = None
    attempt: int = 1
    excluded: frozenset[InstanceId] = frozenset()

    def excluding(self, instance: InstanceId) -> "Ticket":
        """The same request's next try, anywhere but there; its deadline and its place are kept."""
        return msgspec.structs.replace(self, attempt=self.attempt + 1, excluded=self.excluded | {instance})

    def again(self) -> "Ticket":
        """The same request's next try, there too."""
        return msgspec.structs.replace(self, attempt=self.attempt + 1)


class Trial(msgspec.Struct, frozen=True):
    """The numbers of a lease's trials of half-open breakers: of the instance's, of that of the model
    there, of that of the variant there; 0 where it tries none."""

    instance: int = 0
    model: int = 0
    variant: int = 0


NO_TRIAL = Trial()


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A slot lent to one ticket at the instance that answers on `url`, to be released exactly once.
    `leased_at` is in monotonic seconds; `runtime` is what the instance is."""

    id: int
    ticket: Ticket
    instance: InstanceId
    url: str
    incarnation: int
    generation: int
    reason: str
    leased_at: float
    trial: Trial = NO_TRIAL
    runtime: Runtime = Runtime.OLLAMA


class Silence(msgspec.Struct, frozen=True):
    """A lease under which no byte of an answer has come since then (monotonic seconds). One that does not
    stream is silent until its answer is whole."""

    lease: Lease
    since: float
    streams: bool


class Verdict(StrEnum):
    """What an outcome says about the instance; neutral says nothing."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


class Blame(StrEnum):
    """What a failure is the fault of, as far as it tells: the instance, its runner of the model (or the
    instance), the model that it has not, the variant that it cannot load."""

    INSTANCE = "instance"
    RUNNER = "runner"
    MODEL = "model"
    VARIANT = "variant"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a lease ended. `kind` is a bounded word for metrics and logs: ok, cancelled, rejected,
    unfinished, or the kind of the error; `error` what the instance said. `blames` matters for failures.
    `in_prefill` is a cancel before the first byte: the runner goes on for a while.
    """

    verdict: Verdict
    kind: str
    error: str = ""
    blames: Blame = Blame.RUNNER
    in_prefill: bool = False
