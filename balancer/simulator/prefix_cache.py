"""What a runner remembers of earlier prompts, so that a shared prefix is not evaluated again.

Pure bookkeeping over sequences; it knows no time and no requests. The cache is
the runner's and dies with it. Called by runner and by virtual.instances.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

Items = tuple[Any, ...]


class PrefixCache:
    """Recent sequences under one budget of tokens; the least recently used goes first.

    A sequence is of tokens, or of any items that `weigh` can count the tokens of.
    The last `slots` of them are still in their slots; the others were moved to host
    memory, from where they must be copied back. Many conversations live side by
    side even on a runner with one slot.
    Source: observed on Ollama 0.33 (llama-server keeps idle slot states in RAM):
    two conversations taking turns do not evict each other.
    """

    def __init__(
        self, capacity_tokens: int, *, slots: int = 1, weigh: Callable[[Sequence[Any]], int] = len
    ) -> None:
        self._capacity_tokens = capacity_tokens
        self._slots = slots
        self._weigh = weigh
        self._sequences: OrderedDict[Items, int] = OrderedDict()
        self._by_first: dict[Hashable, dict[Items, None]] = {}
        self._held_tokens = 0

    @property
    def held_tokens(self) -> int:
        return self._held_tokens

    def cached_tokens(self, prompt: Sequence[Any]) -> int:
        """How many leading tokens of `prompt` need no evaluation: always at least one does."""
        return self.find(prompt)[0]

    def find(self, prompt: Sequence[Any]) -> tuple[int, bool]:
        """The same, and whether they are in a slot; a prompt of which nothing is cached needs no copy."""
        wanted = tuple(prompt)
        longest, found = 0, None
        for sequence in self._by_first.get(wanted[0], ()) if wanted else ():
            if len(sequence) > longest and sequence[:longest] == wanted[:longest]:
                shared = shared_prefix(sequence, wanted)
                if shared > longest or found is None:
                    longest, found = shared, sequence
        if found is None:
            return 0, True
        cached = self._weigh(wanted[:longest])
        if longest == len(wanted):
            cached = max(cached - 1, 0)
        return cached, self._in_slot(found)

    def remember(self, sequence: Sequence[Any]) -> None:
        """Hold a prompt and its answer; replaces the sequences that it extends."""
        held = tuple(sequence)
        tokens = self._weigh(held)
        if not held or tokens > self._capacity_tokens:
            return
        alike = self._by_first.setdefault(held[0], {})
        for shorter in [each for each in alike if held[: len(each)] == each]:
            self._drop(shorter)
        self._by_first.setdefault(held[0], {})[held] = None
        self._sequences[held] = tokens
        self._held_tokens += tokens
        while self._held_tokens > self._capacity_tokens:
            self._drop(next(iter(self._sequences)))

    def _in_slot(self, sequence: Items) -> bool:
        newest = reversed(self._sequences)
        return any(each is sequence for each, _ in zip(newest, range(self._slots), strict=False))

    def _drop(self, sequence: Items) -> None:
        self._held_tokens -= self._sequences.pop(sequence)
        alike = self._by_first[sequence[0]]
        del alike[sequence]
        if not alike:
            del self._by_first[sequence[0]]


def shared_prefix(left: Items, right: Items) -> int:
    """The length of the longest common prefix, by bisection over slices (compared in C)."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
