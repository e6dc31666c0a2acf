"""Ollama's own shapes, field for field, for what a runtime of another make tells.

Sources: Ollama v0.33 api/types.go (ListModelResponse, ProcessModelResponse, ShowResponse, ChatResponse);
vLLM v0.11 and later, ModelCard; llama.cpp b11669, `/v1/models` and `/props` as observed.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256

from balancer.clock import Clock
from balancer.core.operation import Kind
from balancer.core.plan import Runtime
from balancer.protocol.translation.served import Served

API_VERSION = "0.33.0"
"""The version of Ollama whose shapes these are."""
_UNKNOWN_TIME = "1970-01-01T00:00:00Z"
"""Runtimes tell when they were asked, not when a model was made."""
_NEVER = "2318-01-01T00:00:00Z"
Row = Mapping[str, object]


def now_of(clock: Clock) -> str:
    """The time as `created_at` has it: RFC 3339 in UTC."""
    return datetime.fromtimestamp(clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def loaded(model: str, kind: Kind, created_at: str) -> dict[str, object]:
    """The answer to a request without a prompt: the model is in memory."""
    text = {"message": {"role": "assistant", "content": ""}} if kind is Kind.CHAT else {"response": ""}
    return {"model": model, "created_at": created_at, **text, "done": True, "done_reason": "load"}


def tag_rows(runtime: Runtime, cards: object, properties: Mapping[str, object]) -> Sequence[Row]:
    """What `/api/tags` lists, made of the items of `/v1/models` and, of llama-server, of `/props`. Equal for
    as long as the same is served. A digest stands for the name and the runtime, not for the weights: no
    runtime tells theirs."""
    rows: list[Row] = []
    for card in cards if isinstance(cards, list) else ():
        if isinstance(card, dict) and isinstance(card.get("id"), str):
            names = dict.fromkeys((card["id"], *_texts(card.get("aliases"))))
            rows += [_tag_row(runtime, name, card, properties) for name in names]
    return rows


def ps_row(row: Row) -> Row:
    """What `/api/ps` lists for a model that is in memory for as long as its runtime runs."""
    details = row["details"]
    assert isinstance(details, dict)
    kept = {name: row[name] for name in ("name", "model", "size", "digest", "details")}
    length = details.get("context_length", 0)
    return {**kept, "expires_at": _NEVER, "size_vram": row["size"], "context_length": length}


def shown(served: Served) -> dict[str, object]:
    """The answer of `/api/show`, as far as a runtime tells."""
    row = served.row
    family = served.runtime.value
    told: dict[str, object] = {"general.architecture": family}
    if served.context_length is not None:
        told[f"{family}.context_length"] = served.context_length
    return {
        "modelfile": f"# {served.name} is served by {family}\n",
        "details": row.get("details", {}),
        "model_info": told,
        "capabilities": row.get("capabilities", ["completion"]),
        "modified_at": row.get("modified_at", _UNKNOWN_TIME),
    }


def context_length_of(row: Row) -> int | None:
    """The context length that a row of `tag_rows` tells, in tokens."""
    details = row.get("details")
    length = details.get("context_length") if isinstance(details, dict) else None
    return length if isinstance(length, int) else None


def _tag_row(runtime: Runtime, name: str, card: Row, properties: Mapping[str, object]) -> Row:
    meta = _object(card.get("meta"))
    details: dict[str, object] = {
        "parent_model": str(card.get("root") or ""),
        "format": "gguf" if runtime is Runtime.LLAMA_SERVER else "safetensors",
        "family": runtime.value,
        "families": None,
        "parameter_size": _parameters(meta.get("n_params")),
        "quantization_level": str(meta.get("ftype") or ""),
    }
    settings = _object(properties.get("default_generation_settings"))
    lengths = (card.get("max_model_len"), settings.get("n_ctx"), meta.get("n_ctx"))
    length = next((each for each in lengths if isinstance(each, int)), None)
    size = meta.get("size")
    return {
        "name": name,
        "model": name,
        "modified_at": _UNKNOWN_TIME,
        "size": size if isinstance(size, int) else 0,
        "digest": sha256(f"{runtime.value}\n{name}\n{card.get('root')}".encode(errors="replace")).hexdigest(),
        "details": details if length is None else {**details, "context_length": length},
        "capabilities": _capabilities(card, properties),
    }


def _capabilities(card: Row, properties: Mapping[str, object]) -> list[str]:
    """Only what is told: most runtimes do not say whether a model takes tools or thinks."""
    modalities = _texts(_object(card.get("architecture")).get("input_modalities"))
    template = _object(properties.get("chat_template_caps"))
    sees = "image" in modalities or _object(properties.get("modalities")).get("vision") is True
    return [
        "completion",
        *(["vision"] if sees else []),
        *(["tools"] if template.get("supports_tools") is True else []),
    ]


def _parameters(count: object) -> str:
    if not isinstance(count, int):
        return ""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
