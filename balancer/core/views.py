"""Read-only views of the live fleet, as scheduling sees it. The fleet's own objects satisfy them."""

from collections.abc import Sequence
from typing import Protocol

from balancer.core.ejection import Ejection
from balancer.core.names import ModelName
from balancer.core.rates import Rates
from balancer.core.scores import Candidate
from balancer.core.ticket import InstanceId
from balancer.core.variant import Variant


class LearnedView(Protocol):
    """What a strategy may know of what an instance's answers have taught."""

    def rates(self, model: ModelName) -> Rates | None:
        """How fast the model's runner works there, as elsewhere where nothing was measured there; None where
        nothing was measured at all."""

    def remaining_tokens(self, model: ModelName, emitted: float) -> float | None:
        """How many tokens are to be expected still of an answer that has so many; None where none was seen
        anywhere."""


class InstanceView(Protocol):
    """What a filter or a strategy may know of an instance."""

    @property
    def id(self) -> InstanceId: ...
    @property
    def usable(self) -> bool:
        """Whether the last probes say that it answers."""

    @property
    def suspect(self) -> bool:
        """Whether its newest probe failed though it is not judged down yet."""

    @property
    def ejection(self) -> Ejection | None:
        """Why it is left alone, as its health has been low; None where it is not."""

    def slow_start_until(self, variant: Variant, now: float) -> float | None:
        """Until when it lends no further slot for the variant, as it is back since a moment only; None where
        it does."""

    @property
    def held_until(self) -> float:
        """Until when it is to be spared, since it came and went lately; monotonic seconds."""

    @property
    def drained(self) -> bool: ...
    @property
    def spare(self) -> bool:
        """Whether it serves only while no other is free."""

    @property
    def capped(self) -> bool:
        """Whether the requests of all of its runners together are limited."""

    def small_enough(self, model: ModelName) -> bool:
        """Whether a spare one would take the model; any other takes all sizes."""

    def serves(self, path: str) -> bool:
        """Whether its runtime can be asked for what has this path at an Ollama."""

    def holds(self, model: ModelName) -> bool:
        """Whether the model is among its models."""

    def meant_for(self, model: ModelName) -> bool:
        """Whether the configuration does not reserve it for other models."""

    def has_free_slot(self, variant: Variant) -> bool:
        """Whether one more lease keeps within the runner's slots and the instance's cap."""

    @property
    def unproven(self) -> bool:
        """Whether it is new and no probe has come back yet."""

    def breaker_reopens_at(self, variant: Variant, now: float) -> float | None:
        """When an open breaker lets requests try it again (its own, or that of the model there);
        None while none is open."""

    def breaker_allows(self, variant: Variant, now: float) -> bool:
        """Whether its breakers let one more request through now."""

    def paused_until(self, now: float) -> float | None:
        """Until when it takes nothing new, as it was full a moment ago; None where it does."""

    def no_room_until(self, variant: Variant, now: float) -> float | None:
        """Until when no load of it is tried there at the latest, as its devices had no room for one; None
        where it is."""

    def gated_until(self, variant: Variant, now: float) -> float | None:
        """Until when leases for this variant are held back so that another can be loaded, at the
        latest; None where there is no gate."""

    def warm(self, variant: Variant) -> bool:
        """Whether a request for the variant needs no load, as far as is known."""

    @property
    def learned(self) -> LearnedView:
        """What its answers have taught."""

    def spared_until(self, now: float) -> float:
        """Until when what is in its memory counts as in use (monotonic seconds): minus infinity where nothing
        is, as far as is known."""

    def settled(self, now: float) -> bool:
        """Whether nothing is the matter with it: no filter takes it out for a model that it has, and nothing
        holds it back but slots. Where it is not so, filters are to be asked."""

    def candidate(self, variant: Variant | None) -> Candidate:
        """What scores of a request for the variant are made of, taken down now; without one what concerns no
        runner."""

    def load_seconds(self, variant: Variant) -> float:
        """How long to load the variant is expected to take: as measured, else by its size."""

    @property
    def loading(self) -> Variant | None:
        """What is being loaded there by the balancer; one at a time."""

    @property
    def load_overdue_at(self) -> float:
        """When that load has taken so long that others need not wait for it; monotonic seconds."""


class FleetView(Protocol):
    """All instances, in the order of the configuration."""

    def instances(self) -> Sequence[InstanceView]: ...

    def holding(self, model: ModelName) -> Sequence[InstanceView]:
        """Those of them that hold the model."""
