"""The record of one request: filled in as it goes through the house, ended exactly once.

Times are monotonic seconds. The record never holds a prompt, a key or a body.
"""

from dataclasses import dataclass, field

from balancer.core.operation import Operation
from balancer.core.ticket import ClientId
from balancer.protocol.endings import Counters


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """`id` is the balancer's own, `request_id` the caller's or made for it; `route` is a row of the
    route table, never the raw path. `model_label` is the model as metrics name it, fixed at its first
    use: what was counted up must be counted down under the same name. `outcome` is a bounded word:
    ok, cancelled, rejected, unfinished, or the kind of the error."""

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
    status: int = 0
    outcome: str = ""
    error: str | None = None
    body_bytes: int = 0
    answer_bytes: int = 0
    parsed_at: float | None = None
    queued_seconds: float = 0.0
    answered_at: float | None = None
    first_byte_at: float | None = None
    ended_at: float | None = None
    counters: Counters = field(default_factory=Counters)

    def summary(self) -> dict[str, object]:
        """The record as flat JSON-ready data, the wide event of the log; empty values left out."""
        operation = self.operation
        facts: dict[str, object] = {
            "id": self.id,
            "request_id": self.request_id,
            "client": self.client,
            "method": self.method,
            "route": self.route,
            "dialect": self.dialect,
            "kind": self.kind,
            "model": self.model,
            "variant": str(operation.variant) if operation and operation.variant else "",
            "stream": operation.stream if operation else None,
            "instance": self.instance,
            "reason": self.reason,
            "attempts": self.attempts,
            "status": self.status,
            "outcome": self.outcome,
            "error": self.error,
            "body_bytes": self.body_bytes,
            "answer_bytes": self.answer_bytes,
            "queued_seconds": round(self.queued_seconds, 6),
            "ttft_seconds": self._since_received(self.first_byte_at),
            "duration_seconds": self._since_received(self.ended_at),
            "prompt_tokens": self.counters.prompt_tokens,
            "generated_tokens": self.counters.generated_tokens,
            "load_seconds": self.counters.load_seconds,
        }
        return {key: value for key, value in facts.items() if value not in (None, "")}

    def _since_received(self, at: float | None) -> float | None:
        return None if at is None else round(at - self.received_at, 6)
