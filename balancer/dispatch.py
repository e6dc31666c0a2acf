"""Queue head, scheduler and lease: the one critical section, with no await inside.

`acquire(ticket) → lease` and `release(lease, outcome)` are the whole seam, in plain data, so that
one elected dispatcher could serve several balancers. A request that arrives is decided for alone; those
that wait are looked at again on a release, any change of the fleet, a deadline, and at the time that the
scheduler itself names; there is one timer and no polling.
"""

import asyncio
import heapq
from collections.abc import Callable, Sequence
from itertools import count

from balancer.admission.overload import Overload, WaitLimits
from balancer.admission.queue import Head, Lane, RequestQueue, lane_of
from balancer.admission.refusals import dead_end, deadline_passed, stopping
from balancer.charges import Charges
from balancer.clock import Clock
from balancer.core.decision import Decision, Standing
from balancer.core.names import ModelName
from balancer.core.ticket import NO_TRIAL, Lease, Outcome, Ticket, TicketId, Verdict
from balancer.core.variant import Variant
from balancer.errors import BalancerError, QueueFull
from balancer.fleet.coolings import Coolings
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.scheduling.scheduler import PAIRS, LoadBegun, Scheduler

_WAITING = frozenset({Standing.BUSY, Standing.LOAD})


class Dispatcher:
    """Lends slots. Everything here runs on the event loop's thread.

    `load` begins a load of a variant at an instance where nothing is being loaded; it must not block,
    and the fleet tells of the load's end. It is False where there is no room for it, which the instance then
    tells. Requests wait for a load in the queue. `spread` is a factor of
    at least 1 for the next `Retry-After`, so that those turned away together do not come back together.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        queue: RequestQueue,
        scheduler: Scheduler,
        clock: Clock,
        load: Callable[[Instance, Variant], bool],
        wait_limits: WaitLimits,
        on_decision: Callable[[Decision], None] = lambda _decision: None,
        spread: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._fleet = fleet
        self._queue = queue
        self.overload = Overload(queue, wait_limits)
        self.charges = Charges(queue)
        self._scheduler = scheduler
        self._clock = clock
        self._load = load
        self._on_decision = on_decision
        self._spread = spread
        self._waiters: dict[TicketId, asyncio.Future[Lease]] = {}
        self._leases: dict[int, tuple[Lease, Instance]] = {}
        self._loads_at: dict[TicketId, LoadBegun] = {}
        self._for_room: set[Lane] = set()
        self._by_choice: set[Lane] = set()
        self._coolings = Coolings()
        self._lease_ids = count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._scheduler_wake_at: float | None = None
        self._pairs_left = PAIRS
        fleet.listen(on_change=lambda _instance: self.wake(), on_members=self.wake)

    @property
    def stopping(self) -> bool:
        """Whether it lends no more."""
        return self._stopping

    @property
    def leases(self) -> tuple[Lease, ...]:
        """All leases out."""
        return tuple(lease for lease, _ in self._leases.values())

    def waits(self, ticket: TicketId) -> bool:
        """Whether a request waits for a slot: it was admitted, and nothing has come of it yet."""
        waiter = self._waiters.get(ticket)
        return waiter is not None and not waiter.done()

    async def acquire(self, ticket: Ticket) -> Lease:
        """Wait for a slot and reserve it.

        Cancelling the wait takes the ticket out; a slot granted at the same moment goes back. A
        ticket that tries again keeps its place, and is not turned away by a full queue.

        Raises:
            UnknownModel: no instance has the model.
            Unserved: the instances that have it are of runtimes that do not serve what is asked.
            NoInstance: none that has it is usable, or all of them failed this request.
            QueueFull: it would have to wait and there is no place.
            Stopping: the balancer is being stopped.
            DeadlinePassed: its deadline came first.
        """
        if self._stopping:
            raise stopping()
        if not self._queue.has_lane_for(ticket):
            raise QueueFull(
                "too many requests with different runner options wait for the model; try again later",
                retry_after_seconds=self.retry_after_seconds(ticket),
            )
        now = self._clock.monotonic()
        if self._coolings.end(now):
            self.wake()  # those that wait already come first
        self._queue.enter(ticket.client)
        try:
            lease = self._lease_now(ticket, now)
        except BalancerError:
            self._queue.leave(ticket.client)
            raise
        return lease or await self._wait(ticket, now)

    def _lease_now(self, ticket: Ticket, now: float) -> Lease | None:
        """A lease without waiting, None where it has to wait. While somebody of its lane waits there is none,
        as nothing has changed since that one was looked at."""
        if self._queue.head(lane_of(ticket), now):
            return None
        self._pairs_left = PAIRS
        decision = self._decide(ticket, now)
        if decision.standing in _WAITING:
            self._hold(ticket, decision)
            return None
        if decision.picked is None:
            raise self._dead_end(decision)
        return self._lend(ticket, decision, now)

    async def _wait(self, ticket: Ticket, now: float) -> Lease:
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiters[ticket.id] = waiter
        lane, before = lane_of(ticket), self._queue.head(lane_of(ticket), now)
        self._queue.push(ticket, self.charges.estimate(ticket))
        overtakes = before is not None and self._queue.head(lane, now) is ticket
        if (overtakes or lane in self._by_choice) and ticket.variant is not None:
            self._settle_heads(now, of=ticket.variant.model)  # what the others left it may take
        if not waiter.done() and ticket.attempt == 1:
            self._turn_away(ticket, now)
        self._arm(now)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result(), Outcome(verdict=Verdict.NEUTRAL, kind="cancelled"))
            else:
                self._queue.leave(ticket.client)
            raise
        except BalancerError:
            self._queue.leave(ticket.client)
            raise
        finally:
            self._forget(ticket)

    def _turn_away(self, ticket: Ticket, now: float) -> None:
        """Where the queue cannot hold one more, whoever has least claim to a place has to go."""
        turned = self.overload.turn_away(ticket, self.charges.pace(ticket), now)
        if turned is not None:
            loser, error = turned
            error.retry_after_seconds = (error.retry_after_seconds or 1.0) * self._spread()
            self._queue.remove(loser.id)
            waiter = self._waiters[loser.id]
            if not waiter.done():
                waiter.set_exception(error)

    def lend_idle(self, ticket: Ticket) -> Lease | None:
        """A slot at once where the variant is resident, that nobody waits for; None where there is none.
        Nothing is queued or loaded for it, and nobody has to wait longer for its sake."""
        variant, now = ticket.variant, self._clock.monotonic()
        waiting = self._queue.heads(now)
        if self._stopping or variant is None or any(_wants(lane, variant.model) for *_, lane in waiting):
            return None
        decision = self._scheduler.decide_idle(ticket, variant, now, others_wait=bool(waiting))
        if decision.picked is None:
            return None
        self._on_decision(decision)
        self._queue.enter(ticket.client)
        return self._lend(ticket, decision, now)

    def release(self, lease: Lease, outcome: Outcome) -> None:
        """End a lease. Raises KeyError for one that was released before.

        The slot of a prompt that was cancelled cools before it is lent again: its runner goes on to
        the end of a batch.
        """
        _, instance = self._leases.pop(lease.id)
        variant = lease.ticket.variant
        now = self._clock.monotonic()
        healthy = outcome.verdict is Verdict.SUCCESS and instance.breakers.untroubled  # no trial
        if lease.ticket.needs_slot and variant is not None:
            instance.give_slot_back(variant.model, lease.leased_at, now)
            instance.settle(lease, outcome, now)
            self.charges.came_back(lease, instance, outcome)
            if outcome.in_prefill and lease.incarnation == instance.incarnation:
                self._coolings.begin(instance, variant.model, now + instance.cooling_seconds(lease.ticket))
        self._queue.leave(lease.ticket.client)
        if healthy and not instance.capped and variant is not None and lease.ticket.needs_slot:
            self._wake_for(variant.model, now)
        else:
            self.wake()

    def stop(self) -> None:
        """Lend no more: whoever waits or comes is told that the balancer is stopping."""
        self._stopping = True
        for ticket in tuple(self._queue.pending()):
            self._queue.remove(ticket.id)
            waiter = self._waiters[ticket.id]
            if not waiter.done():
                waiter.set_exception(stopping())

    def retry_after_seconds(self, ticket: Ticket) -> float:
        """How long until what waits for the same is likely to have been served, by measured work; 1 second
        before anything was measured."""
        return self.overload.retry_after(ticket, self.charges.pace(ticket)) * self._spread()

    def wake(self) -> None:
        """Lend every slot that can be lent now, in the order of the queue; no await in here, so what
        was seen free is free when it is taken."""
        now = self._clock.monotonic()
        self._scheduler_wake_at = None
        self._coolings.end(now)
        if self._queue:
            self._settle_heads(now)
            if self._expire(now):
                self._settle_heads(now)
        self._arm(now)

    def _wake_for(self, model: ModelName, now: float) -> None:
        """A slot of a model came back and nothing else changed, so those that want another one wait on,
        unless they wait for memory."""
        due = [at for at in (self._scheduler_wake_at, self._coolings.next_end) if at is not None]
        if min(due, default=now + 1) <= now:
            self.wake()
        elif self._queue:
            self._settle_heads(now, of=model)
            self._arm(now)

    def _settle_heads(self, now: float, *, of: ModelName | None = None) -> None:
        """Decide for the first of each lane, and for who follows; with `of` only where that model is wanted,
        or room."""
        heads = self._queue.heads(now)
        if of is not None:
            heads = [each for each in heads if _wants(each[2], of) or each[2] in self._for_room]
        self._settle_lanes(heads, now)

    def _settle_lanes(self, heads: list[Head], now: float) -> None:
        """The same for these lanes; once as many pairs were scored as may be at once, the rest waits for the
        loop's next turn."""
        heapq.heapify(heads)
        self._pairs_left = PAIRS
        while heads and self._pairs_left > 0:
            _, number, lane = heapq.heappop(heads)
            ticket = self._queue.head(lane, now)
            if ticket is None or not self._settle(ticket, now):
                continue
            rank = self._queue.rank(lane, now)
            if rank is not None:
                heapq.heappush(heads, (rank, number, lane))
        if heads:
            asyncio.get_running_loop().call_soon(self._settle_rest, heads)

    def _settle_rest(self, heads: list[Head]) -> None:
        now = self._clock.monotonic()
        self._settle_lanes(heads, now)
        self._arm(now)

    def _settle(self, head: Ticket, now: float) -> bool:
        """Decide for the first of a lane; True where it left the queue, or one behind it did, with a lease or
        with an error."""
        if self._waiters[head.id].done():
            return self._queue.remove(head.id)
        decision = self._decide(head, now)
        if decision.standing in _WAITING:
            self._hold(head, decision)
            return False
        ticket = decision.ticket
        waiter = self._waiters[ticket.id]
        if decision.picked is None:
            waiter.set_exception(self._dead_end(decision))
        else:
            waiter.set_result(self._lend(ticket, decision, now))
        self._queue.remove(ticket.id)
        return True

    def _hold(self, ticket: Ticket, decision: Decision) -> None:
        """It waits on: until when, and for what, at the latest."""
        at, lane = decision.next_wake_at, lane_of(ticket)
        if at is not None and (self._scheduler_wake_at is None or at < self._scheduler_wake_at):
            self._scheduler_wake_at = at
        self._for_room.add(lane) if decision.waits_for_room else self._for_room.discard(lane)
        self._by_choice.add(lane) if decision.by_choice else self._by_choice.discard(lane)

    def _decide(self, ticket: Ticket, now: float) -> Decision:
        """The decision, with a load begun where it says so. Where there is no room for that it is made anew,
        which ends, as an instance that has told so is not picked for a load again."""
        while True:
            begun = self._loads_at.get(ticket.id)
            behind = () if begun is not None else self._behind(ticket, now)
            decision = self._scheduler.decide(
                ticket, now, begun=begun, behind=behind, most_pairs=self._pairs_left
            )
            self._pairs_left -= max(1, decision.pairs)  # to look at one that goes nowhere takes time, too
            self._on_decision(decision)
            if decision.standing is not Standing.LOAD or self._begin_load(decision):
                return decision

    def _behind(self, head: Ticket, now: float) -> Sequence[Ticket]:
        """Who may go instead of the first of a lane."""
        if self._scheduler.window < 2:
            return ()
        waiting = self._queue.first(lane_of(head), self._scheduler.window, now)
        return [
            each
            for each in waiting
            if each is not head and each.id not in self._loads_at and not self._waiters[each.id].done()
        ]

    def _begin_load(self, decision: Decision) -> bool:
        """Whether the load that was decided has begun."""
        ticket = decision.ticket
        assert decision.picked is not None
        assert decision.next_wake_at is not None
        assert ticket.variant is not None
        if not self._load(self._fleet.get(decision.picked), ticket.variant):
            return False
        self._loads_at[ticket.id] = LoadBegun(decision.picked, decision.next_wake_at)
        return True

    def _lend(self, ticket: Ticket, decision: Decision, now: float) -> Lease:
        assert decision.picked is not None
        instance = self._fleet.get(decision.picked)
        model = ticket.variant.model if ticket.variant else None
        trial = NO_TRIAL
        if ticket.needs_slot and ticket.variant is not None:
            instance.take_slot(ticket.variant.model, now)
            trial = instance.breakers.take(ticket.variant, now)
        lease = Lease(
            id=next(self._lease_ids),
            ticket=ticket,
            instance=instance.id,
            url=instance.spec.url,
            incarnation=instance.incarnation,
            generation=instance.generation_of(model),
            reason=decision.reason,
            leased_at=now,
            trial=trial,
            runtime=instance.runtime,
        )
        self._leases[lease.id] = (lease, instance)
        if ticket.needs_slot and model is not None:
            self.charges.lent(lease, instance)
        return lease

    def _dead_end(self, decision: Decision) -> BalancerError:
        return dead_end(decision, self._fleet.last_error(decision.ticket.variant, decision.at))

    def _expire(self, now: float) -> bool:
        """Turn away those whose deadline has come; whether there were any."""
        gone = self._queue.expired(now)
        for ticket in gone:
            waiter = self._waiters[ticket.id]
            if not waiter.done():
                after = self.retry_after_seconds(ticket)
                waiter.set_exception(deadline_passed(ticket, now, retry_after_seconds=after))
        return bool(gone)

    def _forget(self, ticket: Ticket) -> None:
        """Who stood behind one that left may go where it would not, as it waited for its own load."""
        del self._waiters[ticket.id]
        self._loads_at.pop(ticket.id, None)
        lane, now = lane_of(ticket), self._clock.monotonic()
        first = self._queue.head(lane, now) is ticket
        if self._queue.remove(ticket.id):
            self.wake() if first else self._arm(now)
        self.overload.eased(ticket, self.charges.pace(ticket))
        if self._queue.head(lane, now) is None:
            self._for_room.discard(lane)
            self._by_choice.discard(lane)

    def _arm(self, now: float) -> None:
        """One timer, at the first deadline or where the scheduler wants to look again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends = (self._queue.next_deadline(), self._scheduler_wake_at, self._coolings.next_end)
        times = [at for at in ends if at is not None]
        if times:
            delay = max(0.0, min(times) - now)
            self._timer = asyncio.get_running_loop().call_later(delay, self.wake)


def _wants(lane: Lane, model: ModelName) -> bool:
    variant = lane[0]
    return variant is not None and variant.model == model
