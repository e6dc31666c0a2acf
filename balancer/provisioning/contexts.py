"""The context length that an instance is started with, chosen so that a model and its KV cache fit."""

from collections.abc import Iterable, Sequence

import msgspec

from balancer.core.names import canonical_name
from balancer.provisioning.kv_cache import CacheShape, KnownModel, cache_bytes
from balancer.provisioning.tiers import gib

CONTEXTS = (4096, 8192, 16384, 32768, 65536, 131072, 262144)
# What a runner takes beside weights and KV cache: its GPU context. Batches are in the device's reserve.
# Source: Ollama v0.33 ml/device.go keeps 457 MiB for it.
_RUNNER_BYTES = 512 * 2**20
# Sizes: llama3.1:8b and llama3.1:70b (Q4_K_M) of Ollama's library; shapes: their metadata.
ASSUMED = KnownModel(
    name="an assumed 8B model",
    size_bytes=4_920_000_000,
    cache=CacheShape(full_elements=32 * 8 * 256),
    trained_context=131072,
)
ASSUMED_LARGE = KnownModel(
    name="an assumed 70B model",
    size_bytes=42_520_000_000,
    cache=CacheShape(full_elements=80 * 8 * 256),
    trained_context=131072,
)
_LARGE_BYTES = 20 * 2**30


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """The models that plans are made for: those `known`, and the one that settings name and the size that
    they assume, where they do."""

    known: Sequence[KnownModel] = ()
    named: str | None = None
    assumed_bytes: int | None = None

    def meant_for(self, names: Iterable[str]) -> KnownModel:
        """The model that settings name, else the largest known one of these, else an assumed one."""
        wanted = {canonical_name(self.named)} if self.named else {canonical_name(each) for each in names}
        found = [model for model in self.known if canonical_name(model.name) in wanted]
        if found:
            return max(found, key=lambda model: (model.size_bytes, model.name))
        assumed = ASSUMED
        if self.assumed_bytes is not None:
            replace = msgspec.structs.replace
            like = _like(self.assumed_bytes)
            assumed = replace(like, name="an assumed model", size_bytes=self.assumed_bytes)
        if not wanted:
            return assumed
        instead = f"{assumed.name} in place of {', '.join(sorted(wanted))}"
        return msgspec.structs.replace(assumed, name=instead)

    def too_large_for(self, share_bytes: int) -> KnownModel:
        """The largest model that one device does not hold, else an assumed one."""
        named = self.meant_for(())
        found = [model for model in (*self.known, named) if model.size_bytes > share_bytes]
        return max(found, key=lambda model: (model.size_bytes, model.name), default=ASSUMED_LARGE)


def context_length(model: KnownModel, *, share_bytes: int, slots: int, cache_type: str) -> tuple[int, str]:
    """The largest of CONTEXTS whose KV cache fits the share beside the model, capped by what the model was
    trained for; the smallest where none fits. And why."""
    like = _like(model.size_bytes)
    shape = model.cache or like.cache
    trained = model.trained_context or like.trained_context or CONTEXTS[0]
    assert shape is not None, "assumed models have a shape"
    room = share_bytes - model.size_bytes - _RUNNER_BYTES
    tried = sorted({min(each, trained) for each in CONTEXTS})
    sizes = {each: cache_bytes(shape, context=each, slots=slots, cache_type=cache_type) for each in tried}
    chosen = max((each for each in tried if sizes[each] <= room), default=tried[0])
    cache = f"{gib(sizes[chosen])} of KV cache" + (f" for {slots} slots" if slots > 1 else "")
    beside = f"{model.name} ({gib(model.size_bytes)})"
    if sizes[chosen] > room:
        return chosen, f"context {chosen}, the least: {cache} and {beside} do not fit"
    if chosen == trained:
        return chosen, f"context {chosen}, all that it is trained for: {cache} beside {beside}"
    return chosen, f"context {chosen}: {cache} beside {beside}"


def _like(size_bytes: int) -> KnownModel:
    """The assumed model whose shape a model of this size may have."""
    return ASSUMED_LARGE if size_bytes > _LARGE_BYTES else ASSUMED
