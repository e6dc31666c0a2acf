"""What a device does at each moment: the runners that work there share it, and within a runner the slots.

Work flows at rates that change only when something begins or ends, so a device needs one timer: for whatever
ends first. The rates are those of the service model, which the simulated server steps through token by token.
"""

import asyncio
import math
from asyncio import AbstractEventLoop, Future, TimerHandle
from collections.abc import Callable

from balancer.simulator.service_model import (
    BATCH_TOKENS,
    ServiceRates,
    decode_seconds_per_token,
    prefill_seconds,
)

_ALMOST_NOTHING = 1e-4
"""Tokens; less than this is a rounding error."""


class Work:
    """What one runner does: how many of its slots evaluate prompts, and how many decode. `rates` may change
    between two changes of the device."""

    __slots__ = ("decode_rate", "decoding", "frozen", "prefill_rate", "prefilling", "rates")

    def __init__(self, rates: ServiceRates) -> None:
        self.rates = rates
        self.prefilling = 0
        self.decoding = 0
        self.frozen = False
        self.prefill_rate = 0.0
        self.decode_rate = 0.0

    @property
    def busy(self) -> bool:
        return bool(self.prefilling or self.decoding)


class Job:
    """One request in a slot: a prompt of `left` tokens to evaluate, then an answer. `done` has a result once
    both are over. Times are seconds of virtual time, NaN until they come."""

    __slots__ = (
        "answer_tokens",
        "began_at",
        "done",
        "ends",
        "evaluated_at",
        "first_byte_at",
        "left",
        "on_evaluated",
        "pace",
        "prefilling",
        "then",
        "work",
    )

    def __init__(self, work: Work, prompt_tokens: float, answer_tokens: int, pace: float, now: float) -> None:
        self.work = work
        self.left = prompt_tokens
        self.answer_tokens = answer_tokens
        self.pace = pace
        self.prefilling = True
        self.done: Future[None] = asyncio.get_running_loop().create_future()
        self.then: Callable[[], None] | None = None
        self.on_evaluated: Callable[[], None] | None = None
        self.began_at = now
        self.evaluated_at = float("nan")
        self.first_byte_at = float("nan")
        self.ends = float("inf")


class Device:
    """One GPU (or a CPU), and the work of all the runners on it."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: list[Job] = []
        self._at = 0.0
        self._timer: TimerHandle | None = None
        self._due = float("inf")
        self.busy_seconds = 0.0

    @property
    def jobs(self) -> list[Job]:
        """What is under way, in the order in which it began."""
        return self._jobs

    @property
    def sharing(self) -> int:
        """How many runners work at something, at least 1."""
        return max(1, len({id(job.work) for job in self._jobs if not job.work.frozen}))

    def begin(self, work: Work, prompt_tokens: float, answer_tokens: int, pace: float = 1.0) -> Job:
        """Begin a job of a runner; `pace` is how fast this one goes, 1 as its runner's rates say."""
        self._advance()
        job = Job(work, prompt_tokens, answer_tokens, pace, self._at)
        work.prefilling += 1
        self._jobs.append(job)
        self._settle()
        return job

    def drop(self, job: Job) -> None:
        """End a job where it stands."""
        if job in self._jobs:
            self._advance()
            self._leave(job)
            self._settle()

    def cut(self, job: Job, then: Callable[[], None]) -> int:
        """Let a job end that nobody waits for any more: it goes on to the end of its batch, and makes no
        answer; `then` is called. Tells how many tokens of its prompt no whole batch has evaluated by now.
        Source: observed on Ollama 0.33 (a cancel is only seen between batches)."""
        if job not in self._jobs:
            then()
            return 0
        self._advance()
        left = max(job.left, 0.0) if job.prefilling else 0.0
        job.left = left % BATCH_TOKENS
        job.answer_tokens = 0
        job.then = then
        self._settle()
        return math.ceil(left / BATCH_TOKENS) * BATCH_TOKENS

    def changed(self) -> None:
        """Rates have changed, or a runner was frozen or thawed."""
        self._advance()
        self._settle()

    def _advance(self) -> None:
        """Take the work up to now."""
        now = self._loop.time()
        seconds = now - self._at
        self._at = now
        if seconds <= 0 or not self._jobs:
            return
        self.busy_seconds += seconds
        for job in self._jobs:
            work = job.work
            job.left -= seconds * job.pace * (work.prefill_rate if job.prefilling else work.decode_rate)

    def _settle(self) -> None:
        """Move on what is over, give each its rate, and wait for what ends first."""
        for job in [each for each in self._jobs if self._is_over(each)]:
            self._go_on(job)
        self._share()
        due = min((job.ends for job in self._jobs), default=float("inf"))
        if due != self._due or self._timer is None:
            if self._timer is not None:
                self._timer.cancel()
            self._due = due
            self._timer = self._loop.call_at(due, self._look) if due < float("inf") else None

    def _look(self) -> None:
        self._timer = None
        self._advance()
        self._settle()

    def _is_over(self, job: Job) -> bool:
        """Late in a long run a clock's step is more than a little work of a fast device takes, so what was
        due by now counts as done, or it would never be."""
        return not job.work.frozen and (job.left <= _ALMOST_NOTHING or job.ends <= self._at)

    def _go_on(self, job: Job) -> None:
        """Its prompt is evaluated, or its answer is made."""
        if job.prefilling:
            job.evaluated_at = self._at
            if job.on_evaluated is not None:
                job.on_evaluated()
        if job.prefilling and job.answer_tokens:
            job.prefilling = False
            job.work.prefilling -= 1
            job.work.decoding += 1
            job.left = float(job.answer_tokens)
            self._rate(job.work, self.sharing)
            job.first_byte_at = self._at + 1 / (job.work.decode_rate * job.pace)
            return
        # The first token's time was that of the step as it began; nothing is later than the end.
        job.first_byte_at = self._at if job.prefilling else min(job.first_byte_at, self._at)
        self._leave(job)
        if job.then is not None:
            job.then()
        else:
            job.done.set_result(None)

    def _leave(self, job: Job) -> None:
        self._jobs.remove(job)
        if job.prefilling:
            job.work.prefilling -= 1
        else:
            job.work.decoding -= 1

    def _share(self) -> None:
        sharing = self.sharing
        now, rated = self._at, set[int]()
        for job in self._jobs:
            work = job.work
            if id(work) not in rated:
                rated.add(id(work))
                self._rate(work, sharing)
            rate = job.pace * (work.prefill_rate if job.prefilling else work.decode_rate)
            job.ends = now + job.left / rate if rate else float("inf")

    def _rate(self, work: Work, sharing: int) -> None:
        if work.frozen:
            work.prefill_rate = work.decode_rate = 0.0
            return
        rates, prefilling = work.rates, work.prefilling
        if prefilling:
            work.prefill_rate = 1 / prefill_seconds(rates, 1, prefilling, sharing)
        if work.decoding:
            work.decode_rate = 1 / decode_seconds_per_token(rates, work.decoding, prefilling, sharing)
