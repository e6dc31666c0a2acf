"""What a runner remembers of earlier prompts, so that a shared prefix is not evaluated again.

Pure bookkeeping over token sequences; it knows no time and no slots. The cache
is the runner's and dies with it. Called by runner and by virtual-time fleets.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

Tokens = tuple[int, ...]


class PrefixCache:
    """Recent token sequences under one budget; the least recently used goes first.

    Many conversations live side by side even on a runner with one slot.
    Source: observed on Ollama 0.33 (llama-server keeps idle slot states in RAM):
    two conversations taking turns do not evict each other.
    """

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_tokens = capacity_tokens
        self._sequences: OrderedDict[Tokens, None] = OrderedDict()
        self._held_tokens = 0

    @property
    def held_tokens(self) -> int:
        return self._held_tokens

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        """How many leading tokens of `prompt` need no evaluation: always at least one does."""
        wanted = tuple(prompt)
        longest = 0
        for sequence in self._sequences:
            if len(sequence) > longest and sequence[:longest] == wanted[:longest]:
                longest = max(longest, shared_prefix(sequence, wanted))
        return min(longest, max(len(wanted) - 1, 0))

    def remember(self, sequence: Sequence[int]) -> None:
        """Hold a prompt and its answer; replaces the sequences that it extends."""
        held = tuple(sequence)
        if not held or len(held) > self._capacity_tokens:
            return
        for shorter in [s for s in self._sequences if held[: len(s)] == s]:
            self._drop(shorter)
        self._sequences[held] = None
        self._held_tokens += len(held)
        while self._held_tokens > self._capacity_tokens:
            self._drop(next(iter(self._sequences)))

    def _drop(self, sequence: Tokens) -> None:
        del self._sequences[sequence]
        self._held_tokens -= len(sequence)


def shared_prefix(left: Tokens, right: Tokens) -> int:
    """The length of the longest common prefix, by bisection over slices (compared in C)."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
