"""`balancer simulate` as a user runs it: the same bytes whatever ran first, figures that can be believed,
and runs that come to nothing told as such."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import command, wait_for

TINY = """
name: tiny
requests: 120
devices: [{gpu: RTX 4090, count: 2}]
models:
  - {name: "qwen3:8b", size_bytes: 5.2GB}
  - {name: "gemma3:27b", size_bytes: 17GB}
workload:
  load: 0.8
  populations:
    - {kind: chat, priority: interactive}
    - {kind: batch, priority: batch}
"""
_PATIENCE_SECONDS = 100.0
STRATEGIES = ("least_connections", "round_robin", "random@immediate")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario that takes no time."""
    file = tmp_path_factory.mktemp("scenarios") / "tiny.yaml"
    file.write_text(TINY)
    return file


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("simulate", *map(str, arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def simulate(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """What it prints, on each of its two outputs."""
    started = start(*arguments)
    out, err = started.communicate(timeout=_PATIENCE_SECONDS)
    assert started.returncode == code, err
    return out, err


def compared(tiny: Path, *arguments: str | Path) -> dict[str, Any]:
    chosen = ("--strategies", ",".join(STRATEGIES), "--seeds", "3")
    told = json.loads(simulate(tiny, *chosen, "--json", *arguments)[0], parse_constant=pytest.fail)
    assert isinstance(told, dict)
    return told


@pytest.fixture(scope="module")
def told(tiny: Path) -> dict[str, Any]:
    """What comparing three strategies comes to."""
    return compared(tiny)


def test_the_same_seeds_print_the_same_bytes_whatever_ends_first(tiny: Path, tmp_path: Path) -> None:
    pages = tmp_path / "one.html", tmp_path / "two.html"

    one = compared(tiny, "--jobs", "1", "--html", pages[0])
    two = compared(tiny, "--jobs", "3", "--html", pages[1])

    assert one == two
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert b"</html>" in pages[0].read_bytes()


def test_every_request_of_every_run_has_one_end(told: dict[str, Any]) -> None:
    (case,) = told["cases"]

    assert told["seeds"] == [1, 2, 3]
    assert told["failures"] == []
    assert list(case["runs"]) == list(STRATEGIES)
    for strategy, runs in case["runs"].items():
        assert [(each["strategy"], each["seed"]) for each in runs] == [(strategy, seed) for seed in (1, 2, 3)]
        assert [sum(each["outcomes"].values()) for each in runs] == [120, 120, 120]
        assert [each["slots_out"] for each in runs] == [0, 0, 0]
        assert all(0 < each["ttft_seconds"]["p50"] <= each["ttft_seconds"]["p99"] for each in runs)
        assert all(0 < each["utilisation"] <= 1 for each in runs)


def test_ratios_are_those_of_the_runs(told: dict[str, Any]) -> None:
    (case,) = told["cases"]
    medians = {
        strategy: [each["ttft_seconds"]["p50"] for each in runs] for strategy, runs in case["runs"].items()
    }
    compared_medians = case["comparisons"]["round_robin"]["ttft_p50"]
    ratios = [
        mine / baseline
        for mine, baseline in zip(medians["round_robin"], medians["least_connections"], strict=True)
    ]

    assert case["baseline"] == "least_connections"
    assert compared_medians["ratios"] == pytest.approx(ratios)
    assert compared_medians["mean"] == pytest.approx(math.prod(ratios) ** (1 / 3))
    assert compared_medians["low"] <= compared_medians["mean"] <= compared_medians["high"]


def test_terciles_of_prompts_are_the_same_for_all_strategies(told: dict[str, Any]) -> None:
    (case,) = told["cases"]
    terciles = [[tuple(each["prompt_terciles"]) for each in runs] for runs in case["runs"].values()]

    assert terciles[0] == terciles[1] == terciles[2]
    assert len(set(terciles[0])) == 3


def test_a_table_is_printed_and_nothing_else_in_a_pipe(tiny: Path) -> None:
    chosen = ("--strategies", "random,least_connections", "--seeds", "2", "--requests", "50")
    out, err = simulate(tiny, *chosen)
    lines = out.splitlines()

    assert lines[0] == "tiny: 50 requests a run, 2 seeds, their median"
    assert [each.split()[0] for each in lines[1:4]] == ["strategy", "random", "least_connections"]
    assert lines[5].startswith("over random: geometric mean of ratios")
    assert err.splitlines() == [err.strip()]
    assert err.startswith("4 runs, ")
    assert "\r" not in err


def test_fleets_are_compared_on_the_same_demand(tiny: Path) -> None:
    fleets = ("--gpus", "RTX 4090:24", "--gpus", "RTX 4090:24,RTX 4090:24")
    chosen = ("--strategies", "least_connections", "--seeds", "2")
    told = json.loads(simulate(tiny, *chosen, *fleets, "--json")[0])
    one, two = told["cases"]

    assert (one["fleet"], two["fleet"]) == ("RTX 4090 24 GiB", "2x RTX 4090 24 GiB")
    assert one["scenario"]["workload"] == two["scenario"]["workload"]
    by_fleet = told["fleets"]["tiny"]["comparisons"]["2x RTX 4090 24 GiB"]["least_connections"]
    medians = [
        [run["ttft_seconds"]["p50"] for run in each["runs"]["least_connections"]] for each in (one, two)
    ]
    ratios = [other / first for first, other in zip(*medians, strict=True)]
    assert by_fleet["ttft_p50"]["ratios"] == pytest.approx(ratios)
    assert ratios != [1.0, 1.0]


def test_other_models_are_asked_for(tiny: Path) -> None:
    chosen = ("--strategies", "random", "--seeds", "1", "--requests", "50")
    told = json.loads(simulate(tiny, *chosen, "--models", "mine:1b=1GB", "--json")[0])

    assert [each["name"] for each in told["cases"][0]["scenario"]["models"]] == ["mine:1b"]


def test_a_report_that_cannot_be_written_loses_no_table(tiny: Path, tmp_path: Path) -> None:
    chosen = ("--strategies", "random", "--seeds", "1", "--requests", "50")
    out, err = simulate(tiny, *chosen, "--html", tmp_path, code=1)

    assert out.startswith("tiny: 50 requests")
    assert "cannot be written (Is a directory)" in err


def workers_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for each in map(int, listed) if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_run_whose_process_dies_is_told_and_loses_no_other(tiny: Path) -> None:
    chosen = ("--strategies", "random", "--seeds", "3", "--jobs", "1", "--json")
    started = start(tiny, *chosen, "--requests", "2000")
    wait_for(lambda: bool(workers_of(started.pid)))
    os.kill(workers_of(started.pid)[0], signal.SIGKILL)
    out, err = started.communicate(timeout=_PATIENCE_SECONDS)
    told = json.loads(out)

    assert started.returncode == 1
    assert told["failures"] == ["tiny, random, seed 1: its process ended with exit code -9"]
    assert told["failures"][0] in err
    assert [each["seed"] for each in told["cases"][0]["runs"]["random"]] == [2, 3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_command(number: signal.Signals) -> None:
    chosen = ("--strategies", "random", "--seeds", "3", "--jobs", "2")
    started = start("tight-memory", *chosen, "--requests", "1000000")
    wait_for(lambda: len(workers_of(started.pid)) == 2)
    workers = workers_of(started.pid)

    started.send_signal(number)
    out, _ = started.communicate(timeout=20)

    assert out == ""
    wait_for(lambda: all(map(gone, workers)))
