"""`balancer replay`: a recorded decision, made again from its own facts. Nothing is asked or started."""

import sys

import msgspec

from balancer.commands.asking import plain, print_json
from balancer.commands.exit_codes import BAD_USAGE, DONE, FAILED
from balancer.commands.tables import table
from balancer.scheduling.replay import CannotReplay, Replayed, Row, decisions_in, replay

STDIN = "-"
_MOST_BYTES = 64 << 20


def replay_file(file: str, *, strategy: str | None, as_json: bool) -> int:
    """Print each decision in the file, `-` for standard input, as it was and as it comes out now. Fails where
    another instance than the recorded one would be picked."""
    try:
        told = [replay(each, strategy=strategy) for each in decisions_in(_read(file))]
    except (CannotReplay, OSError) as error:
        problem = error.strerror if isinstance(error, OSError) else str(error)
        print(f"{file}: {plain(problem, characters=500)}", file=sys.stderr)
        return BAD_USAGE
    if as_json:
        print_json({"decisions": [msgspec.to_builtins(each) for each in told]})
    else:
        print("\n\n".join(render(each) for each in told))
    return DONE if all(each.same for each in told) else FAILED


def _read(file: str) -> object:
    if file == STDIN:
        body = sys.stdin.buffer.read(_MOST_BYTES + 1)
    else:
        with open(file, "rb") as stream:
            body = stream.read(_MOST_BYTES + 1)
    if len(body) > _MOST_BYTES:
        raise CannotReplay(f"more than {_MOST_BYTES >> 20} MiB; one answer about one request is less")
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CannotReplay(f"no recorded decision: not JSON ({error})") from error


def render(it: Replayed) -> str:
    """A line and a table for people."""
    by = it.strategy if it.strategy == it.recorded_strategy else f"{it.recorded_strategy}, now {it.strategy}"
    verdict = "the same again" if it.same else "another instance now"
    lines = [f"{plain(it.request)}: {plain(by)}, {plain(it.standing)}: {verdict}"]
    rows = [(*_cells(each), _mark(each)) for each in it.rows]
    return "\n".join(lines + table(("instance", "filter or terms", "recorded", "replayed", ""), rows))


def _cells(row: Row) -> tuple[str, ...]:
    terms = ", ".join(f"{name} {value:.4g}" for name, value in row.terms.items())
    why = plain(row.filtered) if row.filtered is not None else terms
    return plain(row.instance), why, _number(row.recorded_score), _number(row.score)


def _number(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"


def _mark(row: Row) -> str:
    if row.picked:
        return "picked" if row.best or row.score is None else "picked, not now"
    return "as good" if row.best else ""
