"""`balancer reload`: have a running balancer load its configuration anew."""

import sys

from balancer.commands.asking import OK, Admin, ask, plain, print_json, refusal_of
from balancer.commands.exit_codes import BAD_USAGE, DONE, FAILED

_SECONDS = 25.0
"""Longer than a reload waits for a disk, that its own answer is heard."""
_FAULT_CHARACTERS = 1000


def reload(admin_url: str, *, as_json: bool) -> int:
    """Tell whether anything changed; a refused configuration exits 2 with one line for each fault."""
    return ask(admin_url, lambda admin: _reload(admin, as_json))


async def _reload(admin: Admin, as_json: bool) -> int:
    status, told = await admin.post("reload", timeout_seconds=_SECONDS)
    if as_json:
        print_json(told)
    if status != OK:
        faults = told.get("faults")
        if not isinstance(faults, list):
            print(refusal_of(status, told), file=sys.stderr)
            return FAILED
        for fault in faults:
            print(plain(fault, characters=_FAULT_CHARACTERS), file=sys.stderr)
        return BAD_USAGE
    if not as_json:
        done = "is in force now" if told["changed"] else "stays in force: nothing changed"
        print(f"configuration {told['config']} {done}")
    return DONE
