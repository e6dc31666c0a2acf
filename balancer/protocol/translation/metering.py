"""The counts and durations of an answer, as Ollama tells them: integer nanoseconds, absent where zero.

llama-server measures its work itself. vLLM counts tokens only; of a stream what is measured here stands in:
the time to the first token for the prompt, the time from it to the last for the answer.
"""

from collections.abc import Mapping

from balancer.clock import Clock

_PER_SECOND = 1e9
_PER_MILLISECOND = 1e6


class Meter:
    """Of one answer, from when its request was made."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_at = clock.monotonic()
        self._first_at: float | None = None
        self._last_at = self._began_at
        self._counts: dict[str, int] = {}
        self._measured: dict[str, float] = {}

    def token(self) -> None:
        """A piece of the answer is in."""
        self._last_at = self._clock.monotonic()
        if self._first_at is None:
            self._first_at = self._last_at

    def read(self, told: Mapping[str, object]) -> None:
        """Take what an answer, or an event of it, counts."""
        usage, timings = told.get("usage"), told.get("timings")
        if isinstance(usage, dict):
            self._counts = {name: each for name, each in usage.items() if isinstance(each, int)}
        if isinstance(timings, dict):
            self._measured = {name: float(each) for name, each in timings.items() if _is_number(each)}

    def told(self) -> dict[str, int]:
        """The metrics of the last record, those that are known and not zero."""
        now = self._clock.monotonic()
        prompt, generation = self._measured.get("prompt_ms"), self._measured.get("predicted_ms")
        prompt = None if prompt is None else prompt * _PER_MILLISECOND
        generation = None if generation is None else generation * _PER_MILLISECOND
        if not self._measured and self._first_at is not None:
            prompt = (self._first_at - self._began_at) * _PER_SECOND
            generation = (self._last_at - self._first_at) * _PER_SECOND
        metrics = {
            "total_duration": (now - self._began_at) * _PER_SECOND,
            "prompt_eval_count": self._counts.get("prompt_tokens"),
            "prompt_eval_duration": prompt,
            "eval_count": self._counts.get("completion_tokens"),
            "eval_duration": generation,
        }
        return {name: int(each) for name, each in metrics.items() if each is not None and int(each) > 0}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
