"""What leases cost: each client is charged with the work that a request is expected to be when a slot is lent
to it, and with what it was when the slot comes back.

Work is in seconds of a device's time, which all that run on a device at once share. From what was measured
follows how fast requests are served, too.
"""

from collections import Counter
from collections.abc import Mapping

from balancer.admission.backlog import model_of
from balancer.admission.overload import Pace
from balancer.admission.queue import RequestQueue
from balancer.admission.work import WorkEstimates
from balancer.core.names import ModelName
from balancer.core.ticket import Lease, Outcome, Ticket, TicketId, Verdict
from balancer.fleet.instance import Instance


class Charges:
    """Of the leases of one dispatcher, to the clients of one queue."""

    def __init__(self, queue: RequestQueue) -> None:
        self._queue = queue
        self._estimates = WorkEstimates()
        self._charged: dict[int, tuple[float, float]] = {}
        self._lent_at: dict[ModelName, Counter[Instance]] = {}

    def estimate(self, ticket: Ticket) -> float:
        """The work that a ticket is expected to be; none where it needs no slot."""
        return self._estimates.estimate(ticket) if ticket.needs_slot else 0.0

    def lent(self, lease: Lease, instance: Instance) -> None:
        """A slot is lent."""
        work = self.estimate(lease.ticket)
        self._queue.charge(lease.ticket, work, lease.leased_at)
        self._charged[lease.id] = work, instance.device_time.seconds
        self._lent_at.setdefault(model_of(lease.ticket), Counter())[instance] += 1

    def came_back(self, lease: Lease, instance: Instance, outcome: Outcome) -> None:
        """It came back; nobody pays for what failed."""
        model = model_of(lease.ticket)
        lent_at = self._lent_at[model]
        lent_at[instance] -= 1
        if not lent_at[instance]:
            del lent_at[instance]
        if not lent_at:
            del self._lent_at[model]
        charged, began = self._charged.pop(lease.id)
        work = instance.device_time.seconds - began
        if outcome.verdict is Verdict.SUCCESS:
            unmeasured = self._estimates.mean(model) is None
            self._estimates.learn(lease.ticket, work)
            if unmeasured:
                self._queue.backlog.reckon(model, self.estimate)
        elif outcome.verdict is Verdict.FAILURE:
            work = 0.0
        self._queue.correct(lease.ticket.client, charged=charged, took=work)

    def pace(self, ticket: Ticket) -> Pace | None:
        """How fast its model is served; None while nothing of it runs, or nothing was measured."""
        return self._pace(model_of(ticket))

    def expected_waits(self) -> Mapping[TicketId, tuple[int, float | None]]:
        """Of each ticket in the queue, its place among those that wait for the same model, from 1 on, and the
        seconds that it is likely to wait yet; None where that cannot be told."""
        waits: dict[TicketId, tuple[int, float | None]] = {}
        for model in self._queue.backlog.models():
            pace = self._pace(model)
            for place, (ticket, ahead) in enumerate(self._queue.backlog.in_order(model), start=1):
                waits[ticket.id] = place, pace.seconds(ahead) if pace is not None else None
        return waits

    def _pace(self, model: ModelName) -> Pace | None:
        mean = self._estimates.mean(model)
        lent_at = self._lent_at.get(model)
        if mean is None or not lent_at:
            return None
        return Pace(sum(count / each.running_on_device for each, count in lent_at.items()), mean)
