"""Keeps the prefix index true: it learns from what was sent where, forgets with the runners, and is corrected
by how long evaluations took.

One writer of the index. It listens to the fleet, and whoever carries out requests tells it of them.
"""

from balancer.core.names import ModelName, is_cloud_name
from balancer.core.ticket import InstanceId, Ticket
from balancer.core.variant import Variant
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.protocol.endings import Counters
from balancer.scheduling.prefix_index import PrefixIndex

_EVALUATED_TOKENS = 128
"""Shorter prompts take what surrounds their evaluation, whether cached or not."""

_Life = tuple[int, int]


class PrefixLearner:
    """Of one fleet. A ticket without marks, of no model or of one in the cloud, is none of its business."""

    def __init__(self, *, index: PrefixIndex, fleet: Fleet) -> None:
        self._index = index
        self._fleet = fleet
        self._lives: dict[tuple[InstanceId, ModelName], _Life] = {}
        fleet.listen(on_change=self._changed, on_members=self._members)

    def leased(self, ticket: Ticket, instance: InstanceId) -> float | None:
        """Which share of the prompt, 0 to 1, is believed to be cached where it goes now; None where nothing
        is known of it."""
        variant = _variant(ticket)
        if variant is None or instance not in self._fleet:
            return None
        self._check(self._fleet.get(instance), variant.model)
        return self._index.believed_tokens(instance, variant, ticket.prefix) / max(1, ticket.prefix[-1][1])

    def began(self, ticket: Ticket, instance: InstanceId) -> None:
        """The answer has begun, so the whole prompt was evaluated there."""
        variant = _variant(ticket)
        if variant is None or instance not in self._fleet:
            return
        self._check(self._fleet.get(instance), variant.model)
        self._index.remember(instance, variant, ticket.prefix)

    def ended(
        self,
        ticket: Ticket,
        instance: InstanceId,
        counters: Counters,
        *,
        believed_share: float,
        loaded: bool,
        kept: bool,
    ) -> float | None:
        """A whole answer has ended; which share of its prompt was cached, by how long the evaluation took,
        maybe less than 0; None where nothing tells. `loaded`: the model was loaded for it; `kept`: it stays
        in memory."""
        variant = _variant(ticket)
        if variant is None or instance not in self._fleet or not counters.prompt_tokens:
            return None
        own_tokens = ticket.prefix[-1][1]
        inferred = None if loaded else _inferred_share(self._fleet.get(instance), ticket, counters)
        if loaded or not kept:
            self._index.forget(instance, variant.model)
        elif inferred is not None:
            self._index.correct(
                instance,
                variant,
                prompt_tokens=own_tokens,
                believed_tokens=believed_share * own_tokens,
                inferred_tokens=inferred * own_tokens,
            )
        if kept:
            answer_tokens = (counters.generated_tokens or 0) * own_tokens // counters.prompt_tokens
            self._index.remember(instance, variant, ticket.prefix, answer_tokens=answer_tokens)
        return inferred

    def _changed(self, instance: Instance) -> None:
        for model in self._index.models_at(instance.id):
            self._check(instance, model)

    def _members(self) -> None:
        for name in self._index.instances():
            if name in self._fleet:
                self._changed(self._fleet.get(name))
            else:
                self._index.forget(name)
        self._lives = {key: life for key, life in self._lives.items() if key[0] in self._fleet}

    def _check(self, instance: Instance, model: ModelName) -> None:
        """Forget what an earlier runner had cached."""
        life = instance.incarnation, instance.residency.life(model)
        if self._lives.get((instance.id, model)) != life:
            self._index.forget(instance.id, model)
            self._lives[instance.id, model] = life


def _variant(ticket: Ticket) -> Variant | None:
    variant = ticket.variant
    if not ticket.prefix or variant is None or is_cloud_name(variant.model):
        return None
    return variant


def _inferred_share(instance: Instance, ticket: Ticket, counters: Counters) -> float | None:
    """1 less the time that the evaluation took over that which the whole prompt would take."""
    tokens, seconds = counters.prompt_tokens or 0, counters.prompt_seconds
    whole = instance.learned.prefill_seconds(ticket) * tokens / (ticket.prompt_tokens or 1)
    if tokens < _EVALUATED_TOKENS or seconds is None or not whole:
        return None
    return 1.0 - seconds / whole
