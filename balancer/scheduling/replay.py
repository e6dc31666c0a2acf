"""A decision that was recorded, made again: scores by the same formulas, from the facts that were taken down.

What was drawn by chance is a fact as others are, and chance among equals is not drawn anew: whoever is as
good as the best could have been picked.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from balancer.core.rates import Rates
from balancer.core.scores import Asked, Candidate, Formula, Scores
from balancer.core.ticket import InstanceId
from balancer.scheduling import adaptive
from balancer.scheduling.strategies import FORMULAS as OTHERS

FORMULAS: Mapping[str, Formula] = {"adaptive": adaptive.FORMULA, **OTHERS}
_MOST = 1e15
_Count = Annotated[int, msgspec.Meta(ge=0, le=int(_MOST))]
_Amount = Annotated[float, msgspec.Meta(ge=0, le=_MOST)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Rate = Annotated[float, msgspec.Meta(ge=1e-9, le=_MOST)]
_Own = Annotated[float, msgspec.Meta(ge=-_MOST, le=_MOST)]


class CannotReplay(ValueError):
    """What was given is no recorded decision, or its facts do not suffice."""


class _Rates(msgspec.Struct, frozen=True):
    prefill_tokens_per_second: _Rate
    decode_tokens_per_second: _Rate | None
    slowdown: _Amount
    samples: _Count = 0


class _Facts(msgspec.Struct, frozen=True):
    """As `core.scores.facts_of` tells them, and what each strategy adds."""

    weight: _Rate
    health: _Share
    running: _Count
    running_of_model: _Count = 0
    warm: bool = True
    load_seconds: _Amount = 0.0
    runners_sharing_device: _Count = 1
    rates: _Rates | None = None
    answer_tokens: _Amount | None = None
    cached_tokens: _Own | None = None
    credit: _Own | None = None
    last_turn: _Own | None = None
    draw: _Own | None = None
    drawn: _Own | None = None


class _Considered(msgspec.Struct, frozen=True):
    instance: str
    filtered: str | None
    score: float | None
    facts: dict[str, object]


class _Waiting(msgspec.Struct, frozen=True):
    instead_of: str | None = None


class _Recorded(msgspec.Struct, frozen=True):
    """As `Decision.explain` tells it, as far as it matters here."""

    request: str
    model: str | None
    prompt_tokens: _Count | None
    needs_slot: bool
    strategy: str
    standing: str
    picked: str | None
    waiting: _Waiting | None
    considered: Sequence[_Considered]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One instance: what filtered it, or its score as recorded and as computed now, with the terms of the
    latter. `best`: its score is the lowest or as good; `picked`: it was."""

    instance: str
    filtered: str | None
    recorded_score: float | None
    score: float | None
    terms: Mapping[str, float]
    best: bool
    picked: bool


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `went_to` is where the request went, None where it waited or could go nowhere; `same`:
    it would again. Where the request waited though it could go somewhere, what is made again is where it
    would have gone else."""

    request: str
    strategy: str
    recorded_strategy: str
    standing: str
    went_to: str | None
    same: bool
    rows: Sequence[Row]


def decisions_in(told: object) -> Sequence[object]:
    """The decisions in an answer of `requests/{id}/decision`, or in what is one of them itself.

    Raises:
        CannotReplay: it is neither.
    """
    if isinstance(told, Mapping) and "considered" in told:
        return [told]
    decisions = told.get("decisions") if isinstance(told, Mapping) else None
    if not isinstance(decisions, Sequence) or isinstance(decisions, str) or not decisions:
        raise CannotReplay("no recorded decision: give what /admin/v1/requests/ID/decision answers")
    return decisions


def replay(told: object, *, strategy: str | None = None) -> Replayed:
    """Make a decision again that `Decision.explain` told, by the strategy of that time or by another.

    Raises:
        CannotReplay: it is none, or lacks a fact that the strategy needs.
    """
    try:
        recorded = msgspec.convert(told, _Recorded)
        by = strategy or recorded.strategy
        scores = _scores(recorded, by)
    except msgspec.ValidationError as error:
        raise CannotReplay(f"no recorded decision: {error}") from error
    best = {scores.candidates[index].id for index in scores.best()} if scores.candidates else set()
    index_of = {each.id: index for index, each in enumerate(scores.candidates)}
    rows = [
        _row(each, scores, index_of.get(InstanceId(each.instance)), best, recorded.picked)
        for each in recorded.considered
    ]
    return Replayed(
        request=recorded.request,
        strategy=by,
        recorded_strategy=recorded.strategy,
        standing=recorded.standing,
        went_to=recorded.picked,
        same=_same(recorded, best, by),
        rows=rows,
    )


def _same(recorded: _Recorded, best: set[InstanceId], strategy: str) -> bool:
    """Whether the outcome is: a strategy that does not reckon in seconds never waits by choice."""
    if not best:
        return True
    instead_of = recorded.waiting.instead_of if recorded.waiting is not None else None
    if instead_of is not None and strategy != recorded.strategy:
        return False
    return (recorded.picked or instead_of) in best


def _scores(recorded: _Recorded, strategy: str) -> Scores:
    formula = FORMULAS.get(strategy)
    if formula is None:
        raise CannotReplay(f"no strategy '{strategy}' can be replayed; there are {', '.join(FORMULAS)}")
    candidates, own = [], []
    for each in recorded.considered:
        if each.score is None:
            continue
        facts = msgspec.convert(each.facts, _Facts)
        candidates.append(_candidate(each.instance, facts))
        if formula.own_fact is not None:
            mine = getattr(facts, formula.own_fact)
            if mine is None:
                raise CannotReplay(
                    f"the facts do not suffice for '{strategy}': {formula.own_fact} was not recorded,"
                    f" as the decision is one of '{recorded.strategy}'"
                )
            own.append(mine)
    asked = Asked(recorded.prompt_tokens or 0, recorded.needs_slot and recorded.model is not None)
    return Scores(formula, asked, candidates, own)


def _candidate(instance: str, facts: _Facts) -> Candidate:
    rates = Rates(**msgspec.structs.asdict(facts.rates)) if facts.rates is not None else None
    return Candidate(
        id=InstanceId(instance),
        weight=facts.weight,
        health=facts.health,
        running=facts.running,
        running_of_model=facts.running_of_model,
        warm=facts.warm,
        load_seconds=facts.load_seconds,
        sharing=facts.runners_sharing_device,
        rates=rates,
        answer_tokens=facts.answer_tokens,
    )


def _row(
    each: _Considered, scores: Scores, index: int | None, best: set[InstanceId], picked: str | None
) -> Row:
    return Row(
        instance=each.instance,
        filtered=each.filtered,
        recorded_score=each.score,
        score=None if index is None else scores.values[index],
        terms={} if index is None else scores[index],
        best=each.instance in best,
        picked=each.instance == picked,
    )
