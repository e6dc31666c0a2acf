"""The models and blobs on a simulated disk, in memory; servers may share one store.

The counterpart of an OLLAMA_MODELS directory: what one server creates or
deletes, every server on the same store sees at its next request. It says
nothing of what is loaded (scheduler.py). Called by the web layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from balancer.simulator.models import DEFAULT_MODELS, Model, ModelSpec, weights_of
from balancer.simulator.names import ModelName, parse_name


class ModelStore:
    """Models by name and blobs by digest, plus what the simulated registry can pull."""

    def __init__(
        self, models: Iterable[ModelSpec] = DEFAULT_MODELS, *, registry: Iterable[ModelSpec] = DEFAULT_MODELS
    ) -> None:
        self._models: dict[str, Model] = {}
        self._blobs: dict[str, int] = {}
        self._gguf_blobs: set[str] = set()
        self._registry = {parse_name(spec.name).folded: spec for spec in registry}
        for spec in models:
            self.install(spec)

    def install(self, spec: ModelSpec) -> Model:
        """Put a spec's model on the disk as if it had been pulled."""
        name = parse_name(spec.name)
        self._registry.setdefault(name.folded, spec)
        return self.put(Model(name=name, weights=weights_of(spec), modified_at=datetime.now(UTC)))

    def find(self, text: str) -> Model | None:
        """The model that a client's name means; letter case does not matter."""
        return self._models.get(parse_name(text).folded)

    def models(self) -> list[Model]:
        """Every model, most recently modified first; whole seconds count, and ties stay as they are."""
        return sorted(
            self._models.values(), key=lambda model: int(model.modified_at.timestamp()), reverse=True
        )

    def put(self, model: Model) -> Model:
        """Write a manifest; one of that name is replaced, and its spelling is kept."""
        existing = self._models.get(model.name.folded)
        if existing is not None:
            model = replace(model, name=existing.name)
        self._models[model.name.folded] = model
        self._blobs.update((layer.digest, layer.size_bytes) for layer in model.layers)
        if existing is not None:
            self._prune(existing)
        return model

    def copy(self, source: Model, destination: ModelName) -> Model:
        """A second name for the same content: same digest, same runner."""
        return self.put(replace(source, name=destination, modified_at=datetime.now(UTC)))

    def delete(self, model: Model) -> None:
        """Remove a name, and those of its layers that no other name has. Unloads nothing."""
        self._models.pop(model.name.folded, None)
        self._prune(model)

    def _prune(self, model: Model) -> None:
        used = {layer.digest for other in self._models.values() for layer in other.layers}
        for layer in model.layers:
            if layer.digest not in used:
                self._blobs.pop(layer.digest, None)

    def pullable(self, text: str) -> ModelSpec | None:
        """What the registry has under this name."""
        return self._registry.get(parse_name(text).folded)

    def has_blob(self, digest: str) -> bool:
        return digest in self._blobs

    def blob_size(self, digest: str) -> int:
        return self._blobs[digest]

    def add_blob(self, digest: str, size_bytes: int, *, is_gguf: bool) -> None:
        """Store a blob whose digest has been checked."""
        self._blobs[digest] = size_bytes
        if is_gguf:
            self._gguf_blobs.add(digest)

    def is_gguf(self, digest: str) -> bool:
        """Whether an uploaded blob can become a model."""
        return digest in self._gguf_blobs
