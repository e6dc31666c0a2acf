"""vLLM: one `vllm serve` per model.

Source of the options: vLLM v0.8.5 docs/serving/engine_args, vllm/entrypoints/cli/serve.py and
vllm/config/cache.py; none of those used here has changed since.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from balancer.core.device import Device
from balancer.core.plan import PlannedInstance
from balancer.provisioning.launch import Launch
from balancer.provisioning.runtimes.base import CannotLaunch, Host, find_program, model_name
from balancer.provisioning.runtimes.environment import inherited, pinned_by_index
from balancer.provisioning.runtimes.shares import share_of

SLOTS = 16
_INSTALL = "install vLLM (python3 -m venv /opt/vllm && /opt/vllm/bin/pip install vllm)"
_PREFIXES = ("VLLM_", "HF_", "TRANSFORMERS_", "TORCH", "PYTORCH_", "TRITON_", "NCCL_", "OMP_")
_READY_SECONDS = 1800.0
"""It reads all weights and may compile kernels for minutes before it answers."""

# The oldest cards that it runs on. Source: vLLM v0.14 docs/getting_started/installation/gpu; from v0.21 on
# its own packages need 7.5.
_LEAST_CAPABILITY = (7, 0)

# Compute capabilities where CUDA graphs and compilation failed in the field, each with its source. They
# cost throughput where they are switched off, and the server where they fail.
_EAGER: Mapping[tuple[int, int], str] = MappingProxyType(
    {
        (12, 0): "RTX 50 and RTX PRO Blackwell: compilation failed with vLLM 0.10.1.1 on an RTX 5090, graph "
        "capture with a vLLM of September 2026 on RTX PRO 6000 (vllm-project/vllm#56892)",
    }
)

_FIXED: Mapping[str, str] = MappingProxyType(
    {
        # The weights are on this machine; nothing is fetched, nothing is reported.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
)


def launch(instance: PlannedInstance, host: Host) -> Launch:
    """How a vLLM server is started. Raises CannotLaunch."""
    settings = host.settings.runtimes.vllm
    devices = host.devices_of(instance)
    _check(instance, devices)
    program = find_program(
        settings.command, setting="runtimes.vllm.command", install=_INSTALL, environ=host.environ
    )
    users = inherited(host.environ, prefixes=_PREFIXES)
    environment = {
        **users,
        # Its tools, such as ninja, lie beside it and are called by name.
        "PATH": ":".join(filter(None, (str(Path(program).parent), users.get("PATH")))),
        # Many versions stop at a UUID here (vllm-project/vllm#13815, #32569, #46132).
        **pinned_by_index(devices),
        **_FIXED,
        **settings.environment,
    }
    options = _options(instance, devices, use_fp16=host.settings.provisioning.use_fp16)
    return Launch(
        name=instance.name,
        arguments=(program, "serve", instance.model_path, *options),
        environment=environment,
        port=instance.port,
        ready_path="/health",
        ready_seconds=_READY_SECONDS,
    )


def _check(instance: PlannedInstance, devices: Sequence[Device]) -> None:
    if not devices:
        raise CannotLaunch(f"vLLM needs a GPU for model {model_name(instance)}, and none is planned for it")
    for device in devices:
        capability = device.compute_capability
        if capability is not None and capability < _LEAST_CAPABILITY:
            has, needs = (".".join(map(str, each)) for each in (capability, _LEAST_CAPABILITY))
            raise CannotLaunch(
                f"vLLM needs compute capability {needs} for model {model_name(instance)}, and GPU "
                f"{device.index} ({device.name}) has {has}: name another in its devices, or serve a GGUF of "
                "the model by llama-server"
            )


def _options(instance: PlannedInstance, devices: Sequence[Device], *, use_fp16: bool) -> Iterator[str]:
    yield from ("--served-model-name", *instance.models)
    yield from ("--host", "127.0.0.1", "--port", str(instance.port))
    yield from ("--gpu-memory-utilization", _utilization(share_of(instance, devices)))
    if instance.context_length is not None:
        yield from ("--max-model-len", str(instance.context_length))
    yield from ("--max-num-seqs", str(instance.slots or SLOTS))
    yield from ("--dtype", _dtype(devices, use_fp16=use_fp16))
    if any(device.compute_capability in _EAGER for device in devices):
        yield "--enforce-eager"
    if len(devices) > 1:
        yield from ("--tensor-parallel-size", str(len(devices)))


def _utilization(share: float) -> str:
    """Rounded down, so that shares never come to more than was planned."""
    return f"{math.floor(share * 1000) / 1000:.3f}"


def _dtype(devices: Sequence[Device], *, use_fp16: bool) -> str:
    """`auto` is the model's own, in 16 bits also for one of 32; most are BF16, which needs compute
    capability 8.0. Source: vLLM v0.8.5 docs/serving/engine_args, --dtype."""
    if not use_fp16:
        return "float32"
    return "auto" if all(device.bf16 for device in devices) else "float16"
