"""What deploy/ ships: the unit is closed as far as it says, and every command in it is one of ours."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from balancer import __version__, cli
from balancer.commands.exit_codes import BAD_USAGE, MISSING
from balancer.settings import Settings, load
from balancer.settings.values import parse_address

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "ollama-balancer.service"
COMPOSE_FILES = sorted(DEPLOY.glob("compose*.yaml"))
MOST_EXPOSURE = 2.0

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def unit() -> dict[str, list[str]]:
    """Every setting of the unit's [Service] section with all of its values, in order."""
    found: dict[str, list[str]] = {}
    text = UNIT.read_text()
    for line in text[text.index("[Service]") : text.index("[Install]")].splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def settings_of(words: list[str], environ: Mapping[str, str]) -> Settings:
    """What `serve` with these arguments would use; fails where it would refuse them."""
    parsed = cli._parser().parse_args(words)
    assert words[0] == "serve"
    return load([], environ=environ, overrides=cli._overrides(parsed))


def service_named_balancer(file: Path) -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load(file.read_text())["services"]["balancer"]
    return service


def command_of_the_image() -> list[str]:
    (line,) = re.findall(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    command: list[str] = json.loads(line)
    return command


# The unit


@needs_systemd
def test_the_unit_is_hardly_exposed() -> None:
    run = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    level = re.search(r"Overall exposure level for ollama-balancer\.service: ([0-9.]+)", run.stdout)
    assert level is not None, run.stderr
    assert float(level[1]) <= MOST_EXPOSURE


@needs_systemd
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/ollama-balancer/.venv/bin/balancer", sys.executable))

    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert [line for line in run.stderr.splitlines() if UNIT.name in line] == []


def test_the_unit_starts_a_command_that_is_ours() -> None:
    (started,) = unit()["ExecStart"]
    program, *words = shlex.split(started)

    parsed = cli._parser().parse_args(words)

    assert program == "/opt/ollama-balancer/.venv/bin/balancer"
    assert [Path("/etc/ollama-balancer/balancer.yaml")] == parsed.config


def test_the_unit_runs_as_a_user_of_its_own_at_home_in_its_state_folder() -> None:
    service = unit()
    (declared,) = re.findall(
        r"^u (\S+) - \"[^\"]+\" (\S+)$", (DEPLOY / "systemd/sysusers.conf").read_text(), re.MULTILINE
    )
    environment = dict(pair.split("=", 1) for line in service["Environment"] for pair in line.split())

    assert (declared[0], declared[0]) == (service["User"][0], service["Group"][0])
    assert declared[1] == f"/var/lib/{service['StateDirectory'][0]}" == environment["HOME"]
    assert declared[1] == f"{environment['XDG_STATE_HOME']}/ollama-balancer"


def test_the_unit_is_not_started_again_where_that_cannot_help() -> None:
    assert f"{BAD_USAGE} {MISSING}" == unit()["RestartPreventExitStatus"][0]


def test_the_unit_leaves_the_instances_to_the_keeper_and_gives_a_stop_its_time() -> None:
    service = unit()

    assert service["KillMode"] == ["process"]
    assert service["OOMPolicy"] == ["continue"]
    assert int(service["TimeoutStopSec"][0]) > 3 * Settings().limits.stop_seconds


def test_the_unit_lets_gpus_be_seen_and_nothing_else() -> None:
    service = unit()

    assert (service["PrivateDevices"], service["DevicePolicy"]) == (["no"], ["closed"])
    assert service["DeviceAllow"] == ["char-nvidia* rw", "/dev/dxg rw"]


def test_every_file_that_the_unit_names_in_the_checkout_is_there() -> None:
    named = re.findall(r"/opt/ollama-balancer/((?:deploy|docs)/[\w./-]+)", UNIT.read_text())

    assert len(named) >= 3
    assert [path for path in named if not (ROOT / path).exists()] == []


# Compose files


def test_there_is_a_compose_file_for_gpus_and_one_without() -> None:
    assert [each.name for each in COMPOSE_FILES] == ["compose.gpu.yaml", "compose.yaml"]


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_the_command_of_a_compose_file_is_ours_and_listens_where_it_is_published(file: Path) -> None:
    service = service_named_balancer(file)
    words = service.get("command") or command_of_the_image()

    found = settings_of(words, service.get("environment", {}))

    (published,) = service["ports"]
    host, outside, inside = published.rsplit(":", 2)
    assert (host, outside) == ("127.0.0.1", "11400")
    assert parse_address(f"0.0.0.0:{inside}") == found.listen
    assert found.admin_listen.loopback


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_the_balancer_in_a_compose_file_is_closed_up(file: Path) -> None:
    service = service_named_balancer(file)

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service["image"].startswith(f"ollama-balancer:{__version__}")


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_nothing_of_a_compose_file_is_published_beyond_this_machine(file: Path) -> None:
    services = yaml.safe_load(file.read_text())["services"]

    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert [name for name, service in services.items() if service.get("network_mode") == "host"] == []


def test_the_instances_that_a_compose_file_names_are_its_services() -> None:
    data = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    instances = json.loads(data["services"]["balancer"]["environment"]["BALANCER_INSTANCES"])
    ollamas = {name: service for name, service in data["services"].items() if name != "balancer"}

    assert {f"http://{name}:11434" for name in ollamas} == {each["url"] for each in instances}
    for each in ollamas.values():
        assert {each["environment"]["OLLAMA_NUM_PARALLEL"]} == {str(one["slots"]) for one in instances}


def test_the_gpu_box_reserves_its_gpus_and_writes_to_its_volume_alone() -> None:
    service = service_named_balancer(DEPLOY / "compose.gpu.yaml")
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]

    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert service["volumes"] == ["data:/data"]
    assert service["tmpfs"] == ["/tmp"]


def test_the_gpu_image_has_a_home_where_its_volume_is_and_the_default_image_has_none() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    by_name = {stage.splitlines()[0].partition(" AS ")[2]: stage for stage in stages}
    gpu = by_name[service_named_balancer(DEPLOY / "compose.gpu.yaml")["build"]["target"]]

    assert {"HOME=/data", "XDG_STATE_HOME=/data/state"} <= set(gpu.split())
    assert "USER 65532:65532" in gpu
    assert stages[-1].strip() == "alone"


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_of_the_gpu_box_follows_what_the_balancer_says(status: int, code: int) -> None:
    how, _, option, script = service_named_balancer(DEPLOY / "compose.gpu.yaml")["healthcheck"]["test"]
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        here = script.replace("11400", str(server.server_port))
        done = subprocess.run([sys.executable, option, here], timeout=60, check=False)
        thread.join()

    assert ("CMD", ["/readyz"], code) == (how, asked, done.returncode)
