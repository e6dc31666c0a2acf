"""What the lists and /api/show print of a model: details, metadata, tensors and its Modelfile.

Pure functions of a model. Called by catalogue.py. Source: Ollama v0.33
server/routes.go GetModelInfo, server/images.go; keys and tensors were observed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from balancer.simulator.dialects.wire import encode
from balancer.simulator.models import Model, Weights
from balancer.simulator.requests import flag_field, map_field, text_field

_PARAMETER_COLUMN = 30
_ROPE_BASE = 500000.0
# What a 4-bit file keeps at a higher precision.
_FINER = ("output.weight", "attn_v.weight", "ffn_down.weight")


def details(model: Model) -> dict[str, Any]:
    """The summary that every list has of a model."""
    weights = model.weights
    return {
        "parent_model": model.parent,
        "format": "gguf",
        "family": weights.family,
        "families": [weights.family],
        "parameter_size": weights.parameter_size,
        "quantization_level": weights.quantization,
    }


def shown(model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    """What /api/show answers; empty texts and lists are omitted, model_info never is. Raises: Refusal 400."""
    verbose = bool(flag_field(body, "verbose"))
    system = text_field(body, "system") or model.system
    texts = {
        "license": "\n".join(model.licenses),
        "modelfile": _modelfile(model, {**model.parameters, **map_field(body, "options")}),
        "parameters": "\n".join(_parameter_lines(model.parameters)),
        "template": model.template,
        "system": system,
    }
    answer: dict[str, Any] = {name: text for name, text in texts.items() if text}
    answer["details"] = details(model)
    if model.messages:
        answer["messages"] = list(model.messages)
    answer["model_info"] = _model_info(model.weights, verbose=verbose)
    answer["tensors"] = list(_tensors(model.weights))
    answer["capabilities"] = list(model.weights.capabilities)
    answer["modified_at"] = model.modified_at.astimezone().isoformat()
    return answer


def _model_info(weights: Weights, *, verbose: bool) -> dict[str, Any]:
    """The metadata of the weights, sorted by name; its long lists are null unless asked for."""
    own = {
        "attention.head_count": weights.head_count,
        "block_count": weights.block_count,
        "context_length": weights.trained_context,
        "embedding_length": weights.embedding_length,
        "feed_forward_length": weights.feed_forward_length,
        **(_EMBEDDER_KEYS if weights.is_embedding else _generator_keys(weights)),
    }
    info = {
        "general.architecture": weights.family,
        "general.file_type": 1 if weights.is_embedding else 15,
        "general.parameter_count": weights.parameter_count,
        "general.quantization_version": 2,
        **{f"{weights.family}.{name}": value for name, value in own.items()},
        **(_EMBEDDER_TOKENISER if weights.is_embedding else _GENERATOR_TOKENISER),
        **_vocabulary(weights.vocabulary_size if verbose else None),
    }
    return dict(sorted(info.items()))


def _generator_keys(weights: Weights) -> dict[str, Any]:
    return {
        "attention.head_count_kv": weights.head_count_kv,
        "attention.layer_norm_rms_epsilon": 1e-05,
        "rope.dimension_count": weights.embedding_length // weights.head_count,
        "rope.freq_base": _ROPE_BASE,
        "vocab_size": weights.vocabulary_size,
    }


def _vocabulary(size: int | None) -> dict[str, Any]:
    if size is None:
        return dict.fromkeys(_VOCABULARY_KEYS)
    lists = ([0.0] * size, [1] * size, [f"<simulated {number}>" for number in range(size)])
    return dict(zip(_VOCABULARY_KEYS, lists, strict=True))


def _tensors(weights: Weights) -> Iterator[dict[str, Any]]:
    """Every tensor of the file: those outside the blocks first, then block by block."""
    width, vocabulary = weights.embedding_length, weights.vocabulary_size
    if weights.is_embedding:
        yield _tensor(weights, "position_embd.weight", [width, weights.trained_context], coarse=False)
        yield _tensor(weights, "token_embd.weight", [width, vocabulary])
        yield _tensor(weights, "token_embd_norm.bias", [width])
        yield _tensor(weights, "token_embd_norm.weight", [width])
        yield _tensor(weights, "token_types.weight", [width, 2], coarse=False)
    else:
        yield _tensor(weights, "output.weight", [width, vocabulary])
        yield _tensor(weights, "output_norm.weight", [width])
        yield _tensor(weights, "token_embd.weight", [width, vocabulary])
    parts = _embedder_block(weights) if weights.is_embedding else _generator_block(weights)
    for block in range(weights.block_count):
        for name, shape in parts.items():
            yield _tensor(weights, f"blk.{block}.{name}", shape)


def _generator_block(weights: Weights) -> dict[str, list[int]]:
    width, inner = weights.embedding_length, weights.feed_forward_length
    narrow = width // weights.head_count * weights.head_count_kv
    return {
        "attn_k.weight": [width, narrow],
        "attn_norm.weight": [width],
        "attn_output.weight": [width, width],
        "attn_q.weight": [width, width],
        "attn_v.weight": [width, narrow],
        "ffn_down.weight": [inner, width],
        "ffn_gate.weight": [width, inner],
        "ffn_norm.weight": [width],
        "ffn_up.weight": [width, inner],
    }


def _embedder_block(weights: Weights) -> dict[str, list[int]]:
    width, inner = weights.embedding_length, weights.feed_forward_length
    square = {f"attn_{name}.weight": [width, width] for name in ("k", "output", "q", "v")}
    biases = {f"attn_{name}.bias": [width] for name in ("k", "output", "output_norm", "q", "v")}
    norms = {"attn_output_norm.weight": [width], "layer_output_norm.weight": [width]}
    outer = {"ffn_down.bias": [width], "ffn_up.bias": [inner], "layer_output_norm.bias": [width]}
    inner_parts = {"ffn_down.weight": [inner, width], "ffn_up.weight": [width, inner]}
    return dict(sorted({**square, **biases, **norms, **outer, **inner_parts}.items()))


def _tensor(weights: Weights, name: str, shape: list[int], *, coarse: bool = True) -> dict[str, Any]:
    """A tensor's entry; vectors, and what is not `coarse`, are kept in full precision."""
    if len(shape) == 1 or not coarse:
        kind = "F32"
    elif weights.is_embedding:
        kind = "F16"
    else:
        kind = "Q6_K" if name.endswith(_FINER) and "attn_output" not in name else "Q4_K"
    return {"name": name, "type": kind, "shape": shape}


def _modelfile(model: Model, parameters: Mapping[str, Any]) -> str:
    lines = [
        '# Modelfile generated by "ollama show" (simulated)',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {model.name.display()}",
        "",
        f"FROM {model.weights.path}",
        f"TEMPLATE {_quoted(model.template)}",
    ]
    if model.system:
        lines.append(f"SYSTEM {_quoted(model.system)}")
    lines += [f"PARAMETER {name} {_quoted(_plain(value))}" for name, value in _pairs(parameters)]
    lines += [f"LICENSE {_quoted(text)}" for text in model.licenses]
    for message in model.messages:
        lines.append(f"MESSAGE {message.get('role', '')} {_quoted(str(message.get('content') or ''))}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A Modelfile's argument: bare when it is one line without outer spaces."""
    if "\n" not in text and text == text.strip(" "):
        return text
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else encode(value).decode()


def _parameter_lines(parameters: Mapping[str, Any]) -> list[str]:
    return [
        f"{name:<{_PARAMETER_COLUMN}} " + (f'"{value}"' if isinstance(value, str) else _plain(value))
        for name, value in _pairs(parameters)
    ]


def _pairs(parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in sorted(parameters.items()):
        for one in value if isinstance(value, list) else [value]:
            yield name, one


_VOCABULARY_KEYS = ("tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.tokens")
_EMBEDDER_KEYS: Mapping[str, Any] = {
    "attention.causal": False,
    "attention.layer_norm_epsilon": 1e-12,
    "pooling_type": 1,
}
_GENERATOR_TOKENISER: Mapping[str, Any] = {
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_eos_token": False,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.unknown_token_id": 0,
}
# The misspelt key is the format's own.
_EMBEDDER_TOKENISER: Mapping[str, Any] = {
    "tokenizer.ggml.bos_token_id": 101,
    "tokenizer.ggml.cls_token_id": 101,
    "tokenizer.ggml.eos_token_id": 102,
    "tokenizer.ggml.mask_token_id": 103,
    "tokenizer.ggml.model": "bert",
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.pre": "jina-v2-en",
    "tokenizer.ggml.seperator_token_id": 102,
    "tokenizer.ggml.token_type_count": 2,
    "tokenizer.ggml.unknown_token_id": 100,
}
