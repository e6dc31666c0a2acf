"""What the simulated server knows of a model: its weights, its manifest, what it can do.

Frozen facts only; the store keeps them, the runner serves them, the catalogue
routes print them. `parse_spec` reads the form used on the command line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from balancer.simulator.names import ModelName

_DEFAULT_TEMPLATE = "{{ .Prompt }}"


class Kind(StrEnum):
    """What a model is for; it decides the capabilities that Ollama would list."""

    CHAT = "chat"
    TOOLS = "tools"
    CODE = "code"
    THINKING = "thinking"
    VISION = "vision"
    AUDIO = "audio"
    EMBEDDING = "embedding"


_CAPABILITIES: Mapping[Kind, tuple[str, ...]] = {
    Kind.CHAT: ("completion",),
    Kind.TOOLS: ("completion", "tools"),
    Kind.CODE: ("completion", "tools", "insert"),
    Kind.THINKING: ("completion", "tools", "thinking"),
    Kind.VISION: ("completion", "vision"),
    Kind.AUDIO: ("completion", "audio"),
    Kind.EMBEDDING: ("embedding",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One weights file: what a runner loads and is keyed by. Aliases share it."""

    digest: str
    size_bytes: int
    kind: Kind
    trained_context: int
    embedding_length: int
    block_count: int
    head_count: int
    head_count_kv: int

    @property
    def capabilities(self) -> tuple[str, ...]:
        return _CAPABILITIES[self.kind]

    @property
    def is_embedding(self) -> bool:
        return self.kind is Kind.EMBEDDING

    @property
    def is_multimodal(self) -> bool:
        """Whether images and sounds may come with a prompt."""
        return self.kind in (Kind.VISION, Kind.AUDIO)

    @property
    def family(self) -> str:
        return "bert" if self.is_embedding else "llama"

    @property
    def quantization(self) -> str:
        return "F16" if self.is_embedding else "Q4_K_M"

    @property
    def parameter_count(self) -> int:
        return int(self.size_bytes / (2.0 if self.is_embedding else 0.62))

    @property
    def parameter_size(self) -> str:
        """The count in Ollama's short notation, such as `3.2B`, `137M` or `196K`."""
        for size, letter, digits in ((1e9, "B", 1), (1e6, "M", 2), (1e3, "K", 0)):
            if self.parameter_count >= size:
                number = self.parameter_count / size
                return f"{number:.{0 if number.is_integer() else digits}f}{letter}"
        return str(self.parameter_count)

    @property
    def feed_forward_length(self) -> int:
        return self.embedding_length * 4 if self.is_embedding else self.embedding_length * 8 // 3

    @property
    def vocabulary_size(self) -> int:
        return 30522 if self.is_embedding else 128256

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of key-value cache per token in 16 bits; none for an embedding model."""
        if self.is_embedding:
            return 0
        return 2 * self.block_count * self.head_count_kv * (self.embedding_length // self.head_count) * 2

    @property
    def path(self) -> str:
        """Where Ollama would keep the file: eviction breaks ties by it."""
        return f"/simulated/blobs/{self.digest.replace(':', '-')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One blob of a manifest: what kind of thing it holds, and which."""

    kind: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A name with its manifest: weights plus what a Modelfile adds."""

    name: ModelName
    weights: Weights
    modified_at: datetime
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    template: str = _DEFAULT_TEMPLATE
    licenses: tuple[str, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    parent: str = ""

    @property
    def digest(self) -> str:
        """The manifest's digest in hex, no prefix; equal content has equal digests everywhere."""
        content = repr(
            (
                self.weights.digest,
                sorted(self.parameters.items(), key=lambda item: item[0]),
                self.system,
                self.template,
                self.licenses,
                self.messages,
            )
        )
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The manifest's blobs, weights first; an embedding model needs no template."""
        weights = Layer(kind="model", digest=self.weights.digest, size_bytes=self.weights.size_bytes)
        texts = []
        if self.template != _DEFAULT_TEMPLATE or not self.weights.is_embedding:
            texts.append(("template", self.template))
        if self.system:
            texts.append(("system", self.system))
        texts += [("license", text) for text in self.licenses]
        if self.parameters:
            texts.append(("params", json.dumps(self.parameters, sort_keys=True)))
        if self.messages:
            texts.append(("messages", json.dumps(self.messages)))
        return (weights, *(_text_layer(kind, text) for kind, text in texts))


def _text_layer(kind: str, text: str) -> Layer:
    content = text.encode("utf-8", "replace")
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Layer(kind=kind, digest=digest, size_bytes=len(content))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model to put into a store: its name, its size and what it is for."""

    name: str
    size_bytes: int = 2_000_000_000
    kind: Kind = Kind.TOOLS


DEFAULT_MODELS = (
    ModelSpec(name="llama3.2:latest", size_bytes=2_019_393_189, kind=Kind.TOOLS),
    ModelSpec(name="qwen3:8b", size_bytes=5_225_388_164, kind=Kind.THINKING),
    ModelSpec(name="gemma3:4b", size_bytes=3_338_801_804, kind=Kind.VISION),
    ModelSpec(name="nomic-embed-text:latest", size_bytes=274_302_450, kind=Kind.EMBEDDING),
)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(K|M|G|KB|MB|GB|KiB|MiB|GiB)")
_UNIT_BYTES = {"K": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes of a size such as `2GB` or `512MiB`. Raises: ValueError."""
    matched = _SIZE.fullmatch(text)
    if matched is None:
        raise ValueError(f"'{text}' is no size; write a number and a unit, such as 2GB or 512MiB")
    return int(float(matched[1]) * _UNIT_BYTES[matched[2].removesuffix("B")])


def parse_spec(text: str) -> ModelSpec:
    """Read `NAME[:size[:kind]]`, from the right, since a name may hold a tag: `qwen3:8b:5.2GB:thinking`."""
    rest, _, last = text.rpartition(":")
    kind = Kind(last) if rest and last in set(Kind) else Kind.TOOLS
    if rest and last in set(Kind):
        text = rest
    rest, _, last = text.rpartition(":")
    if rest and _SIZE.fullmatch(last):
        return ModelSpec(name=rest, size_bytes=parse_size(last), kind=kind)
    return ModelSpec(name=text, kind=kind)


def weights_of(spec: ModelSpec) -> Weights:
    """Weights for a spec; the same spec gives the same digest on every server."""
    embedding = spec.kind is Kind.EMBEDDING
    seed = f"{spec.name}|{spec.size_bytes}|{spec.kind}"
    return Weights(
        digest="sha256:" + hashlib.sha256(seed.encode()).hexdigest(),
        size_bytes=spec.size_bytes,
        kind=spec.kind,
        trained_context=2048 if embedding else 131072,
        embedding_length=768 if embedding else 3072,
        block_count=12 if embedding else 28,
        head_count=12 if embedding else 24,
        head_count_kv=12 if embedding else 8,
    )
