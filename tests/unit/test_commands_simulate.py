"""`balancer simulate`: what it refuses before anything runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from balancer.cli import main
from balancer.commands.simulate import BASELINE, default_strategies, parse_seeds, parse_strategies
from balancer.simulator.virtual.scenario_file import standard_seeds
from balancer.simulator.virtual.shelf import strategy_names


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said on standard error where the command ends with 2."""
    with pytest.raises(SystemExit) as ended:
        main(("simulate", *arguments))
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml: (file): does not exist"),
        (
            ["tight-memory", "--strategies", "random,bets"],
            "'bets' is no strategy; there are adaptive, weighted_round_robin",
        ),
        (["tight-memory", "--seeds", "0"], "neither a number of seeds, from 1 to 1000, nor held-out"),
        (["tight-memory", "--seeds", "1001"], "'1001' is neither"),
        (["tight-memory", "--requests", "0"], "at least 1"),
        (["tight-memory", "--requests", "100000001"], "command line: requests: 100000001 is out of range"),
        (["tight-memory", "--jobs", "none"], "at least 1"),
        (["tight-memory", "--gpus", "RTX 4090"], "'RTX 4090' is no GPU"),
        (
            ["tight-memory", "--gpus", "Abacus:24"],
            "command line: devices[0].gpu: 'Abacus' is not a known GPU",
        ),
        (["tight-memory", "--models", "a=100GB"], "command line: models[0].size_bytes: 'a' takes"),
        (["tight-memory", "--models", "a"], "'a' is no model"),
        (["tight-memory", "--html", "nowhere/a.html"], "nowhere/a.html: there is no folder nowhere"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_the_reason(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *arguments)


def test_every_fault_of_a_scenario_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ndevises: []\nworkload: {load: -1, populations: [{kind: chat}]}\n")

    said = refused(capsys, str(file))

    assert f"{file}: devises: unknown key, did you mean 'devices'?" in said
    assert f"{file}: workload.load: -1 is out of range" in said


def test_all_strategies_that_wait_are_compared_with_the_strongest_known_rival() -> None:
    chosen = default_strategies()

    assert chosen[0] == BASELINE
    assert set(chosen) == {name for name in strategy_names() if not name.endswith("@immediate")}
    assert len(chosen) == len(set(chosen))


def test_strategies_are_taken_once_and_in_order() -> None:
    assert parse_strategies("random, round_robin,random@immediate,random") == (
        "random",
        "round_robin",
        "random@immediate",
    )


def test_seeds_are_counted_or_those_kept_aside() -> None:
    assert parse_seeds("3") == (1, 2, 3)
    assert parse_seeds("held-out") == standard_seeds().held_out
    assert not set(parse_seeds("1000")) & set(standard_seeds().held_out)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
def test_a_full_disk_is_told_and_the_report_is_kept(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    command = [sys.executable, "-m", "balancer", "simulate", "one-device", "--seeds", "1", "--requests", "5"]
    more = ["--strategies", "random", "--jobs", "1", "--json", "--html", str(report)]

    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*command, *more], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )

    assert ended.returncode == 1
    assert "balancer: cannot write: No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert report.read_text("utf-8").rstrip().endswith("</html>")
