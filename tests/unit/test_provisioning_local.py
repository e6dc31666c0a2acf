"""What a process table tells of an Ollama that someone else started, from a made-up one."""

from pathlib import Path

import pytest

from balancer.provisioning.local import LocalOllama, find_local_ollama

DIGEST = "ab" * 32
HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def socket_line(port: int, inode: int, *, state: str = "0A", address: str = "0100007F") -> str:
    queues = "00000000:00000000 00:00000000 00000000"
    return f"   0: {address}:{port:04X} 00000000:0000 {state} {queues}  1000        0 {inode} 1\n"


class Machine:
    """A process table in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "net").mkdir()
        self.listen("tcp", "")
        self.listen("tcp6", "")
        (root / "self").mkdir()

    def listen(self, table: str, *lines: str) -> None:
        (self.root / "net" / table).write_text(HEADER + "".join(lines))

    def run(
        self,
        pid: int,
        *,
        comm: str = "ollama",
        parent: int = 1,
        sockets: tuple[int, ...] = (),
        environment: str = "",
        command: str = "",
    ) -> None:
        home = self.root / str(pid)
        (home / "fd").mkdir(parents=True)
        for number, inode in enumerate(sockets):
            (home / "fd" / str(number)).symlink_to(f"socket:[{inode}]")
        (home / "comm").write_text(comm + "\n")
        (home / "stat").write_text(f"{pid} (a) b (c)) S {parent} {pid} 0")
        (home / "environ").write_text(environment)
        (home / "cmdline").write_text(command)

    def runner(self, pid: int, parent: int, arguments: list[str]) -> None:
        self.run(pid, comm="llama-server", parent=parent, command="\0".join(["llama-server", *arguments, ""]))

    def find(self, port: int = 11434) -> LocalOllama | None:
        return find_local_ollama(port, proc=self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def ollama(machine: Machine, *, environment: str = "HOME=/home/u\0", table: str = "tcp") -> None:
    machine.listen(table, socket_line(11434, 777))
    machine.run(42, sockets=(5, 777), environment=environment)


@pytest.mark.parametrize("table", ["tcp", "tcp6"])
def test_the_ollama_behind_a_port_is_found(machine: Machine, table: str) -> None:
    ollama(machine, table=table)
    machine.run(41, comm="other", sockets=(776,))

    assert LocalOllama(42, "/home/u/.ollama/models", {}) == machine.find()


@pytest.mark.parametrize(
    ("environment", "models"),
    [
        ("HOME=/home/u\0OLLAMA_MODELS=/data/m\0", "/data/m"),
        ("OLLAMA_MODELS=\0HOME=/home/u\0X", "/home/u/.ollama/models"),
        ("OLLAMA_MODELS=/a=b/../c\0", "/c"),
    ],
)
def test_the_models_are_where_its_environment_says(machine: Machine, environment: str, models: str) -> None:
    ollama(machine, environment=environment)

    found = machine.find()

    assert found is not None
    assert models == found.models_id


def test_one_directory_is_one_store_whatever_it_is_called_inside_a_container(machine: Machine) -> None:
    ollama(machine, environment="OLLAMA_MODELS=/models\0")
    machine.listen("tcp", socket_line(11434, 777), socket_line(11435, 778))
    machine.run(43, sockets=(778,), environment="OLLAMA_MODELS=/elsewhere\0")
    shared = machine.root / "shared"
    shared.mkdir()
    for pid, name in ((42, "models"), (43, "elsewhere")):
        root = machine.root / str(pid) / "root"
        root.mkdir()
        (root / name).symlink_to(shared)

    first, second = find_local_ollama(11434, proc=machine.root), find_local_ollama(11435, proc=machine.root)

    assert first is not None
    assert second is not None
    assert first.models_id == second.models_id


@pytest.mark.parametrize("flag", ["-np", "--parallel"])
def test_slots_are_read_from_the_runners_command_lines(machine: Machine, flag: str) -> None:
    ollama(machine)
    other = "cd" * 32
    machine.runner(50, 42, ["--model", f"/m/blobs/sha256-{DIGEST}", flag, "4", "--port", "1"])
    machine.runner(51, 42, ["--model", f"/m/blobs/sha256-{other}", flag, "1"])

    found = machine.find()

    assert found is not None
    assert {DIGEST: 4, other: 1} == found.slots


@pytest.mark.parametrize(
    ("parent", "arguments"),
    [
        (7, ["--model", f"sha256-{DIGEST}", "-np", "4"]),
        (42, ["--model", "sha256-abc", "-np", "4"]),
        (42, ["--model", f"sha256-{DIGEST}"]),
        (42, ["--model", f"sha256-{DIGEST}", "-np"]),
        (42, ["--model", f"sha256-{DIGEST}", "-np", "many"]),
        (42, []),
    ],
)
def test_what_is_no_runner_of_it_tells_no_slots(machine: Machine, parent: int, arguments: list[str]) -> None:
    ollama(machine)
    machine.runner(50, parent, arguments)

    found = machine.find()

    assert found is not None
    assert found.slots == {}


def test_another_port_or_another_state_is_not_it(machine: Machine) -> None:
    machine.listen("tcp", socket_line(11435, 777), socket_line(11434, 777, state="01"))
    machine.run(42, sockets=(777,))

    assert machine.find() is None
    assert machine.find(11435) is not None


def test_another_program_on_the_port_is_no_ollama(machine: Machine) -> None:
    machine.listen("tcp", socket_line(11434, 777))
    machine.run(42, comm="docker-proxy", sockets=(777,))

    assert machine.find() is None


def test_a_listener_whose_process_cannot_be_seen_is_none(machine: Machine) -> None:
    machine.listen("tcp", socket_line(11434, 777))
    machine.run(42, sockets=(1,))

    assert machine.find() is None


def test_a_process_that_ends_while_it_is_looked_at_is_passed_over(machine: Machine) -> None:
    ollama(machine)
    (machine.root / "41").mkdir()
    (machine.root / "50").mkdir()

    found = machine.find()

    assert found is not None
    assert found.pid == 42


@pytest.mark.parametrize("port", [11434, 80, 65535])
def test_a_machine_without_a_process_table_has_nothing_to_tell(tmp_path: Path, port: int) -> None:
    assert find_local_ollama(port, proc=tmp_path / "none") is None


@pytest.mark.parametrize("text", ["", "garbage", "a b c\n1 2 3\n"])
def test_a_strange_table_has_nothing_to_tell(machine: Machine, text: str) -> None:
    (machine.root / "net" / "tcp").write_text(text)

    assert machine.find() is None
