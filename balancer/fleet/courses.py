"""What else ran at a runner while a request did: the company in which its times were measured.

Counts only requests of the balancer, from when one was sent until its instance had no more part in it.
Two that were sent at almost the same time may reach the runner in either order.
"""

from collections import deque
from dataclasses import dataclass

ON_ITS_WAY_SECONDS = 0.1
"""By then a request that was sent has reached its runner."""
_LEFT_SECONDS = 5.0
"""So long a request that was given up may still hold its slot. Source: observed on Ollama v0.33, 3 s."""
_LEFT_LIMIT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """How many requests a runner worked on (`batch`) while one was answered, itself included, and how many
    runners its device did (`sharing`), both on the average and at least 1. `alone_in_prefill`: no other
    prompt was evaluated beside its own, as far as streams tell, whose first byte ends a prompt."""

    batch: float = 1.0
    sharing: float = 1.0
    alone_in_prefill: bool = True


class Course:
    """One request under way at one runner. At most `possible` of the balancer's requests were there at once
    as it came, itself included; `proof` is how many were worked on at once for sure, known once it has
    ended."""

    __slots__ = (
        *("_alone", "_area", "_before", "_courses", "_sharing", "_since"),
        *("began_at", "possible", "proof", "silent"),
    )

    def __init__(self, courses: "Courses", now: float, *, streams: bool, sharing: int) -> None:
        self.began_at = self._since = now
        self.silent = streams
        self.possible = self.proof = 1
        self._courses = courses
        self._area = courses.area
        self._sharing = sharing
        self._before: list[Course] = []
        self._alone = True

    def meet(self, other: "Course") -> None:
        """That one was sent before it, and is still there."""
        if self.began_at - other.began_at > ON_ITS_WAY_SECONDS:
            self._before.append(other)
        else:
            other.possible = max(other.possible, self.possible)
        if other.silent:
            self._alone = other._alone = False

    def answered(self, now: float) -> None:
        """The first byte of its answer is in, from where its company is that of its answer. One in one piece
        tells nothing of when its prompt was evaluated."""
        if self.silent:
            self.silent = False
            self._prove()
            self._courses.pass_to(now)
            self._since, self._area = now, self._courses.area

    def end(self, now: float, *, left: bool, sharing: int) -> Company:
        """Its instance has no more part in it. One that was given up (`left`) may hold its slot for a
        while."""
        self._prove()
        self._before.clear()  # or it would keep all that ever ran in memory
        self._courses.remove(self, now, left=left)
        passed, area = now - self._since, self._courses.area - self._area
        return Company(
            batch=max(1.0, area / passed) if passed > 0 else float(self.possible),
            sharing=(self._sharing + sharing) / 2,
            alone_in_prefill=self._alone,
        )

    def _prove(self) -> None:
        """Those before it are still answered, too."""
        beside = sum(each in self._courses and not each.silent for each in self._before)
        self.proof = max(self.proof, 1 + beside)


class Courses:
    """Those of one runner. Times are monotonic seconds; `area` is the sum over time of how many run."""

    def __init__(self) -> None:
        self.area = 0.0
        self._running: dict[Course, None] = {}
        self._changed_at = 0.0
        self._left_at: deque[float] = deque(maxlen=_LEFT_LIMIT)

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, course: Course) -> bool:
        return course in self._running

    def begin(self, now: float, *, streams: bool, sharing: int) -> Course:
        """A request is sent, for an answer that streams or comes in one piece; so many runners work on the
        device then, its own included."""
        self.pass_to(now)
        course = Course(self, now, streams=streams, sharing=sharing)
        course.possible += len(self._running) + sum(now - at < _LEFT_SECONDS for at in self._left_at)
        for other in self._running:
            course.meet(other)
        self._running[course] = None
        return course

    def remove(self, course: Course, now: float, *, left: bool) -> None:
        """It runs no more. Raises KeyError for one that was removed before."""
        self.pass_to(now)
        del self._running[course]
        if left:
            self._left_at.append(now)

    def pass_to(self, now: float) -> None:
        """Time has passed."""
        self.area += len(self._running) * (now - self._changed_at)
        self._changed_at = now
