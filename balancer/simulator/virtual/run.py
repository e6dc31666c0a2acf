"""One run: a scenario, a strategy and a seed, from the first arrival to the last answer.

    session → turn → ticket → lease → answer → outcome

Everything random is drawn from the seed, and what the workload draws depends on nothing else: two strategies
meet the same requests.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, count

from balancer.accounting.teacher import LOADED_SECONDS
from balancer.admission.retry_budget import RetryBudget
from balancer.attempts import FULL_SECONDS
from balancer.core.names import ModelName, canonical_name
from balancer.core.ticket import Blame, ClientId, Lease, Ticket, TicketId, Verdict
from balancer.core.ticket import Outcome as LeaseOutcome
from balancer.core.variant import Variant
from balancer.errors import ConnectFailed, DeadlinePassed, FleetError, InstanceError, QueueFull, UnknownModel
from balancer.fleet.residency import EVICTION_SECONDS
from balancer.overdue import Overdue
from balancer.protocol.failures import BUSY, CRASH, OUT_OF_MEMORY, Retry
from balancer.settings.scenario import Scenario
from balancer.simulator.virtual.clairvoyant import HORIZON_SECONDS
from balancer.simulator.virtual.execution import Job
from balancer.simulator.virtual.fleet import VirtualFleet
from balancer.simulator.virtual.hardware import InstanceShape, instances_of
from balancer.simulator.virtual.instances import AnswerCut, Prompt, Served
from balancer.simulator.virtual.loop import VirtualLoop
from balancer.simulator.virtual.outcomes import Outcome, Outcomes, RunFacts
from balancer.simulator.virtual.records import Records, Tally
from balancer.simulator.virtual.refusals import Refused
from balancer.simulator.virtual.rivals import Learner
from balancer.simulator.virtual.shelf import IMMEDIATE, SHELF
from balancer.simulator.virtual.work import Fault, FaultKind, Observation, Segment, Session, Turn
from balancer.simulator.virtual.workload import faults, sessions

_SILENCE_SECONDS = 2.0
_OK = LeaseOutcome(verdict=Verdict.SUCCESS, kind="ok")


@dataclass(frozen=True, slots=True)
class Run:
    """What a run was like."""

    outcomes: Outcomes
    facts: RunFacts


def run(
    scenario: Scenario,
    *,
    strategy: str,
    seed: int,
    on_progress: Callable[[int], None] = lambda _done: None,
) -> Run:
    """Serve a scenario's workload. `on_progress` is told from time to time how many requests have ended.
    Raises KeyError for a strategy that there is not."""
    return serve(
        scenario,
        instances_of(scenario),
        sessions(scenario, seed),
        faults(scenario, seed),
        strategy=strategy,
        seed=seed,
        on_progress=on_progress,
    )


def serve(
    scenario: Scenario,
    shapes: Sequence[InstanceShape],
    asked: Iterable[Session],
    going_wrong: Iterable[Fault] = (),
    *,
    strategy: str,
    seed: int,
    on_progress: Callable[[int], None] = lambda _done: None,
) -> Run:
    """The same with other instances, sessions and faults than the scenario's own."""
    began = time.process_time()
    made = SHELF[strategy.removesuffix(IMMEDIATE)]
    loop = VirtualLoop()

    async def main() -> tuple[Outcomes, VirtualFleet]:
        virtual = VirtualFleet(scenario, shapes, made, immediate=strategy.endswith(IMMEDIATE), seed=seed)
        return await _Run(scenario, virtual, on_progress).whole(asked, going_wrong), virtual

    outcomes, virtual = loop.run(main())
    facts = RunFacts(
        strategy=strategy,
        seed=seed,
        virtual_seconds=loop.time(),
        loads=sum(each.seen.loads for each in virtual.instances),
        evictions=sum(each.seen.unloads for each in virtual.instances),
        load_seconds=sum(each.load_seconds for each in virtual.instances),
        wasted_load_seconds=sum(each.wasted_load_seconds for each in virtual.instances),
        busy_seconds=tuple(each.busy_seconds for each in virtual.devices),
        decisions=virtual.decisions,
        events=loop.turns,
        cpu_seconds=time.process_time() - began,
        slots_out=len(virtual.dispatcher.leases),
    )
    return Run(outcomes, facts)


class _Run:
    def __init__(self, scenario: Scenario, virtual: VirtualFleet, on_progress: Callable[[int], None]) -> None:
        self._scenario = scenario
        self._virtual = virtual
        self._observe = virtual.strategy.observe if isinstance(virtual.strategy, Learner) else None
        self._oracle = virtual.oracle
        self._loop = asyncio.get_running_loop()
        self._numbers = {each.name: index for index, each in enumerate(self._virtual.instances)}
        self._dispatcher = self._virtual.dispatcher
        self._budget = RetryBudget()
        self._silent: Overdue[asyncio.Task[None]] = Overdue(_SILENCE_SECONDS, self._stays_silent)
        self._arrivals = count(1)
        self._records = Records(on_progress)
        self._faults: Counter[tuple[int, FaultKind]] = Counter()
        self._live = 0
        self._all_begun = False
        self._ended = self._loop.create_future()

    async def whole(self, asked: Iterable[Session], going_wrong: Iterable[Fault]) -> Outcomes:
        """All of it."""
        await self._virtual.open(warm=self._scenario.instances.warm)
        began_at = self._loop.time()
        for fault in going_wrong:
            self._loop.call_at(began_at + fault.at, self._strike, fault)
        for session in self._seen_ahead(asked, began_at):
            await asyncio.sleep(max(0.0, began_at + session.starts_at - self._loop.time()))
            if self._ended.done():
                break  # a defect, which is raised below
            self._live += 1
            task = self._loop.create_task(self._serve(session))
            task.add_done_callback(self._session_ended)
        self._all_begun = True
        if self._live or self._ended.done():
            await self._ended
        return self._records.outcomes

    def _seen_ahead(self, asked: Iterable[Session], began_at: float) -> Iterator[Session]:
        """The same sessions, told to an oracle before they come."""
        if self._oracle is None:
            yield from asked
            return
        ahead: deque[Session] = deque()
        for session in asked:
            ahead.append(session)
            self._oracle.comes(canonical_name(session.model), began_at + session.starts_at)
            while ahead[0].starts_at + HORIZON_SECONDS < session.starts_at:
                yield ahead.popleft()
        yield from ahead

    def _session_ended(self, task: "asyncio.Task[None]") -> None:
        self._live -= 1
        if not task.cancelled() and task.exception() is not None and not self._ended.done():
            self._ended.set_exception(task.exception() or RuntimeError)
        elif self._all_begun and not self._live and not self._ended.done():
            self._ended.set_result(None)

    async def _serve(self, session: Session) -> None:
        """One client's turns, one after the other. What was not answered is not in the history."""
        model = canonical_name(session.model)
        variant = Variant(model, (("num_ctx", session.num_ctx),) if session.num_ctx else ())
        history: Prompt = ()
        for index, turn in enumerate(session.turns):
            if turn.think_seconds:
                if self._oracle is not None:
                    self._oracle.comes(model, self._loop.time() + turn.think_seconds)
                await asyncio.sleep(turn.think_seconds)
            prompt = history + turn.segments
            answer = (session.answer_id + index, turn.output_tokens)
            if session.foreign is not None:
                await self._foreign(session, model, prompt, answer)
                answered = True
            else:
                answered = await self._request(session, turn, variant, prompt, answer)
            if not turn.inputs:
                history = (*prompt, answer) if answered else prompt

    async def _foreign(self, session: Session, model: str, prompt: Prompt, answer: Segment) -> None:
        """Past the balancer; nobody counts what becomes of it."""
        assert session.foreign is not None
        self._records.said(ModelName(model), _marks(prompt), -next(self._arrivals))
        with suppress(InstanceError):
            await self._virtual.instances[session.foreign].answer(model, prompt, answer, session.num_ctx)

    async def _request(
        self,
        session: Session,
        turn: Turn,
        variant: Variant,
        prompt: Prompt,
        answer: Segment,
    ) -> bool:
        """One request and its row; whether it was answered."""
        number, now = next(self._arrivals), self._loop.time()
        tally = Tally(number, now, answer=answer, inputs=turn.inputs)
        ticket = self._ticket(session, variant, prompt, tally)
        self._records.said(variant.model, ticket.prefix, number)
        if self._oracle is not None:
            self._oracle.asks(ticket.id, prompt, answer[1])
        try:
            if turn.patience_seconds is None:
                outcome = await self._tries(ticket, tally, prompt, answer)
            else:
                async with asyncio.timeout(turn.patience_seconds):
                    outcome = await self._tries(ticket, tally, prompt, answer)
        except TimeoutError:
            outcome = Outcome.CANCELLED
        if self._oracle is not None:
            self._oracle.done(ticket.id)
        self._records.add(ticket, tally, outcome, self._loop.time())
        return outcome is Outcome.OK

    def _ticket(self, session: Session, variant: Variant, prompt: Prompt, tally: Tally) -> Ticket:
        marks, now = _marks(prompt), tally.arrived_at
        self._budget.requested(now)
        return Ticket(
            id=TicketId(str(tally.number)),
            arrival=tally.number,
            client=ClientId(session.client),
            priority=session.priority,
            variant=variant,
            needs_slot=True,
            queued_at=now,
            deadline=now + self._scenario.queue_seconds,
            path="/api/embed" if tally.inputs else "/api/chat",
            prompt_tokens=marks[-1][1],
            prefix=marks,
        )

    async def _tries(self, ticket: Ticket, tally: Tally, prompt: Prompt, answer: Segment) -> Outcome:
        """Lease, ask, and elsewhere where that fails before the first byte, as `attempts` does."""
        while True:
            asked_at = self._loop.time()
            try:
                lease = await self._dispatcher.acquire(ticket)
            except QueueFull:
                return Outcome.REJECTED
            except DeadlinePassed:
                return Outcome.EXPIRED
            except (FleetError, UnknownModel):
                return Outcome.FAILED
            finally:
                tally.queued_seconds += self._loop.time() - asked_at
            tally.attempts += 1
            tally.instance = self._numbers[lease.instance]
            tally.load_seconds += self._loaded_for(lease, asked_at)
            try:
                tally.served = await self._ask(lease, prompt, answer)
            except InstanceError as error:
                if isinstance(error, AnswerCut) or not self._may_retry(ticket, lease, error):
                    return Outcome.FAILED
                ticket = ticket.excluding(lease.instance)
                continue
            return Outcome.OK

    def _loaded_for(self, lease: Lease, since: float) -> float:
        """How much of the time since then its model was being loaded where it goes now."""
        assert lease.ticket.variant is not None
        instance = self._virtual.by_id[lease.instance]
        began_at, ended_at = instance.last_load.get(lease.ticket.variant.model, (since, since))
        return max(0.0, ended_at - max(began_at, since))

    async def _ask(self, lease: Lease, prompt: Prompt, answer: Segment) -> Served:
        """One try under a lease, which is given back whatever becomes of it."""
        variant = lease.ticket.variant
        assert variant is not None
        model, sent_at = variant.model, lease.leased_at
        num_ctx = variant.options[0][1] if variant.options else None
        instance = self._virtual.by_id[lease.instance]
        task = asyncio.current_task()
        assert task is not None
        self._silent.begin(task)
        self._virtual.school.sent(lease)
        job: Job | None = None

        def begun(its: Job) -> None:
            nonlocal job
            job = its
            its.on_evaluated = lambda: self._virtual.school.evaluated(lease)

        try:
            context = num_ctx if isinstance(num_ctx, int) else None
            served = await instance.answer(model, prompt, answer, context, begun)
        except InstanceError as error:
            self._failed(lease, error)
            raise
        except BaseException:
            in_prefill = job is None or not job.first_byte_at <= self._loop.time()
            left = LeaseOutcome(verdict=Verdict.NEUTRAL, kind="cancelled", in_prefill=in_prefill)
            self._return(lease, left)
            raise
        finally:
            self._silent.end(task)
        self._return(lease, _OK, served)
        if served.load_seconds > LOADED_SECONDS:
            self._virtual.prober.look(lease.instance)
        if self._observe is not None:
            now = self._loop.time()
            self._observe(
                Observation(
                    instance=lease.instance,
                    model=model,
                    prompt_tokens=lease.ticket.prompt_tokens or 0,
                    prompt_seconds=served.prompt_seconds,
                    output_tokens=served.output_tokens,
                    output_seconds=served.output_seconds,
                    first_byte_seconds=served.first_byte_at - sent_at,
                    total_seconds=now - sent_at,
                    at=now,
                )
            )
        return served

    def _failed(self, lease: Lease, error: InstanceError) -> None:
        instance = self._virtual.fleet.get(lease.instance)
        told, blames = str(error), Blame.INSTANCE
        broken = LeaseOutcome(verdict=Verdict.FAILURE, kind=error.kind, error=told, blames=blames)
        if isinstance(error, ConnectFailed) and error.refused:
            self._virtual.fleet.failed(instance, told, refused=True, incarnation=lease.incarnation)
        elif isinstance(error, Refused):
            broken = error.told.outcome(told)
            if error.told is BUSY:
                self._virtual.fleet.pause(instance, for_seconds=FULL_SECONDS)
            elif error.told is OUT_OF_MEMORY:
                self._virtual.room.out_of_memory(instance)
        self._return(lease, broken)

    def _return(self, lease: Lease, outcome: LeaseOutcome, served: Served | None = None) -> None:
        self._virtual.school.ended(lease, outcome, served)
        self._dispatcher.release(lease, outcome)
        if self._virtual.fleet.get(lease.instance).loading is not None:
            self._loop.call_later(EVICTION_SECONDS, self._virtual.prober.look, lease.instance)

    def _may_retry(self, ticket: Ticket, lease: Lease, error: InstanceError) -> bool:
        others = (each for each in self._virtual.fleet.usable() if each.id not in ticket.excluded)
        if all(each.id == lease.instance for each in others):
            return False
        now = self._loop.time()
        if isinstance(error, Refused) and (told := error.told) is not CRASH:
            return told.retry is Retry.FREE or (told.retry is Retry.COUNTED and self._budget.take(now))
        if isinstance(error, ConnectFailed):
            return True
        return self._budget.take(now, broken=lease.instance, leased_at=lease.leased_at)

    def _stays_silent(self, task: "asyncio.Task[None]") -> None:
        for name, instance in self._virtual.by_id.items():
            if instance.owes_first_byte(task):
                self._virtual.prober.look(name)

    def _strike(self, fault: Fault) -> None:
        """Where faults of a kind overlap at an instance, they end with the last of them."""
        self._faults[fault.instance, fault.kind] += 1
        self._loop.call_later(fault.seconds, self._pass, fault)
        instance = self._virtual.instances[fault.instance]
        match fault.kind:
            case FaultKind.KILL:
                instance.kill()
            case FaultKind.HANG:
                instance.freeze(frozen=True)
            case FaultKind.SLOW:
                instance.slow_down(fault.factor)
            case FaultKind.LOADS_FAIL:
                instance.loads_fail = True

    def _pass(self, fault: Fault) -> None:
        self._faults[fault.instance, fault.kind] -= 1
        if self._faults[fault.instance, fault.kind]:
            return
        instance = self._virtual.instances[fault.instance]
        match fault.kind:
            case FaultKind.KILL:
                instance.revive()
            case FaultKind.HANG:
                instance.freeze(frozen=False)
            case FaultKind.SLOW:
                instance.slow_down(1.0)
            case FaultKind.LOADS_FAIL:
                instance.loads_fail = False


def _marks(prompt: Prompt) -> tuple[tuple[int, int], ...]:
    """As `Ticket.prefix` has them: the identity of a segment stands for all that comes before it, too."""
    ends = accumulate(tokens for _, tokens in prompt)
    return tuple((mark, end) for (mark, _), end in zip(prompt, ends, strict=True))
