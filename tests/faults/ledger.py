"""The ledger: what clients saw, what the balancer logged and what went over the lines must agree.

Nothing is lost where every request has exactly one outcome, all three say the same of it, and no
request was sent again after the first byte of its answer had reached its client.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.faults.client import Seen, View
from tests.faults.passthrough import Sent

_BROKEN_OUTCOMES = frozenset({"truncated", "unfinished", "error_record"})
_ALWAYS = frozenset({Seen.WHOLE, Seen.LEFT})
_DEFECTS = ("request_failed", "probe_failed")
_NOT_OF_INSTANCES = frozenset(
    {"queue_full", "no_instance", "deadline", "body_budget", "no_files", "stopping", "unknown_model"}
)
"""Outcomes that the balancer decides on itself: no retry was refused there."""
_NOTICE_SECONDS = 1.0
"""So long after its client has left a request may still be sent, for all that a busy machine does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What came of all requests of a run; `over_budget` were told an instance's error since the balancer
    had no retry left for them."""

    requests: int
    whole: int
    told: int
    broken: int
    left: int
    retried: int
    over_budget: int
    violations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one request from the balancer's log and from the lines."""

    view: View
    events: Sequence[Mapping[str, Any]]
    sent: Sequence[Sent]


def settle_accounts(
    views: Sequence[View],
    events: Sequence[Mapping[str, Any]],
    sent: Sequence[Sent],
    *,
    allows: Callable[[View], bool],
    refused_retries: int = 0,
    late_seconds: float = 0.0,
) -> Account:
    """Compare the three. `allows` says which answers, beside whole ones, the row permits. Beyond those,
    as many may be told an instance's error as the balancer counts retries that it refused.
    `late_seconds` is how late things may be seen on this machine."""
    logged: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event["event"] == "request_finished" and event["method"] == "POST":
            logged[event["request_id"]].append(event)
    lines: defaultdict[str, list[Sent]] = defaultdict(list)
    for each in sorted(sent, key=lambda each: each.at):
        lines[each.request_id].append(each)
    violations = [f"{each['event']}: {each}" for each in events if each["event"] in _DEFECTS]
    violations += _strangers({each.request_id for each in views}, logged, lines)
    over_budget = 0
    for view in views:
        evidence = Evidence(view=view, events=logged[view.request_id], sent=lines[view.request_id])
        of_client = _of_client(evidence, allows)
        if of_client and over_budget < refused_retries and _failed_at_an_instance(evidence):
            of_client = []
            over_budget += 1
        wrong = [
            *of_client,
            *against_log(view.seen, view.status, evidence.events),
            *_of_lines(evidence, late_seconds),
        ]
        violations += [f"{view.request_id} ({view.talk.name}): {what}" for what in wrong]
    count = Counter(view.seen for view in views)
    return Account(
        requests=len(views),
        whole=count[Seen.WHOLE],
        told=count[Seen.TOLD],
        broken=count[Seen.BROKEN],
        left=count[Seen.LEFT],
        retried=sum(1 for each in logged.values() if any(event.get("attempts", 0) > 1 for event in each)),
        over_budget=over_budget,
        violations=tuple(violations),
    )


def _failed_at_an_instance(evidence: Evidence) -> bool:
    """Whether a client was told before any byte of an answer what an instance met."""
    outcomes = {event["outcome"] for event in evidence.events}
    return evidence.view.seen is Seen.TOLD and bool(evidence.sent) and not outcomes & _NOT_OF_INSTANCES


def _strangers(known: set[str], *tables: Iterable[str]) -> list[str]:
    """Ids that no client has sent."""
    return [
        f"{each or 'a request without an id'}: no client sent it"
        for ids in tables
        for each in ids
        if each not in known
    ]


def _of_client(evidence: Evidence, allows: Callable[[View], bool]) -> list[str]:
    """What a client must not see."""
    view = evidence.view
    if view.seen in _ALWAYS or allows(view):
        return []
    told = view.error or repr(bytes(view.body[-160:]))
    logged = [f"{event['outcome']} {event['status']}" for event in evidence.events]
    return [
        f"the client saw '{view.seen}' (status {view.status}, {told}); the log has {logged}, "
        f"the lines {[each.instance for each in evidence.sent]}"
    ]


def against_log(seen: Seen, told: int, events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the log has a request once, and says what its client saw; `told` is the status there."""
    if not events and seen in {Seen.LEFT, Seen.DROPPED}:
        return []  # it may never have been read
    if len(events) != 1:
        return [f"{len(events)} events in the log"]
    outcome, status = events[0]["outcome"], events[0]["status"]
    match seen:
        case Seen.WHOLE | Seen.FOREIGN if told < 400:
            agree = outcome == "ok" and status == told
        case Seen.TOLD:
            agree = outcome not in {"ok", "cancelled", *_BROKEN_OUTCOMES} and status == told
        case Seen.BROKEN:
            agree = outcome in _BROKEN_OUTCOMES and status == told
        case Seen.LEFT:
            # One that leaves while its end is on its way has been answered.
            agree = outcome in {"cancelled", "ok", *_BROKEN_OUTCOMES}
        case _:
            agree = outcome != "ok"
    return [] if agree else [f"the client saw '{seen}' {told}, the log has '{outcome}' {status}"]


def _of_lines(evidence: Evidence, late_seconds: float) -> list[str]:
    """Whether what was sent to instances fits what the client got."""
    view, sent = evidence.view, evidence.sent
    wrong = [f"sent as '{each.marker}', not as its own" for each in sent if each.marker != view.marker]
    if view.first_byte_at is not None:
        again = [each for each in sent if each.at > view.first_byte_at]
        wrong += [f"sent again to {each.instance} after its first byte" for each in again]
    if view.left:
        late = [each for each in sent if each.at > view.ended_at + _NOTICE_SECONDS + late_seconds]
        wrong += [f"sent to {each.instance} after its client had left" for each in late]
    attempts = evidence.events[0].get("attempts", 0) if evidence.events else len(sent)
    # A kept connection that was closed meanwhile costs one silent try on a new one.
    if len(sent) > 2 * attempts:
        wrong.append(f"{attempts} attempts in the log, {len(sent)} on the lines")
    if view.seen in {Seen.WHOLE, Seen.FOREIGN, Seen.BROKEN} and view.status < 400:
        wrong += _of_answer(evidence)
    return wrong


def _of_answer(evidence: Evidence) -> list[str]:
    """Whether the client's bytes are those of the instance that the log names."""
    view, last = evidence.view, evidence.sent[-1] if evidence.sent else None
    if last is None:
        return ["answered, and no instance was asked"]
    if evidence.events and evidence.events[0].get("instance") != last.instance:
        return [f"the log names {evidence.events[0].get('instance')}, {last.instance} was asked last"]
    got, gave = bytes(view.body), bytes(last.body)
    if view.seen is not Seen.BROKEN:
        if last.complete_at is None:
            return ["looks whole, and the instance's answer was not"]
        return [] if got == gave else ["not byte for byte what the instance said"]
    return [] if _begins_alike(got, gave) else ["broken off, and begins otherwise than the instance's answer"]


def _begins_alike(got: bytes, gave: bytes) -> bool:
    """Whether a broken answer is a beginning of the instance's, then at most one record more."""
    common = next((at for at, (a, b) in enumerate(zip(got, gave, strict=False)) if a != b), None)
    if common is None:
        common = min(len(got), len(gave))
    added = got[common:].strip()
    return added.count(b"\n") <= 1
