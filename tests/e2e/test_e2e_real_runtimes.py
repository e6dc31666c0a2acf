"""What runtimes are told is understood by the real ones: an Ollama and a llama-server on the CPU."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import wait_for
from real_ollama import BINARY, GGUF, fill, needs_ollama

from balancer.core.plan import PlannedInstance, Runtime
from balancer.provisioning.launch import Launch
from balancer.provisioning.runtimes import LAUNCHERS, Host
from balancer.settings import Settings

MIB = 2**20
LLAMA_SERVER = os.environ.get("LLAMA_SERVER_BINARY", "")

needs_llama_server = [
    pytest.mark.llama_server,
    pytest.mark.skipif(
        not os.access(LLAMA_SERVER, os.X_OK) or not Path(LLAMA_SERVER).is_file(),
        reason="LLAMA_SERVER_BINARY names no executable",
    ),
    pytest.mark.skipif(not GGUF.is_dir(), reason="OLLAMA_TEST_GGUF names no folder"),
]


def on_the_cpu(runtime: Runtime, **more: Any) -> PlannedInstance:
    """An instance on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return PlannedInstance(
        name="cpu", port=port, runtime=runtime, devices=(), memory_bytes=2**30, reason="a test", **more
    )


def host(home: Path, runtimes: Mapping[str, object]) -> Host:
    environ = {"HOME": str(home), "PATH": os.environ["PATH"], "OLLAMA_NO_CLOUD": "1"}
    return Host((), environ, Settings.model_validate({"runtimes": runtimes}))


@contextlib.contextmanager
def running(launch: Launch, folder: Path) -> Iterator[str]:
    """The process of a launch with nothing but what the launch says, once it is ready; gives its URL."""
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            launch.arguments,
            env=launch.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{launch.port}"
    try:
        wait_for(lambda: ready(url + launch.ready_path), about=f"an answer, see {folder}/output")
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ready(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, verify=False).status_code == 200
    except httpx.TransportError:
        return False


def told(url: str) -> Any:
    answer = httpx.get(url, trust_env=False, verify=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def runner_of(models: Path) -> Path:
    """The folder in /proc of the one runner that has a model of this store open."""
    lines = {each: (each / "cmdline").read_bytes().split(b"\0") for each in processes()}
    (found,) = (each for each, line in lines.items() if any(os.fsencode(models) in part for part in line))
    return found


def processes() -> Iterator[Path]:
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if each.name.isdigit() and (each / "cmdline").read_bytes():
                yield each


class TestOllama:
    pytestmark = needs_ollama

    def test_a_runner_gets_the_slots_the_context_and_the_cache_that_were_planned(
        self, tmp_path: Path
    ) -> None:
        planned = on_the_cpu(
            Runtime.OLLAMA, slots=2, context_length=1024, prompt_cache_bytes=192 * MIB, prunes=True
        )
        models = tmp_path / "models"
        runtimes = {"ollama": {"command": BINARY, "models_dir": str(models)}}
        launch = LAUNCHERS[Runtime.OLLAMA](planned, host(tmp_path, runtimes))

        with running(launch, tmp_path) as url:
            fill(url, "say")
            httpx.post(f"{url}/api/generate", json={"model": "say"}, trust_env=False, timeout=60)
            (resident,) = told(f"{url}/api/ps")["models"]
            runner = runner_of(models)
            arguments = (runner / "cmdline").read_text().split("\0")
            environment = (runner / "environ").read_text().split("\0")

        assert (resident["context_length"], resident["size_vram"]) == (1024, 0)
        assert arguments[arguments.index("-np") + 1] == "2"
        assert arguments[arguments.index("-c") + 1] == "2048"
        assert {"LLAMA_ARG_CACHE_RAM=192", "CUDA_VISIBLE_DEVICES=-1"} <= set(environment)

    def test_the_prompt_cache_it_was_given_is_what_its_runner_says(self, tmp_path: Path) -> None:
        planned = on_the_cpu(Runtime.OLLAMA, prompt_cache_bytes=0)
        runtimes = {"ollama": {"command": BINARY, "models_dir": str(tmp_path / "models")}}
        launch = LAUNCHERS[Runtime.OLLAMA](planned, host(tmp_path, runtimes))

        with running(launch, tmp_path) as url:
            fill(url, "say")
            httpx.post(f"{url}/api/generate", json={"model": "say"}, trust_env=False, timeout=60)
            output = (tmp_path / "output").read_text(errors="replace")

        assert "prompt cache is disabled" in output


class TestLlamaServer:
    pytestmark = needs_llama_server

    def test_it_knows_every_option_that_it_is_given(self, tmp_path: Path) -> None:
        runtimes = {"llama_server": {"command": LLAMA_SERVER}}
        planned = on_the_cpu(
            Runtime.LLAMA_SERVER, models=("t",), model_path=str(GGUF / "t.gguf"), context_length=512
        )
        launch = LAUNCHERS[Runtime.LLAMA_SERVER](planned, host(tmp_path, runtimes))

        shown = subprocess.run(
            [LLAMA_SERVER, "--help"], capture_output=True, text=True, timeout=60, check=True
        ).stdout

        known = set(re.findall(r"--[a-z][a-z-]*", shown))
        assert {each for each in launch.arguments if each.startswith("--")} - known == set()

    def test_it_serves_the_model_under_its_name_with_its_slots(self, tmp_path: Path) -> None:
        runtimes = {"llama_server": {"command": LLAMA_SERVER}}
        planned = on_the_cpu(
            Runtime.LLAMA_SERVER,
            models=("tiny:latest", "other"),
            model_path=str(GGUF / "t.gguf"),
            slots=3,
            context_length=256,
            prompt_cache_bytes=16 * MIB,
        )
        launch = LAUNCHERS[Runtime.LLAMA_SERVER](planned, host(tmp_path, runtimes))

        with running(launch, tmp_path) as url:
            (listed,) = told(f"{url}/v1/models")["data"]
            slots = told(f"{url}/slots")
            metrics = httpx.get(f"{url}/metrics", trust_env=False, verify=False).status_code
            answer = httpx.post(
                f"{url}/v1/completions",
                json={"model": "other", "prompt": "a", "max_tokens": 2},
                trust_env=False,
                timeout=60,
            ).json()

        assert "tiny:latest" in {listed["id"], *listed.get("aliases", [])}
        assert [slot["n_ctx"] for slot in slots] == [256] * 3
        assert metrics == 200
        assert answer["usage"]["completion_tokens"] == 2
