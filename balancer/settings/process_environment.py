"""Variables that an operator adds to the environment of managed processes: what they may look like, and
which are refused because the balancer would lose its hold on the process.
"""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from balancer.settings.values import refusal, shown

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_FORM = "a mapping of variables to texts, such as {OLLAMA_FLASH_ATTENTION: on}"
_MOST = 100
_MOST_CHARACTERS = 8192

_ADDRESS = "each instance gets an address of its own"
_DEVICES = "the plan says which devices an instance has"
_SLOTS = "provisioning.slots says it, and the balancer counts on it"
_STORE = "one instance of a store tidies it up, and no other"
_KEY = "the balancer has no such key and would be turned away"

# What stands here and why: docs/runtime-environment.md.
RESERVED: Mapping[str, str] = MappingProxyType(
    {
        "OLLAMA_HOST": _ADDRESS,
        "LLAMA_ARG_HOST": _ADDRESS,
        "LLAMA_ARG_PORT": _ADDRESS,
        "LLAMA_ARG_API_PREFIX": _ADDRESS,
        "CUDA_VISIBLE_DEVICES": _DEVICES,
        "CUDA_DEVICE_ORDER": _DEVICES,
        "ROCR_VISIBLE_DEVICES": _DEVICES,
        "HIP_VISIBLE_DEVICES": _DEVICES,
        "GPU_DEVICE_ORDINAL": _DEVICES,
        "GGML_VK_VISIBLE_DEVICES": _DEVICES,
        "OLLAMA_VULKAN": _DEVICES,
        "OLLAMA_SCHED_SPREAD": _DEVICES,
        "OLLAMA_NUM_PARALLEL": _SLOTS,
        "LLAMA_ARG_N_PARALLEL": _SLOTS,
        "OLLAMA_NOPRUNE": _STORE,
        "OLLAMA_MODELS": "runtimes.ollama.models_dir says where the models are",
        "OLLAMA_MAX_QUEUE": "requests wait in the balancer (limits.queue_requests)",
        "LLAMA_ARG_CACHE_RAM": "prompt caches get their share of cache.max_memory_percent",
        "LLAMA_API_KEY": _KEY,
        "VLLM_API_KEY": _KEY,
    }
)


def parse_environment(value: object) -> object:
    """Variables by name; a number is taken as text, true and false as 1 and 0. Text is read as JSON."""
    if isinstance(value, str):
        value = _from_json(value)
    # No value is quoted: it may be a key.
    if not isinstance(value, Mapping):
        raise refusal("is not a mapping", _FORM)
    if len(value) > _MOST:
        raise refusal(f"has {len(value)} variables", f"at most {_MOST}")
    return {_checked_name(name): _text(name, each) for name, each in value.items()}


def _from_json(text: str) -> object:
    try:
        data: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.match(name):
        raise refusal(f"{shown(name)} is not a variable's name", "letters, digits and '_'")
    if name.startswith("BALANCER_"):
        raise refusal(f"{shown(name)} cannot be set here", "no variable of the balancer itself")
    if reason := RESERVED.get(name.upper()):
        raise refusal(f"{shown(name)} cannot be set here", reason)
    return name


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    # The value is not quoted: it may be a key.
    if not isinstance(value, str) or "\0" in value or len(value) > _MOST_CHARACTERS:
        raise refusal(
            f"{shown(name)} has no usable value", f"a text of at most {_MOST_CHARACTERS} characters"
        )
    return value


Environment = Annotated[
    dict[str, str],
    BeforeValidator(parse_environment),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": _MOST,
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$", "not": {"enum": sorted(RESERVED)}},
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        }
    ),
]
