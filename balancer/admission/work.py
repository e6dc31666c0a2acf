"""How much work a request is: seconds of a device's time, learned from those that ended.

    work = a + c * prompt tokens

for each model, by least squares over recent requests, with neither part below zero. What a prompt's cached
part saves, and how long answers are, is in the averages: so no rate needs to be known, of any runtime.
"""

from collections import OrderedDict

from balancer.core.names import ModelName
from balancer.core.ticket import Ticket

_LIMIT = 1000
_UNMEASURED_SECONDS = 1.0
_SEVERAL = 3
_KEPT = 0.98
"""What each further request leaves of the weight of those before it: some 50 count."""


class _Line:
    """A line through the requests of one model, by running sums."""

    def __init__(self) -> None:
        self._count = self._tokens = self._squares = self._seconds = self._products = 0.0
        self.base, self.per_token = 0.0, 0.0
        self.measured = 0

    @property
    def mean(self) -> float:
        """Seconds of a request, on the average."""
        return self._seconds / self._count

    def learn(self, tokens: float, seconds: float) -> None:
        """One more request ended."""
        self.measured += 1
        self._count = _KEPT * self._count + 1
        self._tokens = _KEPT * self._tokens + tokens
        self._squares = _KEPT * self._squares + tokens * tokens
        self._seconds = _KEPT * self._seconds + seconds
        self._products = _KEPT * self._products + tokens * seconds
        self._fit()

    def _fit(self) -> None:
        mean_tokens = self._tokens / self._count
        spread = self._squares / self._count - mean_tokens * mean_tokens
        together = self._products / self._count - mean_tokens * self.mean
        slope = together / spread if spread > 1e-6 * mean_tokens * mean_tokens else 0.0
        self.per_token = max(0.0, slope)
        self.base = self.mean - self.per_token * mean_tokens
        if self.base < 0:
            self.base, self.per_token = 0.0, self.mean / mean_tokens


class WorkEstimates:
    """Of all models; the longest unused are forgotten first."""

    def __init__(self) -> None:
        self._lines: OrderedDict[ModelName, _Line] = OrderedDict()

    def estimate(self, ticket: Ticket) -> float:
        """Seconds of a device's time that the request is likely to take; 1 where nothing was measured yet."""
        line = self._lines.get(ticket.variant.model) if ticket.variant is not None else None
        if line is None:
            return _UNMEASURED_SECONDS
        return line.base + line.per_token * (ticket.prompt_tokens or 0)

    def mean(self, model: ModelName) -> float | None:
        """Seconds that its requests take on the average; None before several were measured, as one alone may
        be anything."""
        line = self._lines.get(model)
        return line.mean if line is not None and line.measured >= _SEVERAL else None

    def learn(self, ticket: Ticket, seconds: float) -> None:
        """The request was served whole, and took so long."""
        assert ticket.variant is not None
        model = ticket.variant.model
        line = self._lines.pop(model, None) or _Line()
        self._lines[model] = line
        line.learn(float(ticket.prompt_tokens or 0), seconds)
        if len(self._lines) > _LIMIT:
            self._lines.popitem(last=False)
