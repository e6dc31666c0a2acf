"""What came of the rows, as lines of text and as a page of the documents."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.matrix import find_row, keys
from tests.faults.scene import FULL_CLIENTS, FULL_SECONDS, SHORT_CLIENTS, Verdict

_PAGE = """# Faults

{span}: three simulated instances, {clients} clients with mixed traffic, the fault from a third of
the time to two thirds of it. Made by:

```
make faults
```

or, one after another, `python -m tests.faults --rows 1,2 --markdown docs/faults.md`, which renews the lines
of these rows.

Every request must have one outcome on which its client, the log and the lines to the instances
agree, and is never sent again once its first byte is out. No client is told an error before the
first byte unless the row says so, no broken answer looks whole, and nothing is left over. What
breaks a claim is a violation. In any row, requests whose further try the retry budget refused are
told what the instance said: these are `over budget`, and never more than
`balancer_retries_refused_total` says.

| row | fault | required | requests | whole | told | over budget | broken off | left | retried | violations | measured | verdict |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def plain_line(verdict: Verdict) -> str:
    """One line for a terminal."""
    account = verdict.account
    notes = "; ".join(f"{name} {value}" for name, value in verdict.notes.items())
    return (
        f"{verdict.key:>8}  {'holds' if verdict.holds else 'FAILS':5}  {verdict.fault}: "
        f"{account.requests} requests, {account.whole} whole, {account.told} told errors, "
        f"{account.over_budget} over budget, "
        f"{account.broken} broken off, {account.left} left, {account.retried} retried, "
        f"{len(account.violations)} violations, {verdict.seconds:.1f} s{'; ' + notes if notes else ''}"
    )


def markdown(verdicts: Sequence[Verdict], *, short: bool, before: str = "") -> str:
    """The whole page. Rows that were not played keep their lines of the page `before`, if that was made
    in the same way."""
    clients = SHORT_CLIENTS if short else FULL_CLIENTS
    span = "A few seconds a row" if short else f"{FULL_SECONDS:g} s a row"
    head = _PAGE.format(span=span, clients=clients)
    lines = (
        {_key(line): line for line in before.removeprefix(head).splitlines()}
        if before.startswith(head)
        else {}
    )
    lines |= {each.key: _row(each) for each in verdicts}
    return head + "".join(f"{lines[key]}\n" for key in keys() if key in lines)


def _key(line: str) -> str:
    return line.removeprefix("| ").partition(" |")[0]


def _row(verdict: Verdict) -> str:
    account = verdict.account
    notes = "; ".join(f"{name} {value}" for name, value in verdict.notes.items())
    cells: list[object] = [
        verdict.key,
        verdict.fault,
        find_row(verdict.key).requires,
        account.requests,
        account.whole,
        account.told,
        account.over_budget,
        account.broken,
        account.left,
        account.retried,
        len(account.violations),
        notes,
        "holds" if verdict.holds else "fails",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"
