"""What an Ollama server is told, variable by variable."""

from __future__ import annotations

from pathlib import Path

import pytest
from runtime_hosts import GIB, UUIDS, device, host, instance

from balancer.provisioning.launch import Launch
from balancer.provisioning.runtimes import CannotLaunch, ollama


def started(launch: Launch) -> dict[str, str]:
    return launch.environment


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


def test_ollama_on_the_cpu_keeps_one_model_in_memory(tmp_path: Path) -> None:
    """Its share of the host is promised for one; a second would take what others were promised."""
    planned = instance(devices=(), prompt_cache_bytes=2 * GIB)

    environment = ollama.launch(planned, host(tmp_path)).environment

    assert (environment["OLLAMA_MAX_LOADED_MODELS"], environment["LLAMA_ARG_CACHE_RAM"]) == ("1", "2048")


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
        ("m", None, f"{Path.cwd()}/m"),
        (None, "m", f"{Path.cwd()}/m"),
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
