"""An operation: what a request asks for, in which dialect, as far as routing needs to know."""

from enum import StrEnum

import msgspec

from balancer.core.variant import Variant


class Dialect(StrEnum):
    """Whose shapes the caller speaks, errors included."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class Kind(StrEnum):
    """What is asked for."""

    GENERATE = "generate"
    CHAT = "chat"
    EMBED = "embed"
    RESPONSE = "response"
    TRANSCRIBE = "transcribe"
    SHOW = "show"
    LIST = "list"
    MANAGE = "manage"
    INFO = "info"


class Wire(StrEnum):
    """How an answer is laid out on the wire, which decides what its last record looks like."""

    NDJSON = "ndjson"
    SSE = "sse"
    JSON = "json"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A request as read once at the door.

    `model` is the caller's own spelling, None where the path names no model; `variant` is its
    canonical form with the runner options. `upstream_path` comes from our route table, never
    from the request line. `unload`: it asks for nothing but that; `keeps_model`: whether the model
    stays in memory once it is done.
    """

    kind: Kind
    dialect: Dialect
    upstream_path: str
    model: str | None = None
    variant: Variant | None = None
    stream: bool = False
    unload: bool = False
    keeps_model: bool = True
    needs_slot: bool = False

    @property
    def wire(self) -> Wire:
        """The layout that a successful answer has."""
        if not self.stream:
            return Wire.JSON
        return Wire.NDJSON if self.dialect is Dialect.OLLAMA else Wire.SSE
