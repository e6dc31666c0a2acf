"""How fast a runner works, in the words that scheduling reckons with."""

from dataclasses import dataclass

USUAL_SLOWDOWN = 0.15
"""By so much each further request at a runner makes a token take longer, where nothing was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What was learned of a runner, for one request alone on its device. Tokens of a prompt that are cached
    take no time and are not to be counted. `decode_tokens_per_second` is None where no answer of more than a
    few tokens was seen, as of models that embed; `slowdown` is dimensionless, 0 to 1. `samples` is how many
    answers taught it; it is 0 where the rates are those of the same model at other instances."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float | None
    slowdown: float = USUAL_SLOWDOWN
    samples: int = 0

    def prefill_seconds(self, uncached_tokens: float, *, sharing: float = 1) -> float:
        """How long so many tokens take of a prompt while so many runners work on the device, it included."""
        return sharing * uncached_tokens / self.prefill_tokens_per_second

    def token_seconds(self, batch: float, *, sharing: float = 1) -> float:
        """How long a token of an answer takes while the runner works on so many requests, itself included;
        0 where that is not known."""
        if self.decode_tokens_per_second is None:
            return 0.0
        return sharing * (1 + self.slowdown * (batch - 1)) / self.decode_tokens_per_second
