"""`python -m tests.fuzz`: every fuzz target for some time under hypothesis, then under atheris.

What breaks a promise ends the search for its target, is left in the work folder, and its command says so;
`--add NAME FILE…` keeps it in the corpus, so that every run of the tests tries it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import corpus
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
_ROUND_EXAMPLES = 500
_INPUT_BYTES = 4096
_LATE_SECONDS = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where something was found."""
    chosen = _parser().parse_args(arguments)
    if chosen.add:
        corpus.add(chosen.add[0], [Path(each).read_bytes() for each in chosen.add[1:]])
        return 0
    if chosen.structured:
        return _search(TARGETS[chosen.structured], chosen.work, chosen.seconds)
    chosen.work.mkdir(parents=True, exist_ok=True)
    names = chosen.targets.split(",") if chosen.targets else list(TARGETS)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        found = list(pool.map(lambda name: _fuzz(TARGETS[name], chosen.work, chosen.seconds), names))
    if chosen.keep:
        for name in names:
            corpus.fill(name, [each.read_bytes() for each in (chosen.work / name).iterdir()])
    broken = [name for name, broke in zip(names, found, strict=True) if broke]
    print(f"broken: {', '.join(broken)}; see {chosen.work}" if broken else "nothing found")
    return 1 if broken else 0


def _fuzz(target: Target, work: Path, seconds: float) -> bool:
    """Both searches for one target; whether one found something."""
    own = [sys.executable, "-m", "tests.fuzz", "--structured", target.name, "--seconds", f"{seconds:g}"]
    structured = _run([*own, "--work", str(work)], work / f"{target.name}.structured.log", seconds)
    folder = work / target.name
    folder.mkdir(exist_ok=True)
    for each in (*target.seeds(), *corpus.kept(target.name)):
        (folder / hashlib.sha1(each, usedforsecurity=False).hexdigest()).write_bytes(each)
    options = [
        f"-max_total_time={seconds:g}",
        f"-max_len={_INPUT_BYTES}",
        "-timeout=30",
        "-print_final_stats=1",
    ]
    options.append(f"-artifact_prefix={work / target.name}-")
    guided = [sys.executable, "-m", "tests.fuzz.guided", target.name, str(folder), *options]
    log = work / f"{target.name}.guided.log"
    coverage_guided = _run(guided, log, seconds)
    print(f"{target.name}: {_told(log)}, {len(list(folder.iterdir()))} inputs", flush=True)
    return structured or coverage_guided


def _run(command: Sequence[str], log: Path, seconds: float) -> bool:
    with log.open("wb") as out:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
            timeout=seconds * 2 + _LATE_SECONDS, check=False,
        )  # fmt: skip
    if done.returncode:
        print(f"{log.stem}: exit {done.returncode}\n{log.read_text(errors='replace')[-3000:]}", flush=True)
    return done.returncode != 0


def _told(log: Path) -> str:
    """What libFuzzer says at its end of how much it has done."""
    lines = log.read_text(errors="replace").splitlines()
    done = [line.split()[-1] for line in lines if line.startswith("stat::number_of_executed_units")]
    return f"{done[0]} inputs tried" if done else "no figures"


def _search(target: Target, work: Path, seconds: float) -> int:
    """Rounds of hypothesis until the time is up or one has failed; its smallest input is left in a file."""
    last = b""
    tried = 0

    @settings(
        max_examples=_ROUND_EXAMPLES, deadline=None, database=None, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(target.inputs)
    def examine(data: bytes) -> None:
        nonlocal last, tried
        last, tried = data, tried + 1
        target.examine(data)

    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            examine()
    except BaseException:
        (work / f"{target.name}-structured").write_bytes(last)
        raise
    print(f"{tried} inputs tried")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="each target under each of the two; 600")
    parser.add_argument("--targets", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="so many targets at once")
    parser.add_argument("--work", type=Path, default=ROOT / ".fuzz", help="where inputs and logs are left")
    parser.add_argument("--keep", action="store_true", help="fill the corpus with what atheris found")
    parser.add_argument("--add", nargs="+", metavar="NAME FILE", help="keep these inputs in the corpus")
    parser.add_argument("--structured", metavar="NAME", help="one target under hypothesis alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
