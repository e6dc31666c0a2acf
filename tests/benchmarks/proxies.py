"""The proxies that are compared: how each is started in front of the instance, or why it cannot be.

All are on loopback, with one core and one process or thread that serves; what they write is in a folder that
goes with the run. Nothing here measures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from tests.benchmarks.processes import ROOT, Child, Cores, Failed, clean_environment
from tests.benchmarks.wire import MODEL, Path, Question

LITELLM_VERSION = "1.106.2"
_READY_SECONDS = 20.0
_SLOW_READY_SECONDS = 120.0
_INSTALL_SECONDS = 900.0
_LOOK_SECONDS = 0.05
SLOTS_PER_PORT = 1024
"""As many as one instance may be declared with."""
_DEBIAN = "not found; on Debian: apt-get install nginx-light haproxy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a proxy starts: its core, a folder of its own, and the ports of the instance."""

    core: int
    folder: FilePath
    instance_ports: Sequence[int]
    wrapper: Sequence[str] = ()
    """A command that becomes the proxy's."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of the balancer, beside what it needs."""

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start a proxy here."""
        log = self.folder / f"{name}.log"
        return Child([*self.wrapper, *command], core=self.core, log=log, environment=environment)


@dataclass(frozen=True, slots=True)
class Started:
    """A proxy that runs, and its port."""

    child: Child
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One kind. `missing` says why it cannot run here, None where it can; it may install what it needs."""

    name: str
    start: Callable[[Place], Started]
    missing: Callable[[], str | None]
    version: Callable[[], str]
    path: Path = Path.GENERATE
    ready_seconds: float = _READY_SECONDS
    own: bool = False
    """It is the balancer, in whatever guise."""
    foreign: bool = True
    """Made by others: where it fails it is left out."""
    measures: frozenset[str] | None = None
    """Of the measures only these; None: every one."""


async def until_ready(proxy: Proxy, started: Started) -> None:
    """Return once a question through it is answered. Raises Failed."""
    question, loop = Question(path=proxy.path), asyncio.get_running_loop()
    deadline = loop.time() + proxy.ready_seconds
    while loop.time() < deadline:
        if not started.child.alive:
            break
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5.0):
                if await _asked_once(started.port, question.request(0)):
                    return
        await asyncio.sleep(_LOOK_SECONDS)
    what = f"was not ready in {proxy.ready_seconds:g} s" if started.child.alive else "ended at its start"
    raise Failed(f"{proxy.name} {what}: {started.child.said()[-800:]}")


async def _asked_once(port: int, request: bytes) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        line = await reader.readline()
        return b" 200 " in line and bool(await reader.read(1))
    finally:
        writer.close()


def _relay(place: Place) -> Started:
    command = [sys.executable, "-m", "tests.benchmarks.relay", *map(str, place.instance_ports)]
    child = place.start("relay", command)
    return Started(child, int(child.line_with()))


def _nginx(place: Place) -> Started:
    port = _free_port()
    servers = "".join(f"server 127.0.0.1:{each} max_fails=0; " for each in place.instance_ports)
    # The worker of a root's nginx would be somebody who may not enter the folder.
    user = "user root root;" if os.geteuid() == 0 else ""
    temporary = "".join(
        f"{each}_temp_path {place.folder}/{each};\n"
        for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config, errors = place.folder / "nginx.conf", place.folder / "errors.log"
    config.write_text(
        f"""{user}
daemon off; worker_processes 1; pid {place.folder}/nginx.pid; error_log {errors} warn;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
access_log off;
{temporary}
client_max_body_size 64m;
keepalive_requests 100000000;
upstream instance {{ {servers} keepalive 4096; keepalive_requests 100000000; }}
server {{
listen 127.0.0.1:{port} backlog=4096;
location / {{
proxy_pass http://instance; proxy_http_version 1.1; proxy_set_header Connection "";
proxy_buffering off; proxy_read_timeout 300s;
}} }} }}
"""
    )
    nginx = _found("nginx")
    assert nginx is not None
    return Started(place.start("nginx", [nginx, "-c", str(config), "-e", str(errors)]), port)


def _haproxy(place: Place) -> Started:
    port = _free_port()
    servers = "\n".join(
        f"  server instance{each} 127.0.0.1:{each} maxconn 16384" for each in place.instance_ports
    )
    config = place.folder / "haproxy.cfg"
    config.write_text(
        f"""global
  nbthread 1
  maxconn 9000
defaults
  mode http
  option http-no-delay
  option http-keep-alive
  http-reuse always
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend clients
  bind 127.0.0.1:{port} backlog 4096
  default_backend instance
backend instance
{servers}
"""
    )
    haproxy = _found("haproxy")
    assert haproxy is not None
    return Started(place.start("haproxy", [haproxy, "-db", "-f", str(config)]), port)


def balancer(name: str, *, settings: Mapping[str, object], tree: FilePath = ROOT) -> Proxy:
    """The balancer of this checkout or another one, with these settings beside those of the place and the
    defaults; its log is a file of JSON."""

    def start(place: Place) -> Started:
        chosen = {
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "instances": [
                {"url": f"http://127.0.0.1:{each}", "name": f"instance-{each}", "slots": SLOTS_PER_PORT}
                for each in place.instance_ports
            ],
            **place.settings,
            **settings,
        }
        config = place.folder / "balancer.yaml"
        config.write_text(json.dumps(chosen))  # JSON is YAML
        command = [sys.executable, "-m", "balancer", "serve", "--config", str(config)]
        environment = {**clean_environment(), "PYTHONPATH": str(tree)}
        child = place.start("balancer", command, environment)
        words = child.line_with("listens on").replace(",", " ").split()
        return Started(child, int(words[words.index("on") + 1].rpartition(":")[2]))

    def missing() -> str | None:
        return None if (tree / "balancer" / "__main__.py").exists() else "no checkout of the balancer there"

    def version() -> str:
        found = re.search(r'__version__ = "(.+)"', (tree / "balancer" / "__init__.py").read_text())
        return " ".join((found[1] if found else "unknown", *([json.dumps(settings)] if settings else ())))

    return Proxy(name=name, start=start, missing=missing, version=version, own=True, foreign=False)


def _litellm(place: Place) -> Started:
    port = _free_port()
    config = place.folder / "litellm.yaml"
    models = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"openai/{MODEL}",
                "api_base": f"http://127.0.0.1:{each}/v1",
                "api_key": "none",
            },
        }
        for each in place.instance_ports
    ]
    config.write_text(json.dumps({"model_list": models, "litellm_settings": {"telemetry": False}}))
    command = [str(_litellm_home() / "bin" / "litellm"), "--config", str(config)]
    environment = {**clean_environment(), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    environment |= {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}  # the others have none
    environment.pop("PYTHONPATH")
    return Started(
        place.start("litellm", [*command, "--host", "127.0.0.1", "--port", str(port)], environment), port
    )


def _install_litellm() -> str | None:
    """Install it into a cache, once; None when it is there."""
    home = _litellm_home()
    done = home / ".installed"
    if done.exists():
        return None
    pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
    print(f"installing litellm {LITELLM_VERSION} into {home}", file=sys.stderr)
    try:
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(home)], check=True, capture_output=True, timeout=120
        )
        subprocess.run(
            [*pip, "install", f"litellm[proxy]=={LITELLM_VERSION}"],
            check=True,
            capture_output=True,
            timeout=_INSTALL_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
        return f"litellm {LITELLM_VERSION} could not be installed: {said.splitlines()[-1] if said else error}"
    done.touch()
    return None


def _litellm_home() -> FilePath:
    cache = os.environ.get("XDG_CACHE_HOME") or FilePath.home() / ".cache"
    return FilePath(cache) / "ollama-balancer-bench" / f"litellm-{LITELLM_VERSION}"


def _found(name: str) -> str | None:
    """Where a program is; Debian puts these where a user's PATH does not look."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _absent(name: str) -> Callable[[], str | None]:
    return lambda: None if _found(name) else _DEBIAN


def _told(name: str, option: str) -> Callable[[], str]:
    """The first line of what a program says of its version."""

    def ask() -> str:
        said = subprocess.run([_found(name) or name, option], capture_output=True, check=False, timeout=10)
        words = (said.stdout + said.stderr).decode(errors="replace").split()
        return next((each.rpartition("/")[2] for each in words if any(map(str.isdigit, each))), "unknown")

    return ask


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


PROXIES = {
    each.name: each
    for each in (
        Proxy(
            name="relay",
            start=_relay,
            missing=lambda: None,
            version=lambda: "blind copy on uvloop",
            foreign=False,
        ),
        Proxy(name="nginx", start=_nginx, missing=_absent("nginx"), version=_told("nginx", "-v")),
        Proxy(name="haproxy", start=_haproxy, missing=_absent("haproxy"), version=_told("haproxy", "-v")),
        balancer("balancer", settings={}),
        Proxy(
            name="litellm",
            start=_litellm,
            missing=_install_litellm,
            version=lambda: LITELLM_VERSION,
            path=Path.OPENAI,
            ready_seconds=_SLOW_READY_SECONDS,
            measures=frozenset({"unary", "few", "one"}),
        ),
    )
}


def start_instance(ports: int, *, cores: Cores, folder: FilePath) -> tuple[Child, list[int]]:
    """The instance on the core of the load, and its ports."""
    command = [sys.executable, "-m", "tests.benchmarks.instance", str(ports)]
    child = Child(command, core=cores.load, log=folder / "instance.log")
    listens: list[int] = json.loads(child.line_with())
    return child, listens
