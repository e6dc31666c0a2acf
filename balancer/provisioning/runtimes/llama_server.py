"""llama-server of llama.cpp: one process per GGUF model.

Source of the options: llama.cpp tools/server/README.md, docs/multimodal.md and `llama-server --help` of build
11669.
"""

from collections.abc import Iterator
from pathlib import Path

from balancer.core.plan import PlannedInstance
from balancer.provisioning.launch import Launch
from balancer.provisioning.runtimes.base import CannotLaunch, Host, find_program, model_name
from balancer.provisioning.runtimes.environment import inherited, pinned

_INSTALL = "install llama.cpp (github.com/ggml-org/llama.cpp/releases; Debian: llama.cpp-tools)"
_MIB = 2**20
_SLOTS = 1
# More than any model has: all of them, in the one form that every build reads.
_ALL_LAYERS = 999
_READY_SECONDS = 900.0
"""It answers 503 for as long as it reads the model."""


def launch(instance: PlannedInstance, host: Host) -> Launch:
    """How a llama-server is started. Raises CannotLaunch."""
    settings = host.settings.runtimes.llama_server
    if not Path(instance.model_path).is_file():
        raise CannotLaunch(
            f"model {model_name(instance)} has no file {instance.model_path}: correct its path in "
            "runtimes.llama_server.models"
        )
    program = find_program(
        settings.command, setting="runtimes.llama_server.command", install=_INSTALL, environ=host.environ
    )
    return Launch(
        name=instance.name,
        arguments=(program, *_options(instance)),
        environment=inherited(host.environ) | pinned(host.devices_of(instance)) | settings.environment,
        port=instance.port,
        ready_path="/health",
        ready_seconds=_READY_SECONDS,
    )


def _options(instance: PlannedInstance) -> Iterator[str]:
    slots = instance.slots or _SLOTS
    yield from ("--model", instance.model_path, "--alias", ",".join(instance.models))
    if instance.projector_path:
        yield from ("--mmproj", instance.projector_path)
    yield from ("--host", "127.0.0.1", "--port", str(instance.port), "--parallel", str(slots))
    if instance.context_length is not None:
        # The server divides it by the slots.
        yield from ("--ctx-size", str(instance.context_length * slots))
    # Said rather than left to be fitted: a model that does not fit fails, and is not half on the CPU.
    yield from ("--n-gpu-layers", str(_ALL_LAYERS if instance.devices else 0))
    if not instance.devices:
        yield from ("--device", "none")
    yield from ("--cache-ram", str(instance.prompt_cache_bytes // _MIB))
    yield from ("--slots", "--metrics", "--no-webui", "--offline")
