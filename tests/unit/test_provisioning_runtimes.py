"""What each runtime's process is told, argument by argument and variable by variable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from runtime_hosts import GIB, UUIDS, device, host, instance, program

from balancer.core.plan import Runtime
from balancer.provisioning.launch import Launch
from balancer.provisioning.runtimes import LAUNCHERS, CannotLaunch, launches, ollama
from balancer.settings.process_environment import RESERVED

MIB = 2**20
PAGE = Path(__file__).parents[2] / "docs" / "runtime-environment.md"

VLLM_OPTIONS = {
    "--served-model-name": r"\S+",
    "--host": r"[0-9.]+",
    "--port": r"[0-9]+",
    "--gpu-memory-utilization": r"0\.[0-9]+",
    "--max-model-len": r"[0-9]+",
    "--max-num-seqs": r"[0-9]+",
    "--dtype": r"auto|half|float16|bfloat16|float|float32",
    "--enforce-eager": None,
    "--tensor-parallel-size": r"[0-9]+",
}
"""The options of `vllm serve` that are used, each with the form of its value, None for a switch; as
documented in docs/serving/engine_args of vLLM v0.8.5."""


def options(arguments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Each option with the values behind it."""
    found: dict[str, list[str]] = {}
    name = ""
    for each in arguments:
        if each.startswith("--"):
            name = each
            assert name not in found, f"{name} is given twice"
            found[name] = []
        else:
            found[name].append(each)
    return {name: tuple(values) for name, values in found.items()}


def started(launch: Launch) -> dict[str, str]:
    return launch.environment


# Ollama


def test_ollama_serves_at_its_port_and_is_asked_for_its_version(tmp_path: Path) -> None:
    launch = ollama.launch(instance(), host(tmp_path, device()))

    assert (str(tmp_path / "bin" / "ollama"), "serve") == launch.arguments
    assert launch.environment["OLLAMA_HOST"] == "127.0.0.1:11500"
    assert (launch.name, launch.port, launch.ready_path) == ("gpu0-a", 11500, "/api/version")


def test_ollama_on_a_gpu_is_told_everything_that_is_counted_on(tmp_path: Path) -> None:
    planned = instance(slots=2, context_length=8192, prompt_cache_bytes=3 * GIB)

    launch = ollama.launch(planned, host(tmp_path, device(), device(1)))

    assert {
        "HOME": "/home/u",
        "PATH": str(tmp_path / "bin"),
        "CUDA_VISIBLE_DEVICES": UUIDS[0],
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "ROCR_VISIBLE_DEVICES": "-1",
        "HIP_VISIBLE_DEVICES": "-1",
        "GGML_VK_VISIBLE_DEVICES": "",
        "OLLAMA_VULKAN": "0",
        "OLLAMA_HOST": "127.0.0.1:11500",
        "OLLAMA_MODELS": "/home/u/.ollama/models",
        "OLLAMA_NUM_PARALLEL": "2",
        "OLLAMA_MAX_LOADED_MODELS": "3",
        "OLLAMA_MAX_QUEUE": "512",
        "OLLAMA_CONTEXT_LENGTH": "8192",
        "OLLAMA_KEEP_ALIVE": "300s",
        "OLLAMA_NOPRUNE": "1",
        "LLAMA_ARG_CACHE_RAM": "1024",
    } == launch.environment


def test_one_ollama_of_a_store_tidies_it_up(tmp_path: Path) -> None:
    launch = ollama.launch(instance(prunes=True), host(tmp_path, device()))

    assert "OLLAMA_NOPRUNE" not in launch.environment


def test_ollama_over_several_gpus_sees_all_and_spreads_one_model(tmp_path: Path) -> None:
    planned = instance(devices=UUIDS, prompt_cache_bytes=2 * GIB)

    environment = ollama.launch(planned, host(tmp_path, device(), device(1))).environment

    assert ",".join(UUIDS) == environment["CUDA_VISIBLE_DEVICES"]
    assert environment["OLLAMA_SCHED_SPREAD"] == "1"
    assert (environment["OLLAMA_MAX_LOADED_MODELS"], environment["LLAMA_ARG_CACHE_RAM"]) == ("1", "2048")


def test_ollama_on_the_cpu_sees_no_gpu_by_any_way(tmp_path: Path) -> None:
    environment = ollama.launch(instance(devices=()), host(tmp_path, device())).environment

    ways = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    assert {"-1"} == {environment[name] for name in ways}
    assert (environment["GGML_VK_VISIBLE_DEVICES"], environment["OLLAMA_VULKAN"]) == ("", "0")
    assert "OLLAMA_SCHED_SPREAD" not in environment


def test_ollamas_context_length_is_set_whatever_the_plan_says(tmp_path: Path) -> None:
    own = host(tmp_path, device(), environ={"OLLAMA_CONTEXT_LENGTH": "16384"})

    assert started(ollama.launch(instance(), host(tmp_path, device())))["OLLAMA_CONTEXT_LENGTH"] == "4096"
    assert started(ollama.launch(instance(), own))["OLLAMA_CONTEXT_LENGTH"] == "16384"
    assert started(ollama.launch(instance(context_length=2048), own))["OLLAMA_CONTEXT_LENGTH"] == "2048"


def test_a_plan_without_prompt_caches_leaves_none(tmp_path: Path) -> None:
    assert started(ollama.launch(instance(), host(tmp_path, device())))["LLAMA_ARG_CACHE_RAM"] == "0"


@pytest.mark.parametrize(("loaded", "mib"), [("2", "1536"), ("1", "3072"), ("0", "1024"), ("auto", "1024")])
def test_the_prompt_cache_is_shared_by_as_many_as_may_be_loaded(
    tmp_path: Path, loaded: str, mib: str
) -> None:
    own = host(tmp_path, device(), runtimes={"ollama": {"environment": {"OLLAMA_MAX_LOADED_MODELS": loaded}}})

    environment = ollama.launch(instance(prompt_cache_bytes=3 * GIB), own).environment

    assert (loaded, mib) == (environment["OLLAMA_MAX_LOADED_MODELS"], environment["LLAMA_ARG_CACHE_RAM"])


def test_the_users_own_way_of_ollama_is_kept_and_their_layout_is_not(tmp_path: Path) -> None:
    kept = {
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_KV_CACHE_TYPE": "q8_0",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_MODELS": "/data/models",
        "LLAMA_ARG_FIT_TARGET": "512",
    }
    replaced = {
        "OLLAMA_HOST": "0.0.0.0:11434",
        "OLLAMA_NUM_PARALLEL": "9",
        "OLLAMA_MAX_LOADED_MODELS": "9",
        "OLLAMA_MAX_QUEUE": "1",
        "CUDA_VISIBLE_DEVICES": "7",
        "GGML_VK_VISIBLE_DEVICES": "7",
    }
    left = {
        "OLLAMA_ORIGINS": "*",
        "OLLAMA_DEBUG_LOG_REQUESTS": "1",
        "OLLAMA_SCHED_SPREAD": "1",
        "OLLAMA_API_KEY": "s3cret",
        "LLAMA_ARG_PORT": "1",
    }

    environment = ollama.launch(
        instance(), host(tmp_path, device(), environ=kept | replaced | left)
    ).environment

    assert kept.items() <= environment.items()
    assert [name for name, value in replaced.items() if environment[name] == value] == []
    assert environment.keys() & left.keys() == set()


@pytest.mark.parametrize(
    ("setting", "variable", "folder"),
    [
        (None, None, "/home/u/.ollama/models"),
        (None, "/data/m", "/data/m"),
        ("/srv/m", "/data/m", "/srv/m"),
        ("~/m", None, "/home/u/m"),
    ],
)
def test_the_store_is_the_settings_else_the_variables_else_ollamas_own(
    tmp_path: Path, setting: str | None, variable: str | None, folder: str
) -> None:
    environ = {"OLLAMA_MODELS": variable} if variable else {}
    own = host(tmp_path, device(), environ=environ, runtimes={"ollama": {"models_dir": setting}})

    assert folder == ollama.launch(instance(), own).environment["OLLAMA_MODELS"]
    assert Path(folder) == ollama.models_folder(own)


def test_idle_models_are_kept_as_long_as_the_settings_say(tmp_path: Path) -> None:
    own = host(tmp_path, device(), placement={"evict_after_idle_seconds": 60})

    assert ollama.launch(instance(), own).environment["OLLAMA_KEEP_ALIVE"] == "60s"


def test_ollama_without_a_home_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotLaunch, match="HOME is not set"):
        ollama.launch(instance(), host(tmp_path, device(), environ={"HOME": ""}))


# vLLM


def test_vllm_is_told_what_is_documented_and_nothing_else(tmp_path: Path) -> None:
    planned = instance(
        Runtime.VLLM,
        models=("qwen2.5:3b",),
        model_path="/srv/qwen",
        slots=24,
        context_length=1536,
        devices=UUIDS,
        memory_bytes=24 * GIB,
    )
    cards = (device(0, capability=(12, 0)), device(1, capability=(12, 0)))

    launch = LAUNCHERS[Runtime.VLLM](planned, host(tmp_path, *cards))

    given = options(launch.arguments[3:])
    assert (str(tmp_path / "bin" / "vllm"), "serve", "/srv/qwen") == launch.arguments[:3]
    assert set(VLLM_OPTIONS) == set(given)
    for name, values in given.items():
        form = VLLM_OPTIONS[name]
        assert len(values) == (form is not None), name
        assert form is None or re.fullmatch(form, values[0]), name
    assert (launch.name, launch.port, launch.ready_path) == ("gpu0-a", 11500, "/health")


def test_vllm_on_one_card_argument_by_argument(tmp_path: Path) -> None:
    planned = instance(Runtime.VLLM, models=("a", "b"), model_path="/m", slots=24, context_length=1536)

    launch = LAUNCHERS[Runtime.VLLM](planned, host(tmp_path, device()))

    assert (
        *(str(tmp_path / "bin" / "vllm"), "serve", "/m"),
        *("--served-model-name", "a", "b"),
        *("--host", "127.0.0.1", "--port", "11500"),
        *("--gpu-memory-utilization", "0.250"),
        *("--max-model-len", "1536", "--max-num-seqs", "24", "--dtype", "auto"),
    ) == launch.arguments


@pytest.mark.parametrize(
    ("capability", "use_fp16", "dtype", "eager"),
    [
        ((8, 9), True, "auto", False),
        ((7, 5), True, "float16", False),
        ((7, 5), False, "float32", False),
        ((12, 0), True, "auto", True),
        ((12, 0), False, "float32", True),
        ((9, 0), False, "float32", False),
        (None, True, "auto", False),
    ],
)
def test_vllms_precision_and_eagerness_follow_the_card(
    tmp_path: Path, capability: tuple[int, int] | None, use_fp16: bool, dtype: str, eager: bool
) -> None:
    own = host(tmp_path, device(capability=capability), provisioning={"use_fp16": use_fp16})

    given = options(LAUNCHERS[Runtime.VLLM](instance(Runtime.VLLM), own).arguments[3:])

    assert (dtype,) == given["--dtype"]
    assert eager == ("--enforce-eager" in given)


def test_the_least_of_several_cards_decides_vllms_precision(tmp_path: Path) -> None:
    planned = instance(Runtime.VLLM, devices=UUIDS, memory_bytes=12 * GIB)

    launch = LAUNCHERS[Runtime.VLLM](planned, host(tmp_path, device(), device(1, capability=(7, 5))))

    given = options(launch.arguments[3:])
    assert (given["--dtype"], given["--tensor-parallel-size"]) == (("float16",), ("2",))
    assert given["--gpu-memory-utilization"] == ("0.250",)


def test_what_the_plan_leaves_open_vllm_decides(tmp_path: Path) -> None:
    given = options(LAUNCHERS[Runtime.VLLM](instance(Runtime.VLLM), host(tmp_path, device())).arguments[3:])

    assert given["--max-num-seqs"] == ("16",)
    assert "--max-model-len" not in given
    assert "--tensor-parallel-size" not in given


def test_vllms_share_is_rounded_down(tmp_path: Path) -> None:
    planned = instance(Runtime.VLLM, memory_bytes=8 * GIB)

    given = options(LAUNCHERS[Runtime.VLLM](planned, host(tmp_path, device())).arguments[3:])

    assert given["--gpu-memory-utilization"] == ("0.333",)


def test_vllm_sees_its_cards_by_index_and_its_tools_and_reports_nothing(tmp_path: Path) -> None:
    secrets = {"HF_TOKEN": "s3cret", "VLLM_API_KEY": "s3cret", "AWS_SECRET_ACCESS_KEY": "s3cret"}
    environ = {"HF_HOME": "/hf", "VLLM_LOGGING_LEVEL": "DEBUG", "OLLAMA_DEBUG": "1", **secrets}
    own = host(
        tmp_path,
        device(),
        device(1),
        environ=environ,
        runtimes={"vllm": {"environment": {"VLLM_LOGGING_LEVEL": "WARNING"}}},
    )

    environment = LAUNCHERS[Runtime.VLLM](instance(Runtime.VLLM, devices=(UUIDS[1],)), own).environment

    assert (environment["CUDA_VISIBLE_DEVICES"], environment["CUDA_DEVICE_ORDER"]) == ("1", "PCI_BUS_ID")
    assert f"{tmp_path}/bin:{tmp_path}/bin" == environment["PATH"]
    assert (environment["HF_HOME"], environment["VLLM_LOGGING_LEVEL"]) == ("/hf", "WARNING")
    quiet = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK")
    assert [environment[name] for name in quiet] == ["1"] * 4
    assert "s3cret" not in environment.values()
    assert "OLLAMA_DEBUG" not in environment


def test_vllm_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotLaunch, match="vLLM needs a GPU for model 'a'"):
        LAUNCHERS[Runtime.VLLM](instance(Runtime.VLLM, devices=(), models=("a",)), host(tmp_path, device()))


def test_vllm_on_a_card_too_old_is_refused_by_name(tmp_path: Path) -> None:
    old = device(capability=(6, 1))

    with pytest.raises(CannotLaunch, match=r"needs compute capability 7\.0 .* GPU 0 \(card 0\) has 6\.1"):
        LAUNCHERS[Runtime.VLLM](instance(Runtime.VLLM, models=("a",)), host(tmp_path, old))


# llama-server


def test_llama_server_on_a_gpu_argument_by_argument(tmp_path: Path) -> None:
    model = tmp_path / "a.gguf"
    model.write_bytes(b"GGUF")
    planned = instance(
        Runtime.LLAMA_SERVER,
        models=("a", "b"),
        model_path=str(model),
        slots=4,
        context_length=2048,
        prompt_cache_bytes=512 * MIB,
    )

    launch = LAUNCHERS[Runtime.LLAMA_SERVER](planned, host(tmp_path, device()))

    assert (
        str(tmp_path / "bin" / "llama-server"),
        *("--model", str(model), "--alias", "a,b"),
        *("--host", "127.0.0.1", "--port", "11500"),
        *("--parallel", "4", "--ctx-size", "8192"),
        *("--n-gpu-layers", "999", "--cache-ram", "512"),
        *("--slots", "--metrics", "--no-webui", "--offline"),
    ) == launch.arguments
    assert UUIDS[0] == launch.environment["CUDA_VISIBLE_DEVICES"]
    assert (launch.name, launch.port, launch.ready_path) == ("gpu0-a", 11500, "/health")


def test_llama_server_on_the_cpu_offloads_nothing(tmp_path: Path) -> None:
    model = tmp_path / "a.gguf"
    model.write_bytes(b"GGUF")

    launch = LAUNCHERS[Runtime.LLAMA_SERVER](
        instance(Runtime.LLAMA_SERVER, devices=(), models=("a",), model_path=str(model)), host(tmp_path)
    )

    given = options(launch.arguments[1:])
    assert (given["--n-gpu-layers"], given["--device"]) == (("0",), ("none",))
    assert "--ctx-size" not in given
    assert given["--parallel"] == ("1",)
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == "-1"


def test_llama_server_without_its_file_is_refused(tmp_path: Path) -> None:
    planned = instance(Runtime.LLAMA_SERVER, models=("a",), model_path=str(tmp_path / "a.gguf"))

    with pytest.raises(CannotLaunch, match=r"model 'a' has no file .*/a\.gguf"):
        LAUNCHERS[Runtime.LLAMA_SERVER](planned, host(tmp_path, device()))


# All of them


@pytest.mark.parametrize("runtime", Runtime)
def test_secrets_and_the_balancers_own_variables_stay_behind(tmp_path: Path, runtime: Runtime) -> None:
    model = tmp_path / "a.gguf"
    model.write_bytes(b"GGUF")
    left = {
        "BALANCER_LISTEN": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "CUDA_API_TOKEN": "x",
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


# The page about it


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
