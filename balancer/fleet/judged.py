"""How an instance is judged, as scheduling sees it: by probes, by its breakers and its conduct, and by who
ejects outliers."""

from balancer.core.ejection import Ejection
from balancer.core.names import ModelName, is_cloud_name
from balancer.core.variant import Variant
from balancer.fleet.breaker import Breakers
from balancer.fleet.conduct import Conduct, Observation
from balancer.fleet.health import Health, HealthState


class Judged:
    """The part of an `Instance` that tells how it is judged. `health_score` and `ejection` are written by the
    outlier watch."""

    def __init__(self, health: Health, breakers: Breakers) -> None:
        self.health = health
        self.breakers = breakers
        self.conduct = Conduct()
        self.health_score = 1.0
        self.ejection: Ejection | None = None

    @property
    def usable(self) -> bool:
        return self.health.state is HealthState.UP

    @property
    def suspect(self) -> bool:
        return self.health.suspect

    @property
    def held_until(self) -> float:
        return self.health.held_until

    @property
    def unproven(self) -> bool:
        return self.health.unproven

    def breaker_reopens_at(self, variant: Variant, now: float) -> float | None:
        return self.breakers.reopens_at(variant, now)

    def breaker_allows(self, variant: Variant, now: float) -> bool:
        return self.breakers.allows(variant, now)

    def observed(self, model: ModelName, seen: Observation, now: float) -> None:
        """An answer told how fast it is; what runs elsewhere than there tells nothing."""
        if not is_cloud_name(model):
            self.conduct.observed(model, seen, now)
