"""One memory budget for all request bodies that are held: read, queued, not yet answered."""

from balancer.errors import BodyBudgetSpent


class BodyBudget:
    """At most `limit_bytes` held at once over all requests."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def hold(self) -> "HeldBody":
        """Begin to hold one request's body."""
        return HeldBody(self)


class HeldBody:
    """One request's part of the budget; grows as the body comes in and is let go once."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._bytes = 0

    def grow(self, count: int) -> None:
        """Hold `count` more bytes. Raises BodyBudgetSpent where the budget has no room for them."""
        if self._budget.held_bytes + count > self._budget.limit_bytes:
            raise BodyBudgetSpent(
                "too many request bodies are waiting; try again soon", retry_after_seconds=1.0
            )
        self._budget.held_bytes += count
        self._bytes += count

    def release(self) -> None:
        """Give everything back; more than once is the same as once."""
        self._budget.held_bytes -= self._bytes
        self._bytes = 0
