"""Which ports are free, and who has those that are not."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from balancer.provisioning.ports import Holder, PortTaken, holder, is_free, require_free

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


@contextmanager
def listening(host: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as taken:
        taken.bind((host, 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::"])
def test_a_port_is_taken_wherever_somebody_listens_on_it(host: str) -> None:
    with listening(host) as port:
        assert not is_free(port)

    assert is_free(port)


def test_a_port_that_is_bound_and_does_not_listen_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        with pytest.raises(PortTaken, match=f"port {port} cannot be bound, though nobody listens there"):
            require_free(port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_the_holder_of_a_port_is_named_by_pid_and_command(host: str) -> None:
    with listening(host) as port, pytest.raises(PortTaken) as told:
        require_free(port)

    assert told.value.holder is not None
    assert told.value.holder.pid == os.getpid()
    assert str(told.value).startswith(f"port {port} is held by process {os.getpid()} (")
    assert "python" in told.value.holder.command


def test_nobody_holds_a_port_on_which_nobody_listens() -> None:
    with listening("127.0.0.1") as port:
        pass

    assert holder(port) is None


def test_a_holder_that_cannot_be_seen_is_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    row = "   0: 0100007F:2CEC 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 77 1\n"
    (tmp_path / "net" / "tcp").write_text(HEADER + row)

    found = holder(0x2CEC, proc=tmp_path)

    assert found == Holder(None, "")
    assert str(PortTaken(11500, found)) == "port 11500 is held by a process of another user"


def test_a_command_is_told_on_one_line_and_not_at_any_length() -> None:
    with listening("127.0.0.1") as port:
        found = holder(port)

    assert found is not None
    assert len(found.command) <= 120
    assert "\n" not in found.command


def test_a_descriptor_that_is_closed_meanwhile_hides_no_other(tmp_path: Path) -> None:
    """A file in place of a link cannot be read as one, as a link that has gone cannot."""
    (tmp_path / "net").mkdir()
    row = "   0: 0100007F:2CEC 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 77 1\n"
    (tmp_path / "net" / "tcp").write_text(HEADER + row)
    descriptors = tmp_path / "42" / "fd"
    descriptors.mkdir(parents=True)
    (descriptors / "1").touch()
    (descriptors / "2").symlink_to("socket:[77]")
    (descriptors / "3").touch()
    (tmp_path / "42" / "cmdline").write_text("ollama\0serve\0")

    assert holder(0x2CEC, proc=tmp_path) == Holder(42, "ollama serve")
