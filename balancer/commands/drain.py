"""`balancer drain` and `balancer undrain`: take an instance out of service, and put it back."""

import asyncio
import sys
from collections.abc import Mapping
from contextlib import suppress

from balancer.commands.asking import NOT_FOUND, OK, Admin, ask, print_json, refusal_of, segment
from balancer.commands.exit_codes import BAD_USAGE, DONE, FAILED

_LOOK_SECONDS = 0.25
_CLEAR_LINE = "\r\x1b[K"


def drain(admin_url: str, instance: str, *, wait_seconds: float | None, as_json: bool) -> int:
    """Give the instance no new requests; with `wait_seconds`, succeed only once none runs there."""
    return ask(admin_url, lambda admin: _drain(admin, instance, wait_seconds, as_json))


def undrain(admin_url: str, instance: str, *, as_json: bool) -> int:
    """Give the instance requests again."""
    return ask(admin_url, lambda admin: _undrain(admin, instance, as_json))


async def _drain(admin: Admin, instance: str, wait_seconds: float | None, as_json: bool) -> int:
    status, row = await admin.post(f"instances/{segment(instance)}/drain")
    if status != OK:
        return _refused(status, row, as_json)
    if wait_seconds is not None:
        row = await _emptied(admin, row, wait_seconds)
    if as_json:
        print_json(row)
    emptied = row["drained"] and not _busy(row)
    if wait_seconds is not None and not emptied:
        print(_unfinished(row, wait_seconds), file=sys.stderr)
        return FAILED
    if not as_json:
        print(f"{instance} takes no new requests; {_running(row)}")
    return DONE


async def _undrain(admin: Admin, instance: str, as_json: bool) -> int:
    status, row = await admin.post(f"instances/{segment(instance)}/undrain")
    if status != OK:
        return _refused(status, row, as_json)
    if as_json:
        print_json(row)
    elif row["drained"]:
        print(f"{instance} takes no requests yet: {_because(row)}")
    else:
        print(f"{instance} takes requests again; it is {row['state']}")
    return DONE


async def _emptied(admin: Admin, row: Mapping[str, object], seconds: float) -> Mapping[str, object]:
    """The instance once nothing runs there; as it is when the time is up, or when waiting is in vain."""
    shows = sys.stderr.isatty()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while row["drained"] and _busy(row):
                if shows:
                    print(f"{_CLEAR_LINE}{row['id']}: {_running(row)}", end="", file=sys.stderr, flush=True)
                await asyncio.sleep(_LOOK_SECONDS)
                rows = await admin.instances()
                row = next((each for each in rows if each["id"] == row["id"]), {**row, "drained": False})
    if shows:
        print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)
    return row


def _unfinished(row: Mapping[str, object], seconds: float) -> str:
    if not row["drained"]:
        return f"{row['id']} is drained no longer: someone put it back, or a reload took it out"
    return f"{row['id']} takes no new requests, but after {seconds:g} s {_running(row)}"


def _because(row: Mapping[str, object]) -> str:
    """What keeps an instance drained that no operator keeps so."""
    by = row.get("drained_by")
    return "its GPU is lost" if isinstance(by, list) and "lost_device" in by else "it is being restarted"


def _busy(row: Mapping[str, object]) -> bool:
    """Whether a request runs there, or a load."""
    return bool(row["running"] or row.get("loading"))


def _running(row: Mapping[str, object]) -> str:
    match row["running"]:
        case 0 if row.get("loading"):
            return "a model is being loaded there"
        case 0:
            return "none runs there"
        case 1:
            return "1 still runs there"
        case running:
            return f"{running} still run there"


def _refused(status: int, answer: Mapping[str, object], as_json: bool) -> int:
    if as_json:
        print_json(answer)
    print(refusal_of(status, answer), file=sys.stderr)
    return BAD_USAGE if status == NOT_FOUND else FAILED
