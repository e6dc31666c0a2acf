"""Which requests may be asked of two instances at once: embeddings, and generations that are short and give
the same answer each time. All others cost too much to be made twice.

Only keys that Ollama obeys count, or an answer that was thought to be short could be of any length: on /v1
`max_completion_tokens` is none of them. Source: Ollama v0.33 openai/openai.go.
"""

from collections.abc import Mapping

import msgspec

from balancer.core.names import is_cloud_name
from balancer.core.operation import Dialect, Kind, Operation
from balancer.protocol.json_body import NUMBER_STARTS, Fields, first_byte, read_inner

MOST_TOKENS = 64
"""A longer answer is not short."""
_RANDOM_SEED = 2**32 - 1
"""This one, and negative ones, let the runner draw a seed. Source: llama.cpp, LLAMA_DEFAULT_SEED."""
_GENERATING = frozenset({Kind.GENERATE, Kind.CHAT, Kind.RESPONSE})
_ABSENT = msgspec.Raw(b"")


def may_be_hedged(operation: Operation, fields: Fields) -> bool:
    """Whether a request whose body has these keys may be asked twice. Never where it unloads its model, which
    would be done at both, or where it is answered in a cloud."""
    variant = operation.variant
    if (
        variant is None
        or not operation.needs_slot
        or not operation.keeps_model
        or is_cloud_name(variant.model)
    ):
        return False
    if operation.kind is Kind.EMBED:
        return True
    if operation.kind not in _GENERATING:
        return False
    asked = {key.casefold(): value for key, value in fields.items()}
    if not _is_empty_list(asked.get("tools", _ABSENT)):
        return False
    if operation.dialect is Dialect.OLLAMA:
        options = asked.get("options", _ABSENT)
        asked = dict(read_inner(options, "options")) if first_byte(options) == b"{" else {}
        return _is_short(asked, "num_predict") and (_is_cold(asked) or _is_seeded(asked))
    if operation.kind is Kind.RESPONSE:
        return _is_short(asked, "max_output_tokens") and _is_cold(asked)
    reads_seed = operation.dialect is Dialect.OPENAI
    return _is_short(asked, "max_tokens") and (_is_cold(asked) or (reads_seed and _is_seeded(asked)))


def _is_short(asked: Mapping[str, msgspec.Raw], key: str) -> bool:
    tokens = _number(asked, key)
    return tokens is not None and 1 <= tokens <= MOST_TOKENS


def _is_cold(asked: Mapping[str, msgspec.Raw]) -> bool:
    return _number(asked, "temperature") == 0


def _is_seeded(asked: Mapping[str, msgspec.Raw]) -> bool:
    seed = _number(asked, "seed")
    return seed is not None and 0 <= seed < _RANDOM_SEED


def _number(asked: Mapping[str, msgspec.Raw], key: str) -> float | None:
    raw = asked.get(key, _ABSENT)
    return float(bytes(raw)) if first_byte(raw) in NUMBER_STARTS else None


def _is_empty_list(raw: msgspec.Raw) -> bool:
    kind = first_byte(raw)
    return kind in {b"", b"n"} or (kind == b"[" and not bytes(raw)[1:-1].strip())
