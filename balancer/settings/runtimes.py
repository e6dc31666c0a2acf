"""The settings of the runtimes that managed instances run: their programs, what is added to their
environment, and the models of those that serve one model each.
"""

from pydantic import Field

from balancer.settings.groups import Group
from balancer.settings.process_environment import Environment
from balancer.settings.values import Count, ModelName, Name, Number, Path

_COMMAND = "The program: a name on PATH, or a path."
_ENVIRONMENT = "Variables added to its processes' environment; they win over what the balancer sets."
_MODELS = "The models that it serves, each by a process of its own."


class ServedModelSettings(Group):
    """One model that a process of its own serves."""

    name: ModelName = Field(description="The name that clients use.")
    path: Path = Field(description="Its files: the folder for vLLM, the GGUF file for llama-server.")
    devices: tuple[Name, ...] = Field(
        default=(),
        description="The GPUs that it runs on, by index or UUID, several to split it over them; [cpu] for "
        "llama-server without any. []: the one with the most memory left.",
    )
    memory_share: Number | None = Field(
        default=None,
        gt=0,
        le=0.95,
        description="Its share of the memory of each of its GPUs (dimensionless); all shares of a GPU stay "
        "below 1 together. null: guessed from the size of its weights.",
    )
    slots: Count | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Requests that it serves at once. null: 16 with vLLM, 1 with llama-server.",
    )
    context_length: Count | None = Field(
        default=None,
        ge=64,
        le=16_777_216,
        description="The longest context of a request, in tokens. null: as long as the model's own.",
    )


class OllamaSettings(Group):
    """Managed Ollama servers."""

    command: Path = Field(default="ollama", description=_COMMAND)
    models_dir: Path | None = Field(
        default=None,
        description="The folder of their models. null: OLLAMA_MODELS of the balancer's environment, else "
        "~/.ollama/models.",
    )
    environment: Environment = Field(default_factory=dict, description=_ENVIRONMENT)


class VllmSettings(Group):
    """The vLLM runtime."""

    enabled: bool = Field(default=False, description="Whether models may be served by vLLM.")
    command: Path = Field(default="vllm", description=_COMMAND)
    environment: Environment = Field(default_factory=dict, description=_ENVIRONMENT)
    models: tuple[ServedModelSettings, ...] = Field(default=(), description=_MODELS)


class LlamaServerSettings(Group):
    """The llama-server runtime."""

    command: Path = Field(default="llama-server", description=_COMMAND)
    environment: Environment = Field(default_factory=dict, description=_ENVIRONMENT)
    models: tuple[ServedModelSettings, ...] = Field(default=(), description=_MODELS)


class RuntimesSettings(Group):
    """The programs of managed instances."""

    ollama: OllamaSettings = Field(default_factory=OllamaSettings, description="Managed Ollama servers.")
    vllm: VllmSettings = Field(default_factory=VllmSettings, description="The vLLM runtime.")
    llama_server: LlamaServerSettings = Field(
        default_factory=LlamaServerSettings, description="The llama-server runtime."
    )
    models: tuple[ServedModelSettings, ...] = Field(
        default=(),
        description="Models that one of these two serves, each by a process of its own: llama-server a GGUF "
        "file, vLLM a folder of safetensors, as their files tell.",
    )
