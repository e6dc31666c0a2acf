"""How long the answers of one model are, and how much of one that has come so far is still to come."""

from bisect import bisect_right

_BOUNDS = tuple(2 ** (step / 2) for step in range(41))
"""Of the buckets, in tokens: two an octave, up to a million."""
_REMEMBERED = 1000.0
"""So many answers count; with each one more, all are worth half."""


class AnswerLengths:
    """A histogram that forgets. All lengths are in tokens."""

    def __init__(self) -> None:
        self._counts = [0.0] * (len(_BOUNDS) + 1)
        self._sums = [0.0] * (len(_BOUNDS) + 1)
        self.mean: float | None = None
        """The length to expect of an answer, None before the first."""

    def learn(self, tokens: int) -> None:
        """An answer had so many tokens."""
        bucket = bisect_right(_BOUNDS, tokens)
        self._counts[bucket] += 1
        self._sums[bucket] += tokens
        if sum(self._counts) > _REMEMBERED:
            self._counts = [each / 2 for each in self._counts]
            self._sums = [each / 2 for each in self._sums]
        self.mean = sum(self._sums) / sum(self._counts)

    def remaining(self, emitted: float) -> float | None:
        """How many tokens are still to come, on the average, of an answer that has so many: the mean residual
        life. Where none was that long it is the mean length, as if it began anew; None before the first."""
        own = bisect_right(_BOUNDS, emitted)
        low, high = _BOUNDS[own - 1] if own else 0.0, _BOUNDS[min(own, len(_BOUNDS) - 1)]
        share = (high - emitted) / (high - low) if high > emitted else 0.0
        longer = share * self._counts[own]
        tokens = longer * (emitted + high) / 2
        longer += sum(self._counts[own + 1 :])
        tokens += sum(self._sums[own + 1 :])
        return tokens / longer - emitted if longer > 0 else self.mean
