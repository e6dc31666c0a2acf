"""Which options a runner is started with, and when a request forces a reload.

Pure rules on option maps. It does not choose victims (memory.py) and starts
nothing (scheduler.py). Called by scheduler and by virtual-time fleets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

GIB = 1 << 30
# Source: Ollama v0.33 server/routes.go: default context by the VRAM that the process sees.
_CONTEXT_TIERS = ((47 * GIB, 262144), (23 * GIB, 32768))
_SMALLEST_CONTEXT = 4
# Every option is checked before a runner is asked for. Source: Ollama v0.33 api/types.go Options.
_INTEGER, _FLOAT, _BOOLEAN, _TEXTS = "integer", "float32", "boolean", "array"
_TYPES = {
    **dict.fromkeys(("num_keep", "seed", "num_predict", "top_k", "repeat_last_n"), _INTEGER),
    **dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread"), _INTEGER),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "temperature", "repeat_penalty"), _FLOAT),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), _FLOAT),
    "draft_num_predict": _INTEGER,
    "use_mmap": _BOOLEAN,
    "stop": _TEXTS,
}
_CPU_CONTEXT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """The options that are fixed when a runner starts; None and -1 mean automatic."""

    num_ctx: int
    num_batch: int | None = None
    num_gpu: int = -1
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int | None = None
    shift: bool = True


class WrongOptionType(ValueError):
    """An option has a value of a type that Ollama refuses."""


def default_context(configured: int, memory_bytes: int) -> int:
    """The context of a request that names none: the configured one, else the VRAM tier's."""
    if configured > 0:
        return configured
    return next((context for floor, context in _CONTEXT_TIERS if memory_bytes >= floor), _CPU_CONTEXT)


def effective_options(
    *,
    requested: Mapping[str, Any],
    of_model: Mapping[str, Any],
    default_num_ctx: int,
    trained_context: int,
    shift: bool | None,
) -> RunnerOptions:
    """The runner options of a request: its own, else the model's parameters, else the server's.

    The context is capped at the trained one, so 16384 on a model trained for
    8192 equals 8192.

    Raises: WrongOptionType when any known option has the wrong type.
    Source: Ollama v0.33 server/routes.go, llm/server.go; cap observed.
    """
    merged = {**of_model, **{name: value for name, value in requested.items() if value is not None}}
    for name, value in merged.items():
        check_type(name, value)
    num_ctx = _integer(merged, "num_ctx") or default_num_ctx
    return RunnerOptions(
        num_ctx=min(max(num_ctx, _SMALLEST_CONTEXT), trained_context),
        num_batch=_integer(merged, "num_batch"),
        num_gpu=-1 if (layers := _integer(merged, "num_gpu")) is None else layers,
        main_gpu=_integer(merged, "main_gpu"),
        use_mmap=merged.get("use_mmap"),
        num_thread=_integer(merged, "num_thread"),
        shift=shift is not False,
    )


def needs_reload(loaded: RunnerOptions, wanted: RunnerOptions) -> bool:
    """Whether a runner started with `loaded` must be restarted to serve `wanted`.

    An automatic num_gpu matches any runner; everything else must be equal.
    Source: Ollama v0.33 server/sched.go needsReload.
    """
    for field in fields(RunnerOptions):
        wish = getattr(wanted, field.name)
        if field.name == "num_gpu" and wish == -1:
            continue
        if wish != getattr(loaded, field.name):
            return True
    return False


def check_type(name: str, value: Any) -> None:
    """Raises: WrongOptionType, with Ollama's text; unknown options may be anything."""
    wanted = _TYPES.get(name)
    if wanted is None or value is None:
        return
    if wanted is _TEXTS:
        fits = isinstance(value, list)
        if fits and not all(isinstance(item, str) for item in value):
            raise WrongOptionType(f'option "{name}" must be of an array of strings')
    elif wanted is _BOOLEAN:
        fits = isinstance(value, bool)
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits:
        raise WrongOptionType(f'option "{name}" must be of type {wanted}')


def _integer(options: Mapping[str, Any], name: str) -> int | None:
    """The option's value with its fraction cut off, as Ollama does."""
    value = options.get(name)
    return None if value is None else int(value)
