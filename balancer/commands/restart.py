"""`balancer restart`: start managed instances anew, and wait until they are up."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from balancer.commands.asking import (
    CONFLICT,
    NOT_FOUND,
    OK,
    Admin,
    ask,
    plain,
    print_json,
    refusal_of,
    segment,
)
from balancer.commands.exit_codes import BAD_USAGE, DONE, FAILED

_LOOK_SECONDS = 0.25
_CLEAR_LINE = "\r\x1b[K"
_UP = "up"

_Row: TypeAlias = Mapping[str, Any]
"""One object of the admin API's JSON."""


def restart(admin_url: str, instance: str | None, *, wait_seconds: float, as_json: bool) -> int:
    """Restart one instance, or with None all; succeed only once all of them are up again."""
    return ask(admin_url, lambda admin: _restart(admin, instance, wait_seconds, as_json))


async def _restart(admin: Admin, instance: str | None, wait_seconds: float, as_json: bool) -> int:
    path = "restart" if instance is None else f"instances/{segment(instance)}/restart"
    status, answer = await admin.post(path)
    if status != OK:
        if as_json:
            print_json(answer)
        print(refusal_of(status, answer), file=sys.stderr)
        return BAD_USAGE if status in {NOT_FOUND, CONFLICT} else FAILED
    rows = await _restarted(admin, instance, wait_seconds)
    if as_json:
        print_json({"instances": rows})
    if not rows and not as_json:
        print("no instance was started by this balancer: there is nothing to restart")
    failed = [each for each in rows if not _is_up(each)]
    for row in rows:
        if _is_up(row) and not as_json:
            print(f"{row['id']} is up")
    for row in failed:
        print(_failure(row, wait_seconds), file=sys.stderr)
    return FAILED if failed else DONE


async def _restarted(admin: Admin, instance: str | None, seconds: float) -> Sequence[_Row]:
    """The instances once none of them is being restarted, or as they are when the time is up."""
    rows = await _managed(admin, instance)
    shows = sys.stderr.isatty()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while any(_pending(each) for each in rows):
                if shows:
                    states = ", ".join(f"{each['id']} {each['managed']['state']}" for each in rows)
                    print(f"{_CLEAR_LINE}{plain(states)}", end="", file=sys.stderr, flush=True)
                await asyncio.sleep(_LOOK_SECONDS)
                rows = await _managed(admin, instance)
    if shows:
        print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)
    return rows


async def _managed(admin: Admin, instance: str | None) -> Sequence[_Row]:
    rows = [each for each in await admin.instances() if each.get("managed") is not None]
    return [each for each in rows if instance in {None, each["id"]}]


def _pending(row: _Row) -> bool:
    return bool(row["managed"]["restart_pending"])


def _is_up(row: _Row) -> bool:
    return row["managed"]["state"] == _UP and not _pending(row)


def _failure(row: _Row, seconds: float) -> str:
    told = row["managed"]
    if _pending(row):
        return f"{row['id']} is not up after {seconds:g} s: it is {told['state']}"
    lines = [f"    {plain(each, characters=200)}" for each in told["lines"]]
    return "\n".join([f"{row['id']} is {told['state']}: {plain(told['error'], characters=300)}", *lines])
