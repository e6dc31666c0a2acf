"""The command line: what it takes, what it says, and its exit codes."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import balancer
from balancer.cli import main

COMMANDS = ["serve", "demo", "check", "plan", "status", "drain", "undrain", "reload", "bench", "simulate"]


@pytest.fixture(autouse=True)
def _nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no variable and no running Ollama of this machine plays a part."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith(("BALANCER_", "GPU_", "MODEL_POOL_")):
            monkeypatch.delenv(name)


@pytest.fixture
def dead_url() -> Iterator[str]:
    """An address of this machine where nobody listens, kept from others meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["--nothing"],
        ["serve", "--nothing"],
        ["serve", "--conf", "x"],
        ["serve", "--listen"],
        ["demo", "--instances", "0"],
        ["demo", "--instances", "many"],
        ["demo", "--speed", "0"],
        ["demo", "--speed", "-1"],
        ["demo", "--speed", "inf"],
        ["demo", "--speed", "nan"],
        ["demo", "http://gpu:1"],
        ["check"],
        ["status", "x"],
        ["status", "--admin", "http://127.0.0.1:abc"],
        ["status", "--admin", "127.0.0.1:11401"],
        ["drain"],
        ["drain", "a", "--wait", "0"],
        ["drain", "a", "--wait", "soon"],
        ["undrain", "a", "--wait", "1"],
        ["reload", "now"],
        ["reload", "--admin", "here"],
        ["bench", "--url", "foo"],
        ["bench", "-c", "0"],
        ["bench", "-n", "-1"],
    ],
)
def test_arguments_that_cannot_be_read_exit_two_and_show_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert "usage: balancer" in capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert [each for each in COMMANDS if f"\n    {each} " not in shown] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"usage: balancer {command}" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert f"ollama-balancer {balancer.__version__}\n" == capsys.readouterr().out


def test_a_valid_file_passes_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("instances: [http://gpu1:11434, http://gpu2:11434]\nstrategy: round_robin\n")

    assert run("check", str(path)) == 0
    assert capsys.readouterr().out == "valid: 2 instances, strategy round_robin\n"
    assert run("check", str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "faults": []}


def test_a_file_with_faults_exits_two_and_names_every_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("strategie: random\nlimits: {queue_requests: -1}\n")

    assert run("check", str(path)) == 2
    shown = capsys.readouterr().out
    assert len([line for line in shown.splitlines() if line.startswith("a.yaml") or str(path) in line]) == 2
    assert "strategie" in shown
    assert "queue_requests" in shown

    assert run("check", str(path), "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["valid"], len(told["faults"])) == (False, 2)
    assert {"source", "key", "problem", "allowed"} == set(told["faults"][0])


def test_a_file_that_is_not_there_exits_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", str(tmp_path / "none.yaml")) == 2
    assert "none.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["serve", "demo"])
@pytest.mark.parametrize(
    "arguments", [["--strategy", "smartest"], ["--listen", "nowhere"], ["--config", "none.yaml"]]
)
def test_a_configuration_with_faults_starts_nothing_and_exits_two(
    command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.err
    assert shown.out == ""


def test_serve_without_anything_to_serve_exits_three_and_names_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BALANCER_PROVISIONING__ATTACH_EXISTING", "false")
    monkeypatch.setenv("PATH", "")

    assert run("serve") == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    for expected in ("install Ollama", "balancer serve http://", "balancer demo"):
        assert expected in shown.err


def test_serve_on_an_address_that_is_taken_exits_one(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        assert run("serve", "http://127.0.0.1:1", "--listen", address, "--admin-listen", "127.0.0.1:0") == 1
    assert "cannot listen" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["status"], ["drain", "a"], ["drain", "a", "--wait", "1"], ["undrain", "a"], ["reload"]]
)
def test_asking_nobody_exits_one_and_names_the_option(
    arguments: list[str], dead_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--admin", dead_url) == 1
    shown = capsys.readouterr()
    assert (shown.out, dead_url in shown.err) == ("", True)
    assert "--admin" in shown.err


def test_bench_of_nothing_exits_one(dead_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "--url", dead_url, "-n", "1") == 1
    assert dead_url in capsys.readouterr().err


def test_whoever_interrupts_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("balancer.cli.check", interrupted)

    assert run("check", "x") == 0
