"""A model as a runtime serves it, and what a translation makes of a request for it."""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from balancer.core.plan import Runtime


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is the runtime's own spelling, `context_length` in tokens, None where it does not tell; `row`
    is what stands for the model in `/api/tags`."""

    runtime: Runtime
    name: str
    context_length: int | None = None
    row: Mapping[str, object] = msgspec.field(default_factory=dict)


class AnswerTranslation(Protocol):
    """One answer on its way through. `status` and `media_type` hold once `feed` has given something or
    `end` was called."""

    @property
    def status(self) -> int: ...
    @property
    def media_type(self) -> str: ...

    def begin(self, status: int, media_type: str) -> None:
        """The head of the runtime's answer is in."""

    def feed(self, data: bytes) -> bytes:
        """The next bytes of its body, cut anywhere; what they complete in Ollama's shapes. Raises
        BadResponse for what is no answer of a runtime, or is beyond every bound."""

    def end(self) -> bytes:
        """The body has ended properly; the rest. Raises BadResponse."""


class Translated(msgspec.Struct, frozen=True, kw_only=True):
    """What goes to the runtime instead, and what its answer goes through."""

    method: str
    target: str
    body: bytes
    answer: AnswerTranslation
