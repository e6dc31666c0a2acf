"""`balancer replay`: what it prints, how it ends, and what it refuses."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from balancer.cli import main
from balancer.commands import replay as command

DOCS = Path(__file__).parents[2] / "docs"
RECORDED = DOCS / "decision.json"


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(("replay", *arguments))
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, printed.out, printed.err


def test_the_examples_of_the_page_are_what_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DOCS)
    page = (DOCS / "scheduling.md").read_text()
    examples = re.findall(r"^\$ balancer replay (.*)\n((?:.+\n)+)```", page, re.MULTILINE)

    assert len(examples) == 2
    for arguments, output in examples:
        code, out, err = replayed(capsys, *arguments.split())
        assert (code, err) == (int("--strategy" in arguments), "")
        assert [line.rstrip() for line in out.splitlines()] == output.splitlines()


def test_a_program_gets_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = replayed(capsys, str(RECORDED), "--json")

    (decision,) = json.loads(out)["decisions"]
    (recorded,) = json.loads(RECORDED.read_text())["decisions"]
    assert (code, decision["same"], decision["went_to"]) == (0, True, recorded["picked"])
    assert [row["score"] for row in decision["rows"]] == [each["score"] for each in recorded["considered"]]


def test_a_single_decision_is_read_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (recorded,) = json.loads(RECORDED.read_text())["decisions"]
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(recorded).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)

    code, out, err = replayed(capsys, "-")

    assert (code, err) == (0, "")
    assert "the same again" in out


def test_it_fails_where_any_decision_comes_out_otherwise(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer: Any = json.loads(RECORDED.read_text())
    other = json.loads(json.dumps(answer["decisions"][0]))
    for each in other["considered"]:
        if each["instance"] == other["picked"]:
            each["facts"]["health"] = 0.0
    answer["decisions"].append(other)
    file = tmp_path / "told.json"
    file.write_text(json.dumps(answer))

    code, out, _ = replayed(capsys, str(file))

    assert code == 1
    assert ("the same again" in out, "another instance now" in out, "picked, not now" in out) == (True,) * 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no recorded decision: not JSON"),
        (b"{", "no recorded decision: not JSON"),
        (b"\xff\xfe", "no recorded decision: not JSON"),
        (b'{"considered": "\xff"}', "no recorded decision: not JSON"),
        (b"[" * 100_000, "no recorded decision: not JSON"),
        (b"{}", "give what /admin/v1/requests/ID/decision answers"),
        (b'{"error": "no decision is remembered for that request id"}', "give what /admin/v1"),
        (b'{"decisions": [{}]}', "missing required field"),
        (b'{"decisions": [{"considered": "\\u001b[2J"}]}', "no recorded decision"),
    ],
)
def test_a_file_that_is_no_recorded_decision_is_refused(
    body: bytes, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "told.json"
    file.write_bytes(body)

    code, out, err = replayed(capsys, str(file))

    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith(f"{file}: ")
    assert "\x1b" not in err


def test_a_file_that_is_not_there_or_has_no_end_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert replayed(capsys, str(tmp_path / "none.json"))[0] == 2
    monkeypatch.setattr(command, "_MOST_BYTES", 1 << 20)
    code, _, err = replayed(capsys, "/dev/zero")
    assert (code, "more than 1 MiB" in err) == (2, True)


def test_names_that_were_made_up_cannot_write_to_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = RECORDED.read_text().replace('"gpu0"', '"\\u001b]0;gpu0"')
    file = tmp_path / "told.json"
    file.write_text(text)

    code, out, err = replayed(capsys, str(file))

    assert (code, err) == (0, "")
    assert "\x1b" not in out
