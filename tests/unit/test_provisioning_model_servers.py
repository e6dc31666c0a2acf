"""What vLLM and llama-server are told, argument by argument."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from runtime_hosts import GIB, MIB, UUIDS, device, host, instance

from balancer.core.plan import Runtime
from balancer.provisioning.runtimes import LAUNCHERS, CannotLaunch

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
        ((7, 0), True, "float16", False),
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


def test_llama_server_on_a_gpu_argument_by_argument(tmp_path: Path) -> None:
    model = tmp_path / "a.gguf"
    model.write_bytes(b"GGUF")
    planned = instance(
        Runtime.LLAMA_SERVER,
        models=("a", "b"),
        model_path=str(model),
        projector_path="/eyes.gguf",
        slots=4,
        context_length=2048,
        prompt_cache_bytes=512 * MIB,
    )

    launch = LAUNCHERS[Runtime.LLAMA_SERVER](planned, host(tmp_path, device()))

    assert (
        str(tmp_path / "bin" / "llama-server"),
        *("--model", str(model), "--alias", "a,b", "--mmproj", "/eyes.gguf"),
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
    assert given.keys() & {"--ctx-size", "--mmproj"} == set()
    assert given["--parallel"] == ("1",)
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == "-1"


def test_llama_server_without_its_file_is_refused(tmp_path: Path) -> None:
    planned = instance(Runtime.LLAMA_SERVER, models=("a",), model_path=str(tmp_path / "a.gguf"))

    with pytest.raises(CannotLaunch, match=r"model 'a' has no file .*/a\.gguf"):
        LAUNCHERS[Runtime.LLAMA_SERVER](planned, host(tmp_path, device()))
