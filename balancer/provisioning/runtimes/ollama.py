"""Ollama: one `ollama serve` per planned instance, all that it is told by its environment.

Source: Ollama v0.33 envconfig/config.go, server/sched.go, llm/llama_server.go.
"""

from collections.abc import Mapping
from pathlib import Path

from balancer.core.plan import PlannedInstance
from balancer.provisioning.launch import Launch
from balancer.provisioning.model_store import store_folder
from balancer.provisioning.runtimes.base import CannotLaunch, Host, absolute, find_program
from balancer.provisioning.runtimes.environment import inherited, pinned

_INSTALL = "install Ollama (see ollama.com/download)"
_MIB = 2**20

# Those of the user's own variables that say how Ollama works and leave alone what the balancer counts on.
USERS_OWN = (
    *("OLLAMA_DEBUG", "OLLAMA_FLASH_ATTENTION", "OLLAMA_KV_CACHE_TYPE", "OLLAMA_GPU_OVERHEAD"),
    *("OLLAMA_KEEP_ALIVE", "OLLAMA_LOAD_TIMEOUT", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_MODELS"),
    *("OLLAMA_LLM_LIBRARY", "OLLAMA_GO_TEMPLATE", "OLLAMA_MAX_TRANSFER_STREAMS"),
    *("OLLAMA_NO_CLOUD", "OLLAMA_REMOTES", "OLLAMA_CLOUD_BASE_URL"),
    *("LLAMA_ARG_FIT", "LLAMA_ARG_FIT_TARGET"),
)
_SLOTS = 1
_CONTEXT_LENGTH = 4096
# With a small queue Ollama can block itself (server/sched.go: one goroutine sends to and receives from
# channels of this size); requests wait in the balancer anyway.
_MAX_QUEUE = 512
# As many as Ollama itself allows one device. On the CPU one: the share is promised for one model with its
# context, beside whatever else the host's memory is for.
_LOADED_AT_ONCE = 3
_READY_SECONDS = 180.0
"""It looks for devices before it answers, with up to 30 s for each kind of library."""


def launch(instance: PlannedInstance, host: Host) -> Launch:
    """How an Ollama server is started. Its context length is always set: Ollama's own depends on the memory
    that a process sees, and would differ from instance to instance. Raises CannotLaunch."""
    settings = host.settings.runtimes.ollama
    if not host.environ.get("HOME"):
        raise CannotLaunch("HOME is not set, and Ollama keeps its key in ~/.ollama: set HOME")
    program = find_program(
        settings.command, setting="runtimes.ollama.command", install=_INSTALL, environ=host.environ
    )
    chosen = _chosen(instance, host) | settings.environment
    return Launch(
        name=instance.name,
        arguments=(program, "serve"),
        environment=chosen | {"LLAMA_ARG_CACHE_RAM": _cache_mib(instance, chosen)},
        port=instance.port,
        ready_path="/api/version",
        ready_seconds=_READY_SECONDS,
    )


def models_folder(host: Host) -> Path:
    """Where managed instances have their models; it need not be there yet."""
    chosen = host.settings.runtimes.ollama.models_dir
    return absolute(chosen or str(store_folder(host.environ)), host.environ)


def _chosen(instance: PlannedInstance, host: Host) -> dict[str, str]:
    users = inherited(host.environ, names=USERS_OWN)
    keep_alive = f"{host.settings.placement.evict_after_idle_seconds:.0f}s"
    context_length = instance.context_length or users.get("OLLAMA_CONTEXT_LENGTH") or _CONTEXT_LENGTH
    chosen = users | {
        **pinned(host.devices_of(instance)),
        "OLLAMA_HOST": f"127.0.0.1:{instance.port}",
        "OLLAMA_MODELS": str(models_folder(host)),
        "OLLAMA_NUM_PARALLEL": str(instance.slots or _SLOTS),
        "OLLAMA_MAX_LOADED_MODELS": str(_LOADED_AT_ONCE if len(instance.devices) == 1 else 1),
        "OLLAMA_MAX_QUEUE": str(_MAX_QUEUE),
        "OLLAMA_CONTEXT_LENGTH": str(context_length),
        "OLLAMA_KEEP_ALIVE": users.get("OLLAMA_KEEP_ALIVE") or keep_alive,
    }
    if not instance.prunes:
        chosen["OLLAMA_NOPRUNE"] = "1"
    if len(instance.devices) > 1:
        chosen["OLLAMA_SCHED_SPREAD"] = "1"
    return chosen


def _cache_mib(instance: PlannedInstance, environment: Mapping[str, str]) -> str:
    """What each runner may keep of prompts, in MiB: llama-server, which inherits Ollama's environment, would
    take 8 GiB each. 0 for Ollama's own choice of how many are loaded counts as what that choice is."""
    text = environment["OLLAMA_MAX_LOADED_MODELS"]
    asked = int(text) if text.isascii() and text.isdigit() else 0
    loaded = asked or _LOADED_AT_ONCE * max(len(instance.devices), 1)
    return str(instance.prompt_cache_bytes // loaded // _MIB)
