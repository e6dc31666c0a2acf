"""What a model takes of a device: its weights, and the KV cache by context length, slots and cache type.

Where the metadata leaves something open, the larger size is assumed: a plan must not promise too much.
"""

from collections.abc import Mapping
from typing import TypeGuard

import msgspec

from balancer.provisioning.gguf import GgufHeader, Value

# Bytes and elements of a block. Source: llama.cpp ggml/src/ggml-common.h.
_BLOCKS = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q5_1": (24, 32),
    "q5_0": (22, 32),
    "q4_1": (20, 32),
    "q4_0": (18, 32),
    "iq4_nl": (18, 32),
}
DEFAULT_CACHE_TYPE = "f16"
# One layer in so many attends to everything, the others to a window. Only for architectures whose files may
# leave it out. Source: llama.cpp src/models/*.cpp, load_arch_hparams.
_WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "gptoss": 2, "cohere2": 4}
# Ollama v0.33 server/sched.go takes batches of at most so many tokens; a window's cache holds one more batch.
_BATCH_TOKENS = 2048
_PADDING_TOKENS = 256
_STATE_ELEMENT_BYTES = 4
_MOST = {"block_count": 4096, "length": 2**20, "tokens": 2**31}


class CacheShape(msgspec.Struct, frozen=True, kw_only=True):
    """The KV cache of a model: elements (keys and values) per token over all layers that see everything,
    the same over those that see `window` tokens, and bytes per slot that do not grow with the context."""

    full_elements: int
    window_elements: int = 0
    window: int = 0
    state_bytes: int = 0


class KnownModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model and what it takes; `cache` and `trained_context` (tokens) are None where they are not known."""

    name: str
    size_bytes: int
    cache: CacheShape | None = None
    trained_context: int | None = None


def cache_bytes(shape: CacheShape, *, context: int, slots: int, cache_type: str = DEFAULT_CACHE_TYPE) -> int:
    """Bytes of the KV cache of a runner with `slots` slots of `context` tokens each. An unknown type counts
    as f16.

    Source: llama.cpp src/llama-kv-cache.cpp (elements per layer: KV heads times key plus value length),
    src/llama-kv-cache-iswa.cpp (a sliding layer holds its window and one batch, padded to 256).
    """
    block_bytes, block_elements = _BLOCKS.get(cache_type.strip().lower(), _BLOCKS[DEFAULT_CACHE_TYPE])
    full = _padded(context)
    windowed = min(full, _padded(shape.window + _BATCH_TOKENS))
    elements = slots * (shape.full_elements * full + shape.window_elements * windowed)
    return -(-elements * block_bytes // block_elements) + slots * shape.state_bytes


def cache_shape(header: GgufHeader) -> CacheShape | None:
    """The shape of the KV cache by a file's metadata, None where that does not say or cannot be.

    Source: llama.cpp src/llama-model.cpp and src/llama-hparams.cpp: a layer without KV heads, and each
    that `attention.recurrent_layers` or `full_attention_interval` names, keeps a fixed state instead.
    """
    told = _Metadata(header)
    layers = told.number("block_count", most=_MOST["block_count"])
    heads = told.per_layer("attention.head_count", layers)
    kv_heads = told.per_layer("attention.head_count_kv", layers) or heads
    if not layers or not heads or not max(heads):
        return None
    head = (told.number("embedding_length") or 0) // max(heads)
    length = told.number("attention.key_length", head) + told.number("attention.value_length", head)
    if not length:
        return None
    window = told.number("attention.sliding_window", 0)
    full = windowed = recurrent = 0
    for layer in range(layers):
        if not kv_heads[layer] or told.is_recurrent(layer):
            recurrent += 1
        elif window and told.is_windowed(layer):
            windowed += kv_heads[layer] * length
        else:
            full += kv_heads[layer] * length
    return CacheShape(
        full_elements=full,
        window_elements=windowed,
        window=window,
        state_bytes=recurrent * told.state_elements() * _STATE_ELEMENT_BYTES,
    )


def trained_context(header: GgufHeader) -> int | None:
    """The tokens that the model was trained for, None where the file does not say."""
    return _Metadata(header).number("context_length", most=_MOST["tokens"]) or None


class _Metadata:
    """The keys of a file's own architecture; what is absent, no number or absurd counts as not said."""

    def __init__(self, header: GgufHeader) -> None:
        self._architecture = header.architecture
        self._values: Mapping[str, Value] = header.values

    def value(self, key: str) -> Value | None:
        return self._values.get(f"{self._architecture}.{key}")

    def number(self, key: str, default: int = 0, *, most: int = _MOST["length"]) -> int:
        found = self.value(key)
        return found if _is_count(found, most) else default

    def per_layer(self, key: str, layers: int) -> tuple[int, ...]:
        """One number for each layer; none where the file does not have so many."""
        found = self.value(key)
        if isinstance(found, tuple):
            numbers = tuple(each for each in found[:layers] if _is_count(each, _MOST["length"]))
            return numbers if len(numbers) == layers else ()
        return (found,) * layers if _is_count(found, _MOST["length"]) else ()

    def is_windowed(self, layer: int) -> bool:
        pattern = self.value("attention.sliding_window_pattern")
        if isinstance(pattern, tuple):
            return layer < len(pattern) and bool(pattern[layer])
        period = pattern if _is_count(pattern, _MOST["length"]) else _WINDOW_PERIODS.get(self._architecture)
        return period is not None and period > 0 and (layer + 1) % period != 0

    def is_recurrent(self, layer: int) -> bool:
        named = self.value("attention.recurrent_layers")
        if isinstance(named, tuple):
            return layer < len(named) and bool(named[layer])
        interval = self.number("full_attention_interval")
        return interval > 0 and (layer + 1) % interval != 0

    def state_elements(self) -> int:
        """Per recurrent layer and slot. Source: llama.cpp src/llama-hparams.cpp, n_embd_r and n_embd_s."""
        inner, state = self.number("ssm.inner_size"), self.number("ssm.state_size")
        taps = max(self.number("ssm.conv_kernel") - 1, 0)
        return taps * (inner + 2 * self.number("ssm.group_count") * state) + state * inner


def _is_count(value: object, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _padded(tokens: int) -> int:
    return -(-tokens // _PADDING_TOKENS) * _PADDING_TOKENS
