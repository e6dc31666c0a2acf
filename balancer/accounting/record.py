"""The record of one request: filled in as it goes through the house, ended exactly once.

Times are monotonic seconds. The record never holds a prompt, a key or a body.
"""

import msgspec

from balancer.core.operation import Operation
from balancer.core.ticket import ClientId
from balancer.protocol.endings import Counters


class RequestRecord(msgspec.Struct, kw_only=True):
    """`id` is the balancer's own, `request_id` the caller's or made for it; `route` is a row of the
    route table, never the raw path. `model_label` is the model as metrics name it, fixed at its first
    use: what was counted up must be counted down under the same name. `believed_share` of the prompt, 0
    to 1, was believed to be cached at the instance when the request went there, None where nothing is
    known of its prompt; `inferred_share` was, by how long its evaluation took, maybe less than 0.
    `hedgeable`: a second instance may be asked, too; `hedge` is what became of that where one was. So many
    `comments` were written to a client whose stream waited; it has been told 200 then, whatever `status`
    says. `outcome` is a bounded word: ok, cancelled, rejected, unfinished, or the kind of the error."""

    id: str
    request_id: str
    client: ClientId
    method: str
    route: str
    received_at: float
    dialect: str = "ollama"
    kind: str = "info"
    operation: Operation | None = None
    model: str = ""
    model_label: str | None = None
    allow_origin: str = ""
    instance: str = ""
    reason: str = ""
    attempts: int = 0
    believed_share: float | None = None
    inferred_share: float | None = None
    status: int = 0
    outcome: str = ""
    hedgeable: bool = False
    hedge: str = ""
    error: str | None = None
    comments: int = 0
    body_bytes: int = 0
    answer_bytes: int = 0
    parsed_at: float | None = None
    queued_seconds: float = 0.0
    leased_at: float | None = None
    answered_at: float | None = None
    first_byte_at: float | None = None
    ended_at: float | None = None
    counters: Counters = msgspec.field(default_factory=Counters)

    def summary(self) -> dict[str, object]:
        """The record as flat JSON-ready data, the wide event of the log; empty values left out."""
        facts: dict[str, object] = {
            "id": self.id,
            "request_id": self.request_id,
            "client": self.client,
            "method": self.method,
            "dialect": self.dialect,
            "kind": self.kind,
            "attempts": self.attempts,
            "status": self.status,
            "outcome": self.outcome,
            "body_bytes": self.body_bytes,
            "answer_bytes": self.answer_bytes,
            "queued_seconds": round(self.queued_seconds, 6),
        }
        if self.route:
            facts["route"] = self.route
        if self.comments:
            facts["comments"] = self.comments
        if self.error:
            facts["error"] = self.error
        if self.operation is not None:
            facts["stream"] = self.operation.stream
            if self.operation.variant is not None:
                facts["model"] = self.model
                facts["variant"] = str(self.operation.variant)
        if self.instance:
            facts["instance"] = self.instance
        if self.reason:
            facts["reason"] = self.reason
        if self.hedge:
            facts["hedge"] = self.hedge
        if self.first_byte_at is not None:
            facts["ttft_seconds"] = round(self.first_byte_at - self.received_at, 6)
        if self.ended_at is not None:
            facts["duration_seconds"] = round(self.ended_at - self.received_at, 6)
        measured = {
            "prompt_tokens": self.counters.prompt_tokens,
            "generated_tokens": self.counters.generated_tokens,
            "load_seconds": self.counters.load_seconds,
            "believed_share": _rounded(self.believed_share),
            "inferred_share": _rounded(self.inferred_share),
        }
        return facts | {name: value for name, value in measured.items() if value is not None}


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 3)
