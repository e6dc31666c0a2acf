"""One row of the fault matrix as it is played: a fleet under load, a fault, its cure, the reckoning."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.client import Seen, View
from tests.faults.fleet import Fleet, Served, running
from tests.faults.ledger import Account, settle_accounts
from tests.faults.load import LeavingChoice, Load, stays

FULL_SECONDS, FULL_CLIENTS, FULL_SLOTS = 60.0, 32, 8
SHORT_CLIENTS, SHORT_SLOTS = 16, 4
_FULL_PATIENCE_SECONDS, _SHORT_PATIENCE_SECONDS = 60.0, 10.0
_SETTLE_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_SHORT_LATE_SECONDS = 2.0
_NOTED_LATE_SECONDS = 0.25


@dataclass(slots=True, kw_only=True)
class Scene:
    """What a row works with. `at` holds monotonic times by name, `notes` what was measured,
    `found` violations that a row saw on its way. What loads `aside` ask is not in the accounts.
    `late_seconds` is the most that this machine was late in running what was due: bounds of time that
    are judged are extended by it."""

    fleet: Fleet
    load: Load
    short: bool
    served: Served
    random: Random
    at: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    extra: list[asyncio.Task[Any]] = field(default_factory=list)
    aside: list[Load] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    late_seconds: float = 0.0

    def mark(self, name: str) -> None:
        """Write down that something is so from now on."""
        self.at[name] = time.monotonic()

    def begin(self, work: Awaitable[Any]) -> None:
        """Do something beside the load; it is waited for before the reckoning."""
        self.extra.append(asyncio.ensure_future(work))

    def during_fault(self, view: View) -> bool:
        """Whether a request was under way at any time of the fault."""
        return view.sent_at < self.at["cured"] and view.ended_at > self.at["injected"]

    @property
    def clients(self) -> int:
        return SHORT_CLIENTS if self.short else FULL_CLIENTS


Act = Callable[[Scene], Awaitable[None]]


async def nothing(_scene: Scene) -> None:
    """Where there is nothing to inject or to cure."""


def no_more(_scene: Scene) -> Iterable[str]:
    """Where nothing is asked beyond the claims that hold for every row."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row. The fault lasts for `span` of the time. `permits` are the answers that clients may get
    beside whole ones, `allows` permits more, one by one. `check` gives in words what else does not
    hold. `after` is done when the load has stopped."""

    key: str
    fault: str
    requires: str
    inject: Act = nothing
    cure: Act = nothing
    after: Act = nothing
    check: Callable[[Scene], Iterable[str]] = no_more
    permits: frozenset[Seen] = frozenset()
    allows: Callable[[Scene, View], bool] = lambda _scene, _view: False
    leaving: LeavingChoice = stays
    served: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    short_settings: Mapping[str, Any] = field(default_factory=dict)
    short_seconds: float = 3.0
    full_seconds: float = FULL_SECONDS
    span: tuple[float, float] = (1 / 3, 2 / 3)
    clients_share: float = 1.0
    processes: bool = False
    ends_balancer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a row."""

    key: str
    fault: str
    account: Account
    notes: Mapping[str, str]
    seconds: float

    @property
    def holds(self) -> bool:
        return not self.account.violations


async def play(row: Row, *, short: bool, seed: int = 1) -> Verdict:
    """Play one row and settle its accounts."""
    began = time.monotonic()
    slots = SHORT_SLOTS if short else FULL_SLOTS
    served = Served(**{"slots": slots, **row.served})
    settings = {**row.settings, **(row.short_settings if short else {})}
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        async with running(Path(folder), served, settings, processes=row.processes) as fleet:
            patience = _SHORT_PATIENCE_SECONDS if short else _FULL_PATIENCE_SECONDS
            load = Load(fleet.balancer.port, name=f"row{row.key}", seed=seed, patience_seconds=patience)
            scene = Scene(fleet=fleet, load=load, short=short, served=served, random=Random(seed))
            await _perform(row, scene)
            left = [] if row.ends_balancer else await _left_over(fleet)
            refused = 0 if row.ends_balancer else await fleet.balancer.retries_refused()
            account = _reckon(row, scene, left, refused)
    return Verdict(
        key=row.key,
        fault=row.fault,
        account=account,
        notes=scene.notes,
        seconds=time.monotonic() - began,
    )


async def _perform(row: Row, scene: Scene) -> None:
    """The load, the fault, and its cure."""
    seconds = row.short_seconds if scene.short else row.full_seconds
    began = time.monotonic()
    clients = max(1, round(scene.clients * row.clients_share))
    loading = asyncio.create_task(scene.load.run(clients, leaving=row.leaving))
    watching = asyncio.create_task(_watch_lateness(scene))
    try:
        await _sleep_until(began + seconds * row.span[0])
        scene.mark("injected")
        await row.inject(scene)
        await _sleep_until(began + seconds * row.span[1])
        await row.cure(scene)
        scene.mark("cured")
        await _sleep_until(began + seconds)
    finally:
        scene.load.stop()
    await loading
    await asyncio.gather(*scene.extra)
    await row.after(scene)
    watching.cancel()
    if scene.late_seconds > _NOTED_LATE_SECONDS:
        scene.notes["the machine was late by up to"] = f"{scene.late_seconds:.1f} s"


async def _watch_lateness(scene: Scene) -> None:
    while True:
        due = time.monotonic() + _LOOK_SECONDS
        await asyncio.sleep(_LOOK_SECONDS)
        scene.late_seconds = max(scene.late_seconds, time.monotonic() - due)


async def _sleep_until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.monotonic()))


async def _left_over(fleet: Fleet) -> list[str]:
    """What is still under way when all clients are gone, once it has had some time to end."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        left = await fleet.balancer.left_over()
        left += [
            f"{each.passthrough.busy} connections to {each.name} are not idle"
            for each in fleet.instances
            if each.passthrough.busy
        ]
        if not left or time.monotonic() > deadline:
            return [f"left over: {what}" for what in left]
        await asyncio.sleep(_LOOK_SECONDS)


def _reckon(row: Row, scene: Scene, left: Iterable[str], refused_retries: int) -> Account:
    aside = {view.request_id for load in scene.aside for view in load.views}
    sent = [sent for each in scene.fleet.instances for sent in each.passthrough.requests]
    account = settle_accounts(
        scene.load.views,
        scene.fleet.balancer.events(),
        [each for each in sent if each.request_id not in aside],
        allows=lambda view: view.seen in row.permits or row.allows(scene, view),
        refused_retries=refused_retries,
        # In short mode other tests run beside it, and may keep the balancer's process waiting.
        late_seconds=scene.late_seconds + (_SHORT_LATE_SECONDS if scene.short else 0.0),
    )
    loads = sum(len(each.passthrough.loads) for each in scene.fleet.instances)
    if loads:
        scene.notes["loads by the balancer"] = str(loads)
    falls = Counter(str(event["error"]) for event in scene.fleet.balancer.events("instance_down"))
    if falls:
        scene.notes["marked down"] = ", ".join(f"{count} x '{error}'" for error, count in falls.items())
    more = (*account.violations, *scene.found, *left, *row.check(scene))
    return replace(account, violations=more)
