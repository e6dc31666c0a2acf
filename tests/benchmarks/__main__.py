"""`python -m tests.benchmarks`: measure the balancer beside other proxies and print what came of it."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.measures import FULL, MEASURES, QUICK, TINY
from tests.benchmarks.proxies import PROXIES, Proxy, balancer
from tests.benchmarks.report import goals, markdown, page, plain
from tests.benchmarks.rounds import Plan, run

_SCALES = {"full": FULL, "quick": QUICK, "tiny": TINY}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where an answer was not whole or a proxy did not run, and with --gate where a figure is
    beyond its goal."""
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parser_of().parse_args(given)
    scale = _SCALES[chosen.scale]
    plan = Plan(
        proxies=[*(PROXIES[each] for each in chosen.proxies), *chosen.variant],
        measures=[each for name, each in MEASURES.items() if name in chosen.measures],
        rounds=chosen.rounds,
        scale=replace(scale, calm_seconds=0.0, tries=1) if chosen.no_wait else scale,
        seed=chosen.seed,
        settings=chosen.settings,
    )
    # As Ctrl-C does, so that everything is ended on the way out. Not by raising here: uvloop would take what
    # is raised in a callback for that connection's error.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        results = run(plan, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("interrupted: everything is ended, nothing is written", file=sys.stderr)
        return 130
    if results.errors:
        print(f"failed, {len(results.errors)} errors, of which the first:", file=sys.stderr)
        print("\n".join(f"  {each}" for each in results.errors[:8]), file=sys.stderr)
        return 1
    print(plain(plan, results))
    if chosen.markdown:
        text = page(chosen.markdown.read_text(), markdown(plan, results, command_of(given)))
        chosen.markdown.write_text(text)
    missed = [each for each in goals(results) if not each.met]
    return 1 if chosen.gate and missed else 0


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=main.__doc__)
    parser.add_argument("--proxies", type=_names(PROXIES), default=list(PROXIES), help=", ".join(PROXIES))
    parser.add_argument("--measures", type=_names(MEASURES), default=list(MEASURES), help=", ".join(MEASURES))
    parser.add_argument("--rounds", type=int, default=5, help="so many turns of each proxy (5)")
    parser.add_argument("--scale", choices=_SCALES, default="full", help="how much is done in a turn")
    parser.add_argument(
        "--quick", action="store_const", dest="scale", const="quick", help="the same as --scale quick"
    )
    parser.add_argument(
        "--settings", type=json.loads, default={}, metavar="JSON", help="of the balancer, beside its defaults"
    )
    parser.add_argument(
        "--variant",
        type=_variant,
        action="append",
        default=[],
        metavar="NAME=WHAT",
        help="one more row `balancer, NAME`; WHAT are settings as JSON, or the folder of another checkout",
    )
    parser.add_argument("--no-wait", action="store_true", help="measure once, however busy the machine is")
    parser.add_argument("--seed", type=int, default=1, help="of the orders")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a figure is beyond its goal")
    parser.add_argument("--markdown", type=_page, metavar="FILE", help="put the tables between its marks")
    return parser


def _page(text: str) -> Path:
    """A file that has the marks, looked for now rather than after half an hour."""
    file = Path(text)
    try:
        page(file.read_text(), "")
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error
    return file


def command_of(given: Sequence[str]) -> str:
    """How to do the same again, without where the page and other checkouts are."""
    told: list[str] = []
    for before, each in zip(["", *given], given, strict=False):
        if "--markdown" in (before, each.partition("=")[0]):
            continue
        name, _, what = each.partition("=")
        told.append(f"{name}=FOLDER" if before == "--variant" and not what.startswith("{") else each)
    return f"make bench ARGS={shlex.quote(shlex.join(told))}" if told else "make bench"


def _variant(text: str) -> Proxy:
    name, equals, what = text.partition("=")
    if not (name and equals and what):
        raise argparse.ArgumentTypeError(f"not NAME=WHAT: {text}")
    name = f"balancer, {name}"
    if not what.startswith("{"):
        return balancer(name, settings={}, tree=Path(what).resolve())
    try:
        return balancer(name, settings=json.loads(what))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {what} ({error})") from error


def _names(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [each for each in names if each not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main())
