"""`python -m tests.soak`: mixed traffic with aborting clients for some minutes, and what it left behind."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from tests.faults.fleet import merged
from tests.soak.run import soak

_GROWTH_MIB_PER_10000 = 5.0
_BLOCKS_PER_REQUEST = 1.0
"""With more than one of these, memory is said to leak. Bursts on a busy machine raise what the process
holds by 0.5 to 3.6 MiB for 10,000 requests while no block stays. Runs under five minutes are not judged."""
_JUDGED_SECONDS = 300


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a claim does not hold."""
    chosen = _parser().parse_args(arguments)
    settings = merged(*(_setting(each) for each in chosen.set))
    soaked = uvloop.run(
        soak(
            seconds=chosen.minutes * 60,
            clients=chosen.clients,
            settings=settings,
            seed=chosen.seed,
            requests=chosen.requests,
        )
    )
    print(f"seed                {chosen.seed}, settings {json.dumps(settings)}")
    for line in soaked.lines():
        print(line)
    leaks = soaked.seconds >= _JUDGED_SECONDS and (
        soaked.slope_mib_per_10000 > _GROWTH_MIB_PER_10000 or soaked.blocks_per_request > _BLOCKS_PER_REQUEST
    )
    if leaks:
        print(
            f"memory grows by more than {_GROWTH_MIB_PER_10000} MiB for 10,000 requests, "
            f"or {_BLOCKS_PER_REQUEST} blocks for each"
        )
    holds = not soaked.violations and not leaks
    print("holds" if holds else "does not hold")
    return 0 if holds else 1


def _setting(text: str) -> dict[str, Any]:
    """`fast_path=off` or `limits.queue_requests=10` as a tree; the value is JSON where it can be."""
    path, equals, value = text.partition("=")
    if not equals:
        raise SystemExit(f"--set {text}: NAME=VALUE is meant")
    try:
        tree: Any = json.loads(value)
    except ValueError:
        tree = value
    for part in reversed(path.split(".")):
        tree = {part: tree}
    found: dict[str, Any] = tree
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long; 20 by default")
    parser.add_argument("--requests", type=int, help="at most so many requests")
    parser.add_argument("--clients", type=int, default=32, help="connections at once; 32 by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the balancer; repeatable",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
