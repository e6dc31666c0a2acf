"""The outlier watch: scores the health of every instance once a second, and ejects those whose stays low.

Sole writer of the scores that scheduling sees, and of ejections. Which health is too low for how long is
`fleet.ejection`'s to say.
"""

import asyncio
from random import Random

from balancer.clock import Clock
from balancer.control.instance_health import InstanceHealth, Judgement
from balancer.core.ejection import Ejection
from balancer.fleet.ejection import EjectionPolicy, Ejections
from balancer.fleet.fleet import Fleet
from balancer.fleet.health_score import LATENCY
from balancer.fleet.instance import Instance
from balancer.telemetry.logs import Logger

_LOOK_SECONDS = 1.0


class OutlierWatch:
    """Watches until cancelled. `policy` may be replaced at any time."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        health: InstanceHealth,
        policy: EjectionPolicy,
        random: Random,
        clock: Clock,
        log: Logger,
    ) -> None:
        self._fleet = fleet
        self._health = health
        self._ejections: Ejections[Instance] = Ejections(random, policy)
        self._clock = clock
        self._log = log

    def use(self, policy: EjectionPolicy) -> None:
        """Judge by another policy from now on."""
        self._ejections.policy = policy

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self.run_once()
            except Exception as error:  # noqa: BLE001 - a boundary of tasks: a defect here ends nothing
                self._log.error("outlier_watch_defect", exc_info=error)

    def run_once(self) -> None:
        """One look at all of them."""
        judged = self._health.judge_all()
        for instance, judgement in judged.items():
            instance.health_score = judgement.score.value
        serving = {each: judged[each].own.value for each in judged if each.usable and not each.drained}
        self._ejections.judge(serving, self._clock.monotonic())
        ejected = self._ejections.ejected
        for instance, judgement in judged.items():
            if instance in ejected and instance.ejection is None:
                self._eject(instance, judgement)
            elif instance not in ejected and instance.ejection is not None:
                self._fleet.readmit(instance)
                self._log.info("instance_readmitted", instance=instance.id)

    def _eject(self, instance: Instance, judgement: Judgement) -> None:
        own, until = judgement.own, self._ejections.until(instance)
        slow = own.without(LATENCY).value >= self._ejections.policy.eject_below
        worst = own.worst
        reason = worst.value.replace("_", " ") if worst is not None else "health"
        self._fleet.eject(instance, Ejection(reason=reason, slow=slow, health=own.value, until=until))
        self._log.warning(
            "instance_ejected",
            instance=instance.id,
            reason=reason,
            health=round(own.value, 3),
            factors={term.value: round(left, 3) for term, left in own.factors.items()},
            seconds=round(until - self._clock.monotonic(), 1),
        )
