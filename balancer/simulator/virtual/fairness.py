"""How evenly clients that all want more are served: Jain's index over their shares, window by window."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator

from balancer.simulator.virtual.outcomes import Outcomes

WINDOW_SECONDS = 60.0
_COLUMNS = ("arrived_at", "client", "priority", "embeds", "ttft_seconds", "total_seconds")
_Span = tuple[float, float]
_Client = tuple[int, int]
"""A class and a client of it: clients are only compared within a class, for classes are meant to differ."""


def fairness(outcomes: Outcomes) -> tuple[float, int]:
    """Jain's index, mean over windows and classes, each weighted by its clients; and how many there were.
    NaN where there was none.

    A client is backlogged in a window if at every moment of it one of its generating requests had no first
    byte yet, wherever it waited: so it is the same question for a proxy without a queue. What it was served
    in that window is the time in which its answers were under way, added up over answers: a share of the
    slots, the same for large models and small. Windows count in which at least two clients of a class were
    backlogged and any of them was served. With n clients the index is 1 where all have the same, and 1/n
    where one has everything.

    Source: Jain, Chiu and Hawe, A Quantitative Measure of Fairness, DEC TR-301, 1984; backlogged intervals as
    in Sheng et al., Fairness in Serving Large Language Models, OSDI 2024.
    """
    waits, answers = _spans(outcomes)
    backlogged = {client: set(_covered(spans)) for client, spans in waits.items()}
    shares: dict[tuple[int, int], list[float]] = defaultdict(list)
    for client, windows in backlogged.items():
        served = dict.fromkeys(windows, 0.0)
        for window, seconds in _pieces(answers[client]) if windows else ():
            if window in served:
                served[window] += seconds
        for window, seconds in served.items():
            shares[client[0], window].append(seconds)
    cells = [each for each in shares.values() if len(each) > 1 and any(each)]
    clients = sum(map(len, cells))
    index = math.fsum(len(each) * jain(each) for each in cells) / clients if clients else math.nan
    return index, len(cells)


def jain(shares: list[float]) -> float:
    """Jain's index of shares that are not all zero."""
    return sum(shares) ** 2 / (len(shares) * sum(each * each for each in shares))


def _spans(outcomes: Outcomes) -> tuple[dict[_Client, list[_Span]], dict[_Client, list[_Span]]]:
    """When each client waited for a first byte, and when its answers were under way."""
    waits: dict[_Client, list[_Span]] = defaultdict(list)
    answers: dict[_Client, list[_Span]] = defaultdict(list)
    isnan = math.isnan
    columns = (outcomes.columns[name] for name in _COLUMNS)
    for arrived, client, priority, embeds, ttft, total in zip(*columns, strict=True):
        if embeds:
            continue
        key = (priority, client)
        end = arrived + total
        if isnan(ttft):
            waits[key].append((arrived, end))
        else:
            waits[key].append((arrived, arrived + ttft))
            answers[key].append((arrived + ttft, end))
    return waits, answers


def _covered(spans: list[_Span]) -> Iterator[int]:
    """The windows that the union of the spans covers whole."""
    spans.sort()
    start = end = 0.0
    for begins, ends in spans:
        if begins > end:
            yield from _whole(start, end)
            start = begins
        end = max(end, ends)
    yield from _whole(start, end)


def _whole(start: float, end: float) -> Iterable[int]:
    if end - start < WINDOW_SECONDS:
        return ()
    return range(math.ceil(start / WINDOW_SECONDS), math.floor(end / WINDOW_SECONDS))


def _pieces(spans: list[_Span]) -> Iterator[tuple[int, float]]:
    """The spans cut at the windows' borders."""
    for start, end in spans:
        for window in range(int(start / WINDOW_SECONDS), math.ceil(end / WINDOW_SECONDS)):
            yield window, min(end, (window + 1) * WINDOW_SECONDS) - max(start, window * WINDOW_SECONDS)
