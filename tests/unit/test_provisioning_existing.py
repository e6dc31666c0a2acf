"""Which Ollamas run on a machine already, from made-up process tables and from a real one."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from balancer.provisioning import keeper
from balancer.provisioning.existing import ExistingOllama, find_existing, look_around
from balancer.provisioning.keeper import FOLDER_VARIABLE, INSTANCE_VARIABLE

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LOOPBACK, ANYWHERE, ELSEWHERE = "0100007F", "00000000", "0500000A"
CONTAINER = "0123456789ab" + "c" * 52
NOBODY = pwd.getpwnam("nobody").pw_uid
STRANGER = 54321


def line(port: int, inode: int, *, uid: int, address: str, state: str = "0A") -> str:
    queues = "00000000:00000000 00:00000000 00000000"
    return f"   0: {address}:{port:04X} 00000000:0000 {state} {queues} {uid:5} 0 {inode} 1 0 100\n"


class Machine:
    """A process table in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lines: dict[str, str] = {"tcp": HEADER, "tcp6": HEADER}
        self._inode = 700
        (root / "net").mkdir()
        (root / "self").mkdir()
        (root / "self" / "cgroup").write_text("0::/user.slice/user-1000.slice/session-3.scope\n")

    def listen(self, port: int, *, uid: int = 1000, address: str = LOOPBACK, table: str = "tcp") -> int:
        self._inode += 1
        self._lines[table] += line(port, self._inode, uid=uid, address=address)
        (self.root / "net" / table).write_text(self._lines[table])
        return self._inode

    def run(
        self,
        pid: int,
        *,
        command: str = "/usr/local/bin/ollama serve",
        comm: str = "ollama",
        uid: int = 1000,
        cgroup: str = "0::/user.slice/user-1000.slice/session-3.scope",
        sockets: tuple[int, ...] | None = (),
        environment: str = "HOME=/home/u",
        parent: int = 1,
    ) -> None:
        """A process; `sockets` None: its files and its environment are closed to us."""
        home = self.root / str(pid)
        home.mkdir()
        (home / "stat").write_text(f"{pid} ({comm}) S {parent} {pid} {pid} " + "0 " * 40)
        (home / "comm").write_text(comm + "\n")
        (home / "cmdline").write_text(command.replace(" ", "\0") + "\0")
        (home / "status").write_text(f"Name:\t{comm}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
        (home / "cgroup").write_text(cgroup + "\n")
        if sockets is not None:
            (home / "fd").mkdir()
            for number, inode in enumerate(sockets):
                (home / "fd" / str(number)).symlink_to(f"socket:[{inode}]")
            (home / "environ").write_text(environment.replace(" ", "\0"))

    def found(self, **options: object) -> tuple[ExistingOllama, ...]:
        return find_existing(proc=self.root, **options)  # type: ignore[arg-type]

    def sentences(self, *, gpus: bool = True) -> str:
        return "\n".join(look_around(gpus=gpus, proc=self.root).sentences)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without_ollama_is_there_to_be_provisioned(machine: Machine) -> None:
    machine.listen(8080)
    machine.run(5, comm="nginx", command="nginx: master")

    situation = look_around(gpus=True, proc=machine.root)

    assert (situation.found, situation.sentences) == ((), ())


def test_a_machine_without_a_process_table_has_nothing_to_tell(tmp_path: Path) -> None:
    assert find_existing(proc=tmp_path / "none") == ()


def test_an_ollama_of_ours_is_found_with_its_address_and_its_models(machine: Machine) -> None:
    models = machine.root / "models"
    models.mkdir()
    machine.run(7, sockets=(machine.listen(11434),), environment=f"A=b OLLAMA_MODELS={models}", uid=NOBODY)

    (found,) = machine.found()

    assert (found.addresses, found.url) == (("127.0.0.1:11434",), "http://127.0.0.1:11434")
    assert (found.pid, found.user, found.unit) == (7, "nobody", None)
    assert (models, True) == (found.models_dir, found.models_readable)


def test_models_are_in_its_home_unless_its_environment_says_otherwise(machine: Machine) -> None:
    machine.run(7, sockets=(machine.listen(11434),), environment="HOME=/nowhere/u OLLAMA_MODELS=")

    (found,) = machine.found()

    assert (Path("/nowhere/u/.ollama/models"), False) == (found.models_dir, found.models_readable)


@pytest.mark.parametrize(
    ("cgroup", "unit", "of_user", "stop"),
    [
        ("0::/system.slice/ollama.service", "ollama", False, "sudo systemctl disable --now ollama"),
        (
            "1:name=systemd:/system.slice/ollama@1.service",
            "ollama@1",
            False,
            "sudo systemctl disable --now ollama@1",
        ),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/ollama.service",
            "ollama",
            True,
            "systemctl --user disable --now ollama",
        ),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-kitty.scope",
            None,
            True,
            "sudo kill 7",
        ),
        ("0::/user.slice/user-1000.slice/session-3.scope", None, False, "sudo kill 7"),
        ("0::/", None, False, "sudo kill 7"),
        ("", None, False, "sudo kill 7"),
    ],
)
def test_its_control_group_says_what_started_it_and_how_to_stop_it(
    machine: Machine, cgroup: str, unit: str | None, of_user: bool, stop: str
) -> None:
    machine.run(7, uid=STRANGER, cgroup=cgroup, sockets=(machine.listen(11434),))

    (found,) = machine.found()

    assert (unit, of_user, stop) == (found.unit, found.of_user, found.stop_command)


def test_a_process_of_ones_own_is_stopped_without_sudo(machine: Machine) -> None:
    machine.run(7, uid=os.getuid(), sockets=(machine.listen(11434),))

    assert machine.found()[0].stop_command == "kill 7"


def test_a_closed_process_is_told_by_its_user_and_the_usual_port(machine: Machine) -> None:
    """As the service of the install script looks to anyone but root."""
    machine.listen(38001, uid=STRANGER)
    machine.listen(11434, uid=STRANGER)
    machine.listen(11434, uid=STRANGER, table="tcp6", address="0" * 32)
    machine.run(7, uid=STRANGER, cgroup="0::/system.slice/ollama.service", sockets=None)

    (found,) = machine.found()

    assert (found.addresses, found.pid) == (("127.0.0.1:11434",), 7)
    assert (str(STRANGER), "ollama", None) == (found.user, found.unit, found.models_dir)


def test_closed_processes_of_one_user_get_a_port_each(machine: Machine) -> None:
    for port in (11436, 11434, 11435, 38001):
        machine.listen(port, uid=STRANGER)
    for pid in (9, 7, 8):
        machine.run(pid, uid=STRANGER, sockets=None)

    assert [each.addresses[0] for each in machine.found()] == [
        "127.0.0.1:11434",
        "127.0.0.1:11435",
        "127.0.0.1:11436",
    ]


def test_a_port_of_another_user_is_not_that_of_a_closed_process(machine: Machine) -> None:
    machine.listen(11434, uid=1000)
    machine.run(6, comm="nginx", sockets=(701,))
    machine.run(7, uid=STRANGER, sockets=None)

    (found,) = machine.found()

    assert found.addresses == ()


def test_a_closed_process_gets_the_port_of_its_own_user(machine: Machine) -> None:
    machine.listen(11435, uid=1000)
    machine.listen(11436, uid=STRANGER)
    machine.run(7, uid=STRANGER, sockets=None)

    assert [each.addresses for each in machine.found()] == [("127.0.0.1:11436",)]


def test_a_listener_whose_process_is_hidden_is_named_by_port_and_user(machine: Machine) -> None:
    machine.listen(11434, uid=NOBODY)

    (found,) = machine.found()

    assert (found.addresses, found.pid, found.user) == (("127.0.0.1:11434",), None, "nobody")
    assert found.stop_command == "sudo systemctl disable --now ollama"
    assert (
        str(found)
        == "an Ollama runs here already on 127.0.0.1:11434: a process that cannot be seen, user nobody"
    )


def test_another_program_on_ollamas_port_is_no_ollama(machine: Machine) -> None:
    machine.run(7, comm="python3", command="python3 -m balancer serve", sockets=(machine.listen(11434),))

    assert machine.found() == ()


@pytest.mark.parametrize(
    ("cgroup", "engine"),
    [
        (f"0::/system.slice/docker-{CONTAINER}.scope", "docker"),
        (f"9:memory:/docker/{CONTAINER}\n1:name=systemd:/docker/{CONTAINER}", "docker"),
        (f"0::/machine.slice/libpod-{CONTAINER}.scope/container", "podman"),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{CONTAINER}.scope", "docker"),
    ],
)
def test_one_in_a_container_is_named_by_it_and_reached_where_it_is_forwarded(
    machine: Machine, cgroup: str, engine: str
) -> None:
    machine.run(7, uid=0, cgroup=cgroup, sockets=(1,))
    machine.run(8, comm="docker-proxy", command="docker-proxy", sockets=(machine.listen(11434, uid=0),))

    (found,) = machine.found()

    assert ((CONTAINER, engine), 7) == ((found.container, found.engine), found.pid)
    assert f"{engine} stop 0123456789ab" == found.stop_command
    assert (found.addresses, found.models_dir) == (("127.0.0.1:11434",), None)


def test_one_in_a_container_that_is_not_forwarded_cannot_be_attached(machine: Machine) -> None:
    machine.run(7, uid=0, cgroup=f"0::/system.slice/docker-{CONTAINER}.scope", sockets=(1,))

    situation = look_around(gpus=True, proc=machine.root)

    assert "balancer serve" not in "\n".join(situation.sentences)
    assert "docker container 0123456789ab" in situation.sentences[0]


def test_one_in_the_balancers_own_container_is_a_plain_process(machine: Machine) -> None:
    cgroup = f"0::/docker/{CONTAINER}"
    (machine.root / "self" / "cgroup").write_text(cgroup + "\n")
    machine.run(7, cgroup=cgroup, sockets=(machine.listen(11434),))

    (found,) = machine.found()

    assert (found.container, found.addresses) == (None, ("127.0.0.1:11434",))


@pytest.mark.parametrize(
    "command", ["ollama run llama3.2", "ollama runner --port 11434", "ollama", "ollama runner --mlx-engine"]
)
def test_a_client_and_a_runner_are_no_server(machine: Machine, command: str) -> None:
    machine.run(7, command=command, sockets=(machine.listen(11434),))

    assert machine.found() == ()


def test_managed_instances_are_left_out(machine: Machine) -> None:
    machine.run(7, sockets=(machine.listen(11500), machine.listen(38001)))
    machine.run(8, sockets=(machine.listen(11434),))

    assert [each.pid for each in machine.found(managed={11500})] == [8]


@pytest.mark.parametrize(
    ("address", "table", "url"),
    [
        (LOOPBACK, "tcp", "http://127.0.0.1:11434"),
        (ANYWHERE, "tcp", "http://127.0.0.1:11434"),
        (ELSEWHERE, "tcp", "http://10.0.0.5:11434"),
        ("0" * 32, "tcp6", "http://127.0.0.1:11434"),
        ("0" * 24 + "01000000", "tcp6", "http://[::1]:11434"),
    ],
)
@pytest.mark.skipif(sys.byteorder == "big", reason="the table is written in this machine's byte order")
def test_it_is_attached_where_it_listens(machine: Machine, address: str, table: str, url: str) -> None:
    machine.run(7, sockets=(machine.listen(11434, address=address, table=table),))

    assert url == machine.found()[0].url


def test_the_one_on_ollamas_own_port_comes_first(machine: Machine) -> None:
    machine.run(7, sockets=(machine.listen(9000),))
    machine.run(8, sockets=(machine.listen(11434),))

    assert [each.pid for each in machine.found()] == [8, 7]


def test_what_is_said_of_one_names_every_way_out(machine: Machine) -> None:
    models = machine.root / "models"
    models.mkdir()
    environment = f"OLLAMA_MODELS={models}"
    cgroup = "0::/system.slice/ollama.service"
    machine.run(7, uid=NOBODY, cgroup=cgroup, sockets=(machine.listen(11434),), environment=environment)

    assert (
        "an Ollama runs here already on 127.0.0.1:11434: process 7, user nobody, ollama.service",
        f"to use its models in managed instances: runtimes.ollama.models_dir: {models}",
        "to stop it and leave everything to the balancer: sudo systemctl disable --now ollama",
        "GPU memory that they take is not the balancer's to give: instances beside them may run out of it",
        "to use what runs: balancer serve http://127.0.0.1:11434",
    ) == look_around(gpus=True, proc=machine.root).sentences


def test_without_gpus_nothing_is_said_of_their_memory(machine: Machine) -> None:
    machine.run(7, sockets=(machine.listen(11434),))

    assert "GPU" in machine.sentences(gpus=True)
    assert "GPU" not in machine.sentences(gpus=False)


def test_models_that_may_not_be_read_are_named_all_the_same(machine: Machine) -> None:
    machine.run(7, sockets=(machine.listen(11434),), environment="OLLAMA_MODELS=/nowhere/models")

    assert "its models are in /nowhere/models, which this user may not read" in machine.sentences()


@pytest.mark.parametrize("text", ["", "garbage", HEADER + "a b c\n"])
def test_a_strange_table_has_nothing_to_tell(machine: Machine, text: str) -> None:
    machine.run(7)
    (machine.root / "net" / "tcp").write_text(text)

    assert [each.addresses for each in machine.found()] == [()]


def test_a_process_that_ends_while_it_is_looked_at_is_passed_over(machine: Machine) -> None:
    (machine.root / "41").mkdir()
    machine.run(7, sockets=(machine.listen(11434),))

    assert [each.pid for each in machine.found()] == [7]


MARKS = f"HOME=/home/u {FOLDER_VARIABLE}=/state/x {INSTANCE_VARIABLE}=gpu0"


def test_what_another_balancer_manages_is_neither_to_be_used_nor_to_be_stopped(machine: Machine) -> None:
    for pid, port in ((7, 11434), (8, 11501)):
        machine.run(pid, sockets=(machine.listen(port),), environment=MARKS)

    situation = look_around(gpus=False, proc=machine.root)

    assert situation.found == ()
    assert [each.ports for each in situation.managed] == [{11434}, {11501}]
    assert situation.sentences == (
        "2 Ollamas are managed by the balancer with state folder /state/x (127.0.0.1:11434, 127.0.0.1:11501)",
    )


def test_what_another_users_balancer_manages_is_known_by_its_keeper(machine: Machine) -> None:
    machine.run(6, command=f"python -P -m {keeper.__name__} /state/y", comm="python", uid=STRANGER)
    machine.run(7, sockets=None, uid=STRANGER, parent=6)

    situation = look_around(gpus=False, proc=machine.root)

    assert situation.found == ()
    assert situation.sentences == ("1 Ollama is managed by the balancer with state folder /state/y",)


def test_what_the_balancer_itself_has_left_is_not_told_of(machine: Machine) -> None:
    machine.run(7, environment=MARKS)

    situation = look_around(gpus=True, folder="/state/x", proc=machine.root)

    assert (situation.found, situation.managed, situation.sentences) == ((), (), ())


def test_a_folder_in_the_environment_alone_is_no_mark(machine: Machine) -> None:
    machine.run(7, environment=f"{FOLDER_VARIABLE}=/state/x")

    assert [each.keeper for each in machine.found()] == [None]


@contextmanager
def listening_as_ollama(folder: Path) -> Iterator[tuple[int, int]]:
    """A real process with Ollama's name and arguments, on a port of the system's choice; gives both."""
    (folder / "ollama").symlink_to(Path(sys.executable).resolve())
    (folder / "serve").write_text(
        "import socket\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [str(folder / "ollama"), "serve"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"OLLAMA_MODELS": str(folder)},
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.kill()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no process table of Linux here")
def test_a_real_process_is_found_in_the_real_table(tmp_path: Path) -> None:
    with listening_as_ollama(tmp_path) as (pid, port), socket.create_connection(("127.0.0.1", port)):
        found = {each.pid: each for each in find_existing()}
        without = {each.pid for each in find_existing(managed={port})}

    assert (f"127.0.0.1:{port}",) == found[pid].addresses
    assert (tmp_path, True) == (found[pid].models_dir, found[pid].models_readable)
    assert pwd.getpwuid(os.getuid()).pw_name == found[pid].user
    assert pid not in without
