"""What a runner may have cached of earlier prompts, as told by where they were sent: an approximate prefix
tree, for strategies that have no other way to know. It knows no time, no instances and no models.
"""

from collections import OrderedDict

Prefix = tuple[tuple[int, int], ...]
"""Of a prompt: marks, each of all that comes before it, with how many tokens that is; see `Ticket.prefix`."""


class PrefixTree:
    """Prompts by their marks, the least recently sent leaving first, and of a prompt its end first.

    A mark stands for all that comes before it, so the marks alone are the tree: those that two prompts
    share are their common path.
    """

    def __init__(self, *, most_tokens: int, most_marks: int) -> None:
        self._most_tokens = most_tokens
        self._most_marks = most_marks
        self._edges: OrderedDict[int, int] = OrderedDict()
        self.tokens = 0
        """Those of all prompts held, shared beginnings counted once."""

    def __len__(self) -> int:
        """How many marks are held."""
        return len(self._edges)

    def matched_tokens(self, prefix: Prefix) -> int:
        """How many leading tokens of the prompt are those of one held."""
        known = self._known(prefix)
        return prefix[known - 1][1] if known else 0

    def insert(self, prefix: Prefix) -> None:
        """Hold a prompt, as far as there is room."""
        edges = self._edges
        known = self._known(prefix)
        for index in range(len(prefix) - 1, known - 1, -1):
            mark, tokens = prefix[index]
            edges[mark] = tokens - (prefix[index - 1][1] if index else 0)
            self.tokens += edges[mark]
        for mark, _ in reversed(prefix[:known]):  # the beginning comes last, so that it is the last to leave
            edges.move_to_end(mark)
        while self.tokens > self._most_tokens or len(edges) > self._most_marks:
            self.tokens -= edges.popitem(last=False)[1]

    def _known(self, prefix: Prefix) -> int:
        """How many marks of the prompt are held. They are its first ones, so they are counted by halving."""
        edges = self._edges
        low, high = 0, len(prefix)
        while low < high:
            middle = (low + high) // 2
            if prefix[middle][0] in edges:
                low = middle + 1
            else:
                high = middle
        return low
