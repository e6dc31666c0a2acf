"""Rows of the fault matrix in which what comes back is no answer: garbage, floods, pages, redirects.

The first of three instances gives them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from tests.faults import conducts
from tests.faults.acts import (
    behave,
    behave_once_down,
    conduct,
    downs,
    memory_is_bounded,
    note_memory,
    sent_between,
    struck,
)
from tests.faults.client import Seen, View
from tests.faults.fleet import until
from tests.faults.scene import Act, Row, Scene

_BROKEN = frozenset({Seen.BROKEN})


def hostile(*texts: Callable[[], bytes]) -> Act:
    """Inject answers that no instance gives."""

    async def inject(scene: Scene) -> None:
        note_memory(scene)
        scene.fleet.first.passthrough.conduct = conducts.Saying(texts, proper=False)

    return inject


async def behave_again(scene: Scene) -> None:
    """As `behave`, and remember the connections on which a hostile answer was given."""
    made = scene.fleet.first.passthrough.conduct
    assert isinstance(made, conducts.Saying)
    scene.counts |= {f"link {number}": number for number in made.said_on}
    await behave(scene)


def never_reused(scene: Scene) -> Iterable[str]:
    spoken = {number for name, number in scene.counts.items() if name.startswith("link ")}
    yield from struck(scene, spoken, "hostile answer")
    again = {
        each.link for each in scene.fleet.first.passthrough.sent if each.link in spoken and each.place > 1
    }
    first = {each.link for each in scene.fleet.first.passthrough.sent if each.at < scene.at["injected"]}
    if again - first:
        yield f"{len(again - first)} connections were used again after bytes that are no answer"


def bounded_and_never_reused(scene: Scene) -> Iterable[str]:
    yield from never_reused(scene)
    yield from memory_is_bounded(scene)


def is_page(scene: Scene, view: View) -> bool:
    """What stands in front of the instance, passed as it came."""
    return view.seen is Seen.FOREIGN and view.status == 200 and b"Sign in" in view.body


def probes_judged(scene: Scene) -> Iterable[str]:
    yield from struck(scene, downs(scene), "instance was marked down by its probes")


async def redirect(scene: Scene) -> None:
    """Send every request to another address, at which somebody counts."""

    def count(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        scene.counts["followed"] = scene.counts.get("followed", 0) + 1
        writer.close()

    decoy = await asyncio.start_server(count, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{decoy.sockets[0].getsockname()[1]}"
    scene.fleet.first.passthrough.conduct = conducts.Saying([conducts.redirect_to(url)], proper=True)

    async def close_later() -> None:
        await until(lambda: "cured" in scene.at, seconds=60)
        decoy.close()
        await decoy.wait_closed()

    scene.begin(close_later())


def never_followed(scene: Scene) -> Iterable[str]:
    yield from struck(scene, sent_between(scene, "injected", "cured"), "request was sent to it")
    if scene.counts.get("followed"):
        yield f"a redirect was followed {scene.counts['followed']} times"


ANSWER_ROWS = (
    Row(key="13", fault="garbage, HTTP/0.9, a bad chunk, two lengths", requires="connection thrown away",
        inject=hostile(conducts.garbage, conducts.http_09, conducts.two_lengths, conducts.length_and_chunks,
                       conducts.bad_chunk),
        cure=behave_again, check=never_reused, permits=_BROKEN),
    Row(key="14", fault="10 MB header, 100,000 headers, a flood of 1xx", requires="memory bounded",
        inject=hostile(conducts.huge_header, conducts.many_headers, conducts.interim_flood),
        cure=behave_again, check=bounded_and_never_reused),
    Row(key="15", fault="200 with a page of HTML on every path", requires="down by probes, passed as it came",
        inject=conduct(conducts.Saying([conducts.page], proper=True, probes=True)), cure=behave_once_down,
        check=probes_judged, allows=is_page,
        short_settings={"health": {"interval_seconds": 0.25, "timeout_seconds": 1.0}}),
    Row(key="16", fault="redirects to elsewhere", requires="never followed; tried elsewhere", inject=redirect,
        cure=behave, check=never_followed),
)  # fmt: skip
