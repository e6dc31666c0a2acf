"""An error answer of an instance in virtual time, and what the balancer makes of it."""

from balancer.errors import BadResponse
from balancer.protocol.failures import REQUEST, Failure, classify
from balancer.simulator.errors import Refusal


class Refused(BadResponse):
    """Its text is that of Ollama; `told` is what `attempts` reads from it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.told: Failure = classify(refusal.status, refusal.message, has_model=True) or REQUEST
