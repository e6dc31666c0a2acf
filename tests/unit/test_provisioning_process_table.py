"""What the process table tells of families, and that a signal hits nobody else."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from balancer.provisioning.process_table import (
    Process,
    arguments,
    below,
    command,
    environment,
    lineage,
    processes,
    read_process,
    send,
)


def process(pid: int, parent: int) -> Process:
    return Process(pid=pid, parent=parent, session=1, started=1, alive=True)


_TELLS_AND_WAITS = "print('ready', flush=True); input()"
TABLE = {
    each.pid: each for each in [process(1, 0), process(2, 1), process(3, 2), process(4, 3), process(5, 1)]
}


def test_a_lineage_goes_up_to_the_first_process() -> None:
    assert list(lineage(4, TABLE)) == [4, 3, 2, 1]
    assert list(lineage(9, TABLE)) == []


def test_a_table_that_was_read_while_it_changed_may_go_round_and_ends() -> None:
    assert list(lineage(1, {1: process(1, 2), 2: process(2, 1)})) == [1, 2]


def test_descendants_are_those_of_descendants_too_and_not_itself() -> None:
    assert {each.pid for each in below(2, TABLE)} == {3, 4}


def test_this_process_is_in_the_table_as_it_is() -> None:
    found = processes()[os.getpid()]

    assert (found.parent, found.session, found.alive) == (os.getppid(), os.getsid(0), True)
    assert found == read_process(os.getpid())


def test_a_process_that_was_not_reaped_yet_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        found = read_process(child.pid)

    assert found is not None
    assert not found.alive
    assert read_process(child.pid) is None


def test_a_name_with_brackets_and_spaces_is_no_trap(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) S 1 (b)) S 3 7 5 " + " ".join(map(str, range(7, 53))))

    assert read_process(7, proc=tmp_path) == Process(pid=7, parent=3, session=5, started=22, alive=True)


@pytest.mark.parametrize("text", ["", "7 (x", "7 (x) S 1 2"])
def test_what_cannot_be_read_is_no_process(tmp_path: Path, text: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(text)

    assert read_process(7, proc=tmp_path) is None
    assert processes(proc=tmp_path) == {}
    assert processes(proc=tmp_path / "none") == {}


def test_command_line_and_environment_are_read_as_they_were_given() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _TELLS_AND_WAITS, "a b", ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"A": "1=2", "B": ""},
    ) as child:
        wait_until_it_runs(child)
        told = arguments(child.pid), command(child.pid), environment(child.pid)
        child.kill()

    assert told[0] == [sys.executable, "-c", _TELLS_AND_WAITS, "a b", ""]
    assert told[1] == f"{sys.executable} -c {_TELLS_AND_WAITS} a b"
    assert {"A": "1=2", "B": ""}.items() <= told[2].items()
    assert environment(child.pid) == {}


def wait_until_it_runs(child: "subprocess.Popen[bytes]") -> None:
    """Until it says so: a program that has only just begun has no arguments in the table yet."""
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"


def test_a_signal_reaches_the_process_that_is_meant() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = read_process(child.pid)
        assert found is not None

        assert send(found, signal.SIGKILL)

    assert child.returncode == -signal.SIGKILL
    assert not send(found, signal.SIGKILL)


def test_a_signal_never_reaches_another_process_of_the_same_number() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = read_process(child.pid)
        assert found is not None
        earlier = replace(found, started=found.started - 1)

        assert not send(earlier, signal.SIGKILL)
        assert child.poll() is None
        child.communicate(b"\n")

    assert child.returncode == 0


def test_a_system_without_handles_compares_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = read_process(child.pid)
        assert found is not None

        assert not send(replace(found, started=0), signal.SIGKILL)
        assert send(found, signal.SIGKILL)

    assert child.returncode == -signal.SIGKILL
