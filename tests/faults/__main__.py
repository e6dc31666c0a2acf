"""`python -m tests.faults`: play rows of the fault matrix and print what came of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.faults.matrix import keys, play_key, silence
from tests.faults.scene import Verdict
from tests.faults.table import markdown, plain_line

_SHOWN_VIOLATIONS = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a row does not hold."""
    chosen = _parser().parse_args(arguments)
    wanted = chosen.rows.split(",") if chosen.rows else list(keys())
    verdicts: list[Verdict] = []
    # Each in a process of its own: memory and open files of one row do not tell on the next.
    with ProcessPoolExecutor(
        chosen.parallel, mp_context=get_context("spawn"), initializer=silence, max_tasks_per_child=1
    ) as pool:
        for verdict in pool.map(play_key, wanted, [chosen.short] * len(wanted)):
            verdicts.append(verdict)
            print(plain_line(verdict), flush=True)
            for what in verdict.account.violations[:_SHOWN_VIOLATIONS]:
                print(f"    {what}", flush=True)
    if chosen.markdown:
        before = chosen.markdown.read_text() if chosen.markdown.exists() else ""
        chosen.markdown.write_text(markdown(verdicts, short=chosen.short, before=before))
    failed = [each.key for each in verdicts if not each.holds]
    print(f"do not hold: {', '.join(failed)}" if failed else "all hold")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=main.__doc__)
    parser.add_argument("--rows", help=f"of {', '.join(keys())}; all by default")
    parser.add_argument("--short", action="store_true", help="a few seconds each, with fewer clients")
    parser.add_argument("--parallel", type=int, default=1, help="so many rows at once")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the table there, or renew its rows"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
