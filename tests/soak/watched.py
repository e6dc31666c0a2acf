"""`python -m tests.soak.watched ARGUMENT…`: the command `balancer`, which on SIGUSR1 writes into a file
beside its configuration which tasks it has and how many blocks of memory Python holds. The product itself
has no such door."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path

from balancer.cli import main

INSIDE_FILE = "inside.json"


def watch(place: Path) -> None:
    """Answer SIGUSR1 from now on."""

    def tell(_number: int, _frame: object) -> None:
        names = Counter(_name(task) for task in asyncio.all_tasks(asyncio.get_running_loop()))
        fresh = place.with_suffix(".new")
        fresh.write_text(json.dumps({"tasks": names, "blocks": sys.getallocatedblocks()}))
        fresh.replace(place)

    signal.signal(signal.SIGUSR1, tell)


def _name(task: asyncio.Task[object]) -> str:
    return getattr(task.get_coro(), "__qualname__", "?")


if __name__ == "__main__":
    watch(Path(sys.argv[sys.argv.index("--config") + 1]).with_name(INSIDE_FILE))
    main()
