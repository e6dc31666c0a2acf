"""Many runs at once, each in a process of its own: what goes over the pipes are settings and summaries, never
the rows of a run. A process that ends loses its run and no other; all end with the one that started them.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import msgspec

from balancer.settings.scenario import Scenario
from balancer.simulator.virtual.hardware import best_rates
from balancer.simulator.virtual.run import run
from balancer.simulator.virtual.statistics import Summary, summarize, terciles_of
from balancer.simulator.virtual.work import Session
from balancer.simulator.virtual.workload import sessions

_PROCESSES = multiprocessing.get_context("spawn")
_LAST_WORDS_SECONDS = 5.0


class Task(msgspec.Struct, frozen=True):
    """One run to make; `case` says whose it is."""

    case: int
    scenario: Scenario
    strategy: str
    seed: int


class Done(msgspec.Struct, frozen=True):
    """What came of a task: a summary and the processor time that it took, or what went wrong."""

    task: Task
    summary: Summary | None = None
    cpu_seconds: float = 0.0
    failure: str = ""


class _Worker:
    """One process and the task that it is at."""

    def __init__(self, task: Task) -> None:
        self.pipe, other = _PROCESSES.Pipe()
        self._process: BaseProcess = _PROCESSES.Process(target=_work, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self.give(task)

    def give(self, task: Task) -> None:
        self.task = task
        self.reported = 0
        self.pipe.send(task)

    def receive(self) -> "int | tuple[Summary, float] | None":
        """How many requests its run has behind it, what came of the run, or None where the process ended."""
        try:
            told: int | tuple[Summary, float] = self.pipe.recv()
        except (EOFError, ConnectionError):
            return None
        return told

    def exit_code(self) -> int | None:
        """What the process ended with, once its pipe has; it may still be writing its traceback."""
        self._process.join(timeout=_LAST_WORDS_SECONDS)
        return self._process.exitcode

    def end(self) -> None:
        """End it at once."""
        self.pipe.close()
        self._process.kill()
        self._process.join()
        self._process.close()


def run_all(tasks: Iterable[Task], *, jobs: int, on_progress: Callable[[int], None]) -> Iterator[Done]:
    """Make the runs, at most `jobs` at once, and yield what came of each in the order of their ends.
    `on_progress` is told how many requests of all runs have ended."""
    waiting = deque(tasks)
    behind = 0
    with _workers() as workers:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                worker = _Worker(waiting.popleft())
                workers[worker.pipe] = worker
            for pipe in wait(list(workers)):
                assert isinstance(pipe, Connection)
                worker = workers[pipe]
                told = worker.receive()
                ended = told if isinstance(told, int) else worker.task.scenario.requests
                behind += ended - worker.reported
                worker.reported = ended
                on_progress(behind)
                if isinstance(told, int):
                    continue
                task = worker.task
                if told is None:
                    yield Done(task, failure=f"its process ended with exit code {worker.exit_code()}")
                else:
                    yield Done(task, *told)
                if told is not None and waiting:
                    worker.give(waiting.popleft())
                else:
                    workers.pop(pipe).end()


@contextmanager
def _workers() -> Iterator[dict[Connection, _Worker]]:
    workers: dict[Connection, _Worker] = {}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.end()


def _work(pipe: Connection) -> None:
    """The life of a process: tasks in, progress and summaries out, until nobody is there to take any. A
    defect in a run ends it with a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started it
    try:
        while True:
            task: Task = pipe.recv()
            pipe.send(_summary_of(task, pipe.send))
    except (EOFError, ConnectionError):
        return


def _summary_of(task: Task, report: Callable[[int], None]) -> tuple[Summary, float]:
    made = run(task.scenario, strategy=task.strategy, seed=task.seed, on_progress=report)
    summary = summarize(
        made.outcomes,
        made.facts,
        task.scenario.objectives,
        prompt_terciles=_terciles(task.scenario, task.seed),
        best_rates=best_rates(task.scenario),
    )
    return summary, made.facts.cpu_seconds


@lru_cache(maxsize=2)
def _terciles(scenario: Scenario, seed: int) -> tuple[int, int]:
    """Those of the workload, which every strategy meets alike."""
    return terciles_of(length for session in sessions(scenario, seed) for length in prompts_of(session))


def prompts_of(session: Session) -> Iterator[int]:
    """The tokens of each prompt that the session's generating turns would have if all were answered."""
    if session.foreign is not None:
        return
    said = 0
    for turn in session.turns:
        if not turn.inputs:
            said += sum(tokens for _, tokens in turn.segments)
            yield said
            said += turn.output_tokens
