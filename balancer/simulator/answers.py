"""What the inference core hands to a dialect: one Part per step of an answer.

Dialect-free and frozen; made by inference.py, turned into bytes by dialects/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function that the model asks to have called."""

    id: str
    index: int
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The counters of a finished answer; durations are whole nanoseconds."""

    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One step of an answer; `done_reason` is set on the last and nowhere else.

    `metrics` None on a last part means that nothing was generated (a load or an unload).
    """

    content: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()
    done_reason: str = ""
    metrics: Metrics | None = None
    context: tuple[int, ...] = ()

    @property
    def done(self) -> bool:
        return bool(self.done_reason)

    @property
    def empty(self) -> bool:
        """Whether it carries no text, thought, call or probability."""
        return not (self.content or self.thinking or self.tool_calls or self.logprobs)

    @property
    def prompt_tokens(self) -> int:
        return self.metrics.prompt_eval_count if self.metrics else 0

    @property
    def answer_tokens(self) -> int:
        return self.metrics.eval_count if self.metrics else 0


def collected(parts: Iterable[Part]) -> Part:
    """All parts in one, as an answer without a stream gives them."""
    seen = list(parts)
    last = seen[-1] if seen else Part()
    return replace(
        last,
        content="".join(part.content for part in seen),
        thinking="".join(part.thinking for part in seen),
        tool_calls=tuple(call for part in seen for call in part.tool_calls),
        logprobs=tuple(item for part in seen for item in part.logprobs),
    )
