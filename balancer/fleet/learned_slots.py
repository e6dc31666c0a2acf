"""How many slots a runner turns out to have, and whether others use it: learned from waits inside it.

Nothing tells of the line in front of a runner's slots. But an instance tells how long a request took in all,
and how long its parts took: what is left over is the wait. Who was answered while others of the balancer
that came before it were still worked on has shown that there are so many slots; a runner's slots stay the
same for its life. Who waited though no more were there than that met a stranger: somebody sends requests past
the balancer. Who waited beside more has shown that there are fewer slots than those.
Source: Ollama v0.33 server/sched.go, llm/llama_server.go (slots are forced to 1 for some families of models
and told to nobody; one first-come line for each runner).
"""

from collections import deque

_OBSERVATIONS = 3
"""So many that agree change what is believed."""
_RECENT_SECONDS = 60.0
"""A wait longer ago says nothing of others any more; nor is a number of slots that failed tried again
sooner."""
_LONGEST_SECONDS = 3600.0
_MOST_SLOTS = 64
_WAIT_SECONDS = 0.1
_WAIT_SHARE = 0.1
"""Less than this, and than this share of the work, may be the template's, the tokenizer's or a disk's."""
_CUT_TOKENS_SQUARED_PER_SECOND = 1.5e8


def cut_seconds(prompt_tokens: int) -> float:
    """How long Ollama may take to cut a chat of short messages to its context, before its runner sees it.
    Source: observed on Ollama v0.33, 25 s for 400 KB in 400 messages: the square of the length."""
    return prompt_tokens**2 / _CUT_TOKENS_SQUARED_PER_SECOND


def has_waited(left_over_seconds: float, *, work_seconds: float, asked_tokens: int) -> bool:
    """Whether what is left over of a request's time is a wait for a slot. `asked_tokens` is an upper bound of
    its prompt's length."""
    usual = _WAIT_SECONDS + _WAIT_SHARE * work_seconds + cut_seconds(asked_tokens)
    return left_over_seconds > usual


class LearnedSlots:
    """Of one runner of one instance. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.limit: int | None = None
        """Slots that it has as far as is learned, None where nothing contradicts what was told."""
        self._strangers = 0
        self._generation = 0
        self._proven = 1
        self._straight = 0
        self._waits: deque[int] = deque(maxlen=_OBSERVATIONS)
        self._met_at: deque[float] = deque(maxlen=_OBSERVATIONS)
        self._last_met_at = float("-inf")
        self._tried = False
        self._raise_at = float("-inf")
        self._raise_after = _RECENT_SECONDS

    @property
    def shared(self) -> bool:
        """Whether others use it, too."""
        return self._strangers > 0

    def slots(self, told: int | None) -> int:
        """How many to use, at least 1: at most what was told, less one for each sign of strangers."""
        if self.limit is None and not self._strangers:
            return told or 1
        return max(1, self._believed(told) - self._strangers)

    def learn(
        self, *, waited: bool, proof: int, possible: int, told: int | None, generation: int, now: float
    ) -> None:
        """A request waited inside, or went straight to work. So many of the balancer's requests were worked
        on at once for sure (`proof`), itself included, and at most `possible` were there as it came; `told`
        as for `slots`."""
        if generation != self._generation:
            self._begin_anew(generation, now)
        if proof > self._proven:
            self._proven = proof
            self._waits.clear()
        if not waited:
            self._went_straight(proof, told, now)
        elif possible <= self._proven:
            self._met_stranger(told, now)
        elif possible <= self.slots(told):
            self._waited(possible, now)

    def forget_strangers(self, now: float) -> bool:
        """Use all slots again where no stranger was met for a while; whether that is so now."""
        if not self._strangers or now - self._last_met_at < _RECENT_SECONDS:
            return False
        self._strangers = 0
        return True

    def _begin_anew(self, generation: int, now: float) -> None:
        """Another runner has taken its place, and may have another number of slots."""
        self._generation, self._proven = generation, 1
        self._waits.clear()
        self._tried = False
        self._raise_after = _RECENT_SECONDS
        self._raise_at = min(self._raise_at, now + self._raise_after)

    def _believed(self, told: int | None) -> int:
        limit = self.limit if self.limit is not None else told or 1
        return limit if told is None else min(limit, told)

    def _went_straight(self, proof: int, told: int | None, now: float) -> None:
        """Where all slots were in use there may be one more."""
        limit = self._believed(told)
        if proof < limit or limit >= (told or _MOST_SLOTS) or now < self._raise_at:
            return
        self._straight += 1
        if self._straight >= _OBSERVATIONS:
            self.limit, self._straight, self._tried = limit + 1, 0, True

    def _waited(self, possible: int, now: float) -> None:
        self._waits.append(possible)
        if len(self._waits) < _OBSERVATIONS:
            return
        self.limit = min(self._waits) - 1
        self._waits.clear()
        if self._tried:
            self._tried = False
            self._raise_after = min(2 * self._raise_after, _LONGEST_SECONDS)
        self._raise_at = now + self._raise_after

    def _met_stranger(self, told: int | None, now: float) -> None:
        self._met_at.append(now)
        self._last_met_at = now
        if self._met_at[0] > now - _RECENT_SECONDS and len(self._met_at) == _OBSERVATIONS:
            self._met_at.clear()
            self._strangers += self.slots(told) > 1 or not self._strangers
