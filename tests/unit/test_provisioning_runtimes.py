"""What all runtimes have in common, and the page that tells what each process is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from runtime_hosts import GIB, UUIDS, device, host, instance, program

from balancer.core.plan import Runtime
from balancer.provisioning.runtimes import LAUNCHERS, CannotLaunch, launches, ollama
from balancer.settings.process_environment import RESERVED

PAGE = Path(__file__).parents[2] / "docs" / "runtime-environment.md"


@pytest.mark.parametrize("runtime", Runtime)
def test_secrets_and_the_balancers_own_variables_stay_behind(tmp_path: Path, runtime: Runtime) -> None:
    model = tmp_path / "a.gguf"
    model.write_bytes(b"GGUF")
    left = {
        "BALANCER_LISTEN": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "CUDA_API_TOKEN": "x",
        "CUDA_KEY2": "x",
        "NVIDIA_KEYRING": "x",
        "GITHUB_TOKEN": "x",
        "LD_PRELOAD": "/x.so",
        "PYTHONPATH": "/x",
        "SSH_AUTH_SOCK": "/x",
    }
    kept = {
        "LD_LIBRARY_PATH": "/lib/cuda",
        "HTTPS_PROXY": "http://proxy:3128",
        "no_proxy": "localhost",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "LC_ALL": "C.UTF-8",
        "CUDA_CACHE_PATH": "/cache",
    }
    own = host(tmp_path, device(), environ=left | kept)

    environment = LAUNCHERS[runtime](instance(runtime, model_path=str(model)), own).environment

    assert kept.items() <= environment.items()
    assert environment.keys() & left.keys() == set()


@pytest.mark.parametrize("runtime", Runtime)
def test_variables_of_the_settings_win(tmp_path: Path, runtime: Runtime) -> None:
    model = tmp_path / "a.gguf"
    model.write_bytes(b"GGUF")
    added = {"HOME": "/elsewhere", "OLLAMA_CONTEXT_LENGTH": "1024", "DO_NOT_TRACK": "0", "MINE": "1"}
    group = runtime.value.replace("-", "_")
    own = host(tmp_path, device(), runtimes={group: {"environment": added}})

    launch = LAUNCHERS[runtime](instance(runtime, model_path=str(model), context_length=64), own)

    assert added.items() <= launch.environment.items()


@pytest.mark.parametrize("runtime", Runtime)
def test_what_pins_a_process_may_not_be_set_by_the_settings(tmp_path: Path, runtime: Runtime) -> None:
    """Whatever pins an instance is refused as an added variable, or adding it would undo the plan."""
    model = tmp_path / "a.gguf"
    model.write_bytes(b"GGUF")
    free = {
        *("HOME", "PATH", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_KEEP_ALIVE", "OLLAMA_MAX_LOADED_MODELS"),
        *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"),
    }

    launch = LAUNCHERS[runtime](instance(runtime, model_path=str(model)), host(tmp_path, device()))

    assert launch.environment.keys() - free - RESERVED.keys() == set()


@pytest.mark.parametrize("runtime", Runtime)
def test_a_missing_program_is_named_with_what_to_install(tmp_path: Path, runtime: Runtime) -> None:
    model = tmp_path / "a.gguf"
    model.write_bytes(b"GGUF")
    own = host(tmp_path, device(), environ={"PATH": str(tmp_path / "empty")})
    setting = f"runtimes.{runtime.value.replace('-', '_')}.command"

    with pytest.raises(CannotLaunch) as caught:
        LAUNCHERS[runtime](instance(runtime, model_path=str(model)), own)

    assert f"'{runtime.value}' is not on PATH: install " in str(caught.value)
    assert str(caught.value).endswith(f", or name its path in {setting}")


def test_a_command_may_be_a_path_also_from_home(tmp_path: Path) -> None:
    path = program(tmp_path / "home" / "opt", "ollama-next")
    own = host(
        tmp_path,
        device(),
        environ={"HOME": str(tmp_path / "home")},
        runtimes={"ollama": {"command": "~/opt/ollama-next"}},
    )

    assert str(path) == ollama.launch(instance(), own).arguments[0]


def test_a_command_that_may_not_be_run_is_refused(tmp_path: Path) -> None:
    path = program(tmp_path, "ollama-next")
    path.chmod(0o644)

    with pytest.raises(CannotLaunch, match="is not there, or may not be run"):
        ollama.launch(instance(), host(tmp_path, device(), runtimes={"ollama": {"command": str(path)}}))


def test_a_device_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(CannotLaunch, match=f"'gpu0-a' needs device 'GPU-x'; there are {UUIDS[0]}"):
        ollama.launch(instance(devices=("GPU-x",)), host(tmp_path, device()))


def test_launches_keep_the_order_of_the_plan(tmp_path: Path) -> None:
    planned = [instance(name="b"), instance(Runtime.VLLM, name="a"), instance(name="c")]

    assert [each.name for each in launches(planned, host(tmp_path, device()))] == ["b", "a", "c"]


def test_shares_that_come_to_a_whole_device_are_refused_by_name(tmp_path: Path) -> None:
    planned = [
        instance(Runtime.VLLM, name="a", memory_bytes=12 * GIB),
        instance(Runtime.VLLM, name="b", devices=UUIDS, memory_bytes=24 * GIB),
        instance(name="o", memory_bytes=24 * GIB),
    ]

    with pytest.raises(CannotLaunch, match=r"GPU 0 \(card 0\) .* for 'a' 0\.50, 'b' 0\.50: together 1\.00"):
        launches(planned, host(tmp_path, device(), device(1)))


def test_shares_below_a_whole_device_pass(tmp_path: Path) -> None:
    planned = [
        instance(Runtime.VLLM, name="a", memory_bytes=11 * GIB),
        instance(Runtime.VLLM, name="b", devices=UUIDS, memory_bytes=24 * GIB),
    ]

    assert len(launches(planned, host(tmp_path, device(), device(1)))) == 2


def cells(heading: str) -> str:
    """The first cells of the tables under a heading of the page."""
    _, _, section = PAGE.read_text().partition(f"## {heading}\n")
    lines = section.partition("\n## ")[0].splitlines()
    return "\n".join(line.split("|")[1] for line in lines if line.startswith("|"))


def test_the_page_names_every_variable_and_option_that_is_set(tmp_path: Path) -> None:
    model = tmp_path / "a.gguf"
    model.write_bytes(b"GGUF")
    own = host(tmp_path, device(capability=(12, 0)), device(1, capability=(12, 0)))
    every = cells("Set for every runtime")
    headings = {Runtime.OLLAMA: "Ollama", Runtime.VLLM: "vLLM", Runtime.LLAMA_SERVER: "llama-server"}

    for runtime, name in headings.items():
        for devices in (UUIDS, UUIDS[:1], () if runtime is not Runtime.VLLM else UUIDS[:1]):
            planned = instance(
                runtime, devices=devices, models=("a",), model_path=str(model), context_length=64
            )
            launch = LAUNCHERS[runtime](planned, own)
            told = every + cells(f"Set for {name}")
            variables = {each for each, value in launch.environment.items() if own.environ.get(each) != value}
            given = {each for each in launch.arguments if each.startswith("--")}
            assert [each for each in variables | given if f"`{each}`" not in told] == []


def test_the_page_names_everything_that_is_refused_and_its_reason() -> None:
    page = PAGE.read_text().replace("`", "")
    refused = cells("Refused")

    assert [name for name in RESERVED if f"`{name}`" not in refused] == []
    assert [reason for reason in RESERVED.values() if reason not in page] == []


def test_the_page_names_everything_that_is_inherited(tmp_path: Path) -> None:
    _, _, section = PAGE.read_text().partition("## Inherited\n")
    rows = [line.split("|")[2] for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    named = [name for name in re.findall(r"`([^`]+)`", " ".join(rows)) if "*" not in name]
    environ = {name: "x" for name in named if name != "PATH"}

    environment = ollama.launch(instance(), host(tmp_path, device(), environ=environ)).environment

    assert [name for name in named if environment.get(name) in (None, "")] == []
    assert [name for name in ollama.USERS_OWN if name not in named] == []
