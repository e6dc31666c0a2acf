"""`balancer status`: the fleet once, as the admin listener tells it."""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence

from balancer.commands.exit_codes import DONE, FAILED
from balancer.errors import InstanceError
from balancer.upstream.control_client import ControlClient

_SECONDS = 5.0
_COLUMNS = ("instance", "state", "version", "running", "models", "loaded", "url")


def status(admin_url: str, *, as_json: bool) -> int:
    """Print the instances and the queue; fails where no balancer answers."""
    try:
        instances, queue = asyncio.run(_ask(admin_url))
    except InstanceError as error:
        print(
            f"no balancer answers on {admin_url}: {error}; name its admin listener with --admin",
            file=sys.stderr,
        )
        return FAILED
    if as_json:
        print(json.dumps({"instances": instances, "queue": queue}, indent=2))
    else:
        print(render(instances, queue))
    return DONE


def render(instances: Sequence[Mapping[str, object]], queue: Mapping[str, object]) -> str:
    """The fleet as a table."""
    rows = [_COLUMNS, *(_row(each) for each in instances)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.append(f"{queue['waiting']} of at most {queue['limit']} requests wait")
    return "\n".join(lines)


def _row(instance: Mapping[str, object]) -> tuple[str, ...]:
    state = str(instance["state"])
    if instance["drained"]:
        state += ", drained"
    elif instance["suspect"]:
        state += ", suspect"
    runners = instance["runners"]
    models = instance["models"]
    assert isinstance(runners, list)
    assert isinstance(models, list)
    loaded = ", ".join(f"{each['model']} ({each['running']}/{each['slots']})" for each in runners)
    return (
        str(instance["id"]),
        state,
        str(instance["version"] or "-"),
        str(instance["running"]),
        str(len(models)),
        loaded or "-",
        str(instance["url"]),
    )


async def _ask(admin_url: str) -> tuple[list[Mapping[str, object]], Mapping[str, object]]:
    client = ControlClient()
    try:
        told = await client.get(admin_url, "/admin/v1/instances", timeout_seconds=_SECONDS)
        queue = await client.get(admin_url, "/admin/v1/queue", timeout_seconds=_SECONDS)
    finally:
        await client.close()
    instances = told["instances"]
    assert isinstance(instances, list)
    return instances, queue
