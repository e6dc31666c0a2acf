"""Where state is kept, and whose the folder is."""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from balancer.provisioning.keeper_link import fingerprint
from balancer.provisioning.launch import Launch
from balancer.provisioning.state_folder import FolderTaken, FolderUnusable, StateFolder, state_path

LAUNCH = Launch(
    name="a", arguments=("ollama", "serve"), environment={"A": "1"}, port=1, ready_path="/", ready_seconds=1
)


@pytest.mark.parametrize(
    ("configured", "environ", "path"),
    [
        (None, {"HOME": "/home/u"}, "/home/u/.local/state/ollama-balancer"),
        (None, {"HOME": "/home/u", "XDG_STATE_HOME": "/state"}, "/state/ollama-balancer"),
        (None, {"HOME": "/home/u", "XDG_STATE_HOME": "state"}, "/home/u/.local/state/ollama-balancer"),
        (None, {}, "/.local/state/ollama-balancer"),
        ("/var/lib/b", {"XDG_STATE_HOME": "/state"}, "/var/lib/b"),
    ],
)
def test_state_is_kept_where_it_was_said_else_where_the_system_keeps_it(
    configured: str | None, environ: dict[str, str], path: str
) -> None:
    assert state_path(configured, environ) == Path(path)


def test_a_tilde_means_the_home() -> None:
    assert state_path("~/b", {}) == Path(os.path.expanduser("~")) / "b"


def test_a_folder_is_made_and_given_back(tmp_path: Path) -> None:
    first = StateFolder.open(tmp_path / "a" / "b")
    with pytest.raises(FolderTaken, match=f"process {os.getpid()}"):
        StateFolder.open(tmp_path / "a" / "b")
    first.close()
    second = StateFolder.open(tmp_path / "a" / "b")
    second.close()

    assert (first.problem, second.problem) == ("", "")


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "balancer.lock").symlink_to(victim)

    folder = StateFolder.open(tmp_path / "state")
    folder.close()

    assert folder.problem
    assert victim.read_text() == "precious"


def test_a_system_that_can_be_written_nowhere_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))

    with pytest.raises(FolderUnusable, match="no temporary folder"):
        StateFolder.open(tmp_path / "file" / "state")


def test_a_second_keeper_of_a_folder_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "balancer.provisioning.keeper", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    told = (tmp_path / "keeper.lock").read_text().strip()
    os.kill(int(told), 15)

    assert (first.returncode, first.stderr) == (0, "")
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == f"{tmp_path} has a keeper already, process {told}\n"


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"ready_seconds": 9.0, "ready_path": "/health", "devices": ("0",), "name": "b"}, True),
        ({"environment": {"A": "2"}}, False),
        ({"environment": {}}, False),
        ({"arguments": ("ollama",)}, False),
        ({"port": 2}, False),
    ],
)
def test_a_fingerprint_is_that_of_the_process(changes: dict[str, object], same: bool) -> None:
    other = Launch(**{**{name: getattr(LAUNCH, name) for name in LAUNCH.__struct_fields__}, **changes})  # type: ignore[arg-type]

    assert (fingerprint(other) == fingerprint(LAUNCH)) is same


def test_folder_without_room_for_a_pid_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(FolderUnusable):
            StateFolder.open(tmp_path / "state")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    StateFolder.open(tmp_path / "state").close()
