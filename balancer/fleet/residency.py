"""Which variants are resident in one instance, and what is being loaded there.

Ollama's own list names models, not variants, and a model that loads is in no list. So loads that the
balancer made are remembered until a list that was read later tells otherwise, and with them the
options that they were made with. Source: observed on Ollama v0.33 (which options reload, and what
`/api/ps` shows during a load).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from balancer.core.names import ModelName, canonical_name, is_cloud_name
from balancer.core.variant import OptionValue, Variant

EVICTION_SECONDS = 0.3
"""By then Ollama has unloaded what stands in the way of a load and runs nothing."""
_LET_THROUGH_LIMIT = 100
Row = Mapping[str, object]
"""One item of `/api/tags` or `/api/ps`, as the instance sent it."""


@dataclass(frozen=True, slots=True)
class Runner:
    """A model resident in an instance. `generation` counts its lives there; `slots` is None until known."""

    model: ModelName
    digest: str
    generation: int
    slots: int | None
    row: Row

    def differs(self, other: "Runner") -> bool:
        """In anything but when it expires."""
        if (self.generation, self.slots) != (other.generation, other.slots):
            return True
        return {**self.row, "expires_at": None} != {**other.row, "expires_at": None}


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the instance last said that it has. `read_at` is when the newest reading began, `runners_at`
    when that of its runners did (monotonic seconds), None where they could never be read."""

    read_at: float
    runners_at: float | None
    models: Mapping[ModelName, Row]
    runners: Mapping[ModelName, Runner]
    only_embed: frozenset[ModelName] = frozenset()
    """Models that do nothing else."""

    def size_bytes(self, model: ModelName) -> int:
        """The size of the model's files, 0 where the list does not tell."""
        row = self.models.get(model)
        size = row.get("size") if row is not None else None
        return size if isinstance(size, int) and size > 0 else 0


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A load of ours; `generation` is that of the runner in which a list showed it."""

    variant: Variant
    at: float
    generation: int | None = None


class Residency:
    """Of one instance. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.loading: Variant | None = None
        self.load_overdue_at = float("-inf")
        self._loaded: dict[ModelName, _Loaded] = {}
        self._unlisted: set[ModelName] = set()
        self._let_through: dict[Variant, None] = {}
        self._gate: tuple[Variant, float] | None = None
        self._doubted: dict[ModelName, float] = {}
        self._unloaded: dict[ModelName, float] = {}
        self._generations = 0
        self._lives: Counter[ModelName] = Counter()

    @property
    def settled(self) -> bool:
        """Whether nothing is being loaded, and nothing held back for a load."""
        return self.loading is None and self._gate is None

    def life(self, model: ModelName) -> int:
        """A number that changes with each end of a runner of the model, and each load of it by the balancer,
        as long as the instance lives. A load that a request made shows only where a list tells."""
        return self._lives[model]

    def warm(self, variant: Variant, inventory: Inventory | None) -> bool:
        """Whether a request for the variant needs no load. Where no list could be read, or the list is
        known not to tell, nothing is known, and the request itself will find out."""
        model = variant.model
        loaded = self._loaded.get(model)
        if inventory is None or inventory.runners_at is None:
            return True
        settled = self.loading is None and not self._doubted and model in inventory.runners
        if settled and (loaded.variant == variant if loaded is not None else not variant.options):
            return True  # the most usual case, which is asked of every candidate
        if is_cloud_name(model):
            return True
        if self.loading is not None and self.loading.model == model and self.loading != variant:
            return False  # as good as gone
        if model in self._unlisted or variant in self._let_through:
            return True
        if inventory.runners_at < self._doubted.get(model, float("-inf")):
            return False
        runner = inventory.runners.get(model)
        if loaded is not None and loaded.at > inventory.runners_at:
            return _matches(variant, loaded.variant, None)  # what the list tells is out of date
        if runner is None:
            return False
        return _matches(variant, loaded.variant if loaded else Variant(model), runner)

    def began(self, variant: Variant, overdue_at: float) -> None:
        """The balancer loads it; until then others may wait for it."""
        assert self.loading is None, "one load at a time"
        self.loading, self.load_overdue_at = variant, overdue_at
        self._lives[variant.model] += 1

    def ended(self, variant: Variant) -> None:
        """The load is over, however it went, and so is its gate."""
        self.loading = None
        if self._gate is not None and self._gate[0] == variant:
            self._gate = None

    def loaded(self, variant: Variant, at: float) -> None:
        """The load went well, so it is there whatever was doubted before."""
        self._loaded[variant.model] = _Loaded(variant, at)
        self._doubted.pop(variant.model, None)
        self._unloaded.pop(variant.model, None)

    def doubt(self, model: ModelName, now: float) -> None:
        """It runs nothing while another model is being loaded: it may have to make room for that. It is
        believed to be there again once a list says so that was read when it would have been gone."""
        self._doubted[model] = now + EVICTION_SECONDS

    def undoubt(self, since: float) -> None:
        """Nothing was loaded since then, so nothing has made room since."""
        doubted = self._doubted.items()
        self._doubted = {model: until for model, until in doubted if until < since + EVICTION_SECONDS}

    def let_through(self, variant: Variant) -> None:
        """The instance refuses to load it, as it will refuse any request for it; let those tell."""
        if len(self._let_through) >= _LET_THROUGH_LIMIT:
            del self._let_through[next(iter(self._let_through))]
        self._let_through[variant] = None

    def gate(self, variant: Variant, until: float) -> None:
        """Hold back leases for all others until then at the latest."""
        self._gate = (variant, until)

    def gated_until(self, variant: Variant, now: float) -> float | None:
        """Until when leases for the variant are held back; None where they are not."""
        if self._gate is None or self._gate[0] == variant or self._gate[1] <= now:
            return None
        return self._gate[1]

    def runners_of(
        self, rows: Sequence[Row], known: Mapping[ModelName, Runner], slots: Mapping[str, int], at: float
    ) -> Mapping[ModelName, Runner]:
        """Those that a list read then names, less those that were unloaded since. One that was there before
        with the same digest and context keeps its generation, and its slots where `slots` has none."""
        runners = (self._runner_of(row, known, slots) for row in reversed(rows))
        return {each.model: each for each in runners if not self.unloaded_since(each.model, at)}

    def runners_read(
        self, known: Mapping[ModelName, Runner], runners: Mapping[ModelName, Runner], at: float
    ) -> bool:
        """Forget the loads that a list read after them does not show any more, or shows anew. One that
        the very next list does not show says that the list does not tell. Whether anything is new, compared
        with the runners known before, or another thing is believed to be in memory now."""
        before = len(self._doubted), tuple(self._loaded), len(self._unlisted)
        for model, one in known.items():
            self._lives[model] += model not in runners or runners[model].generation != one.generation
        self._unlisted -= runners.keys()
        self._doubted = {model: since for model, since in self._doubted.items() if since > at}
        self._unloaded = {model: since for model, since in self._unloaded.items() if since > at}
        for model, loaded in tuple(self._loaded.items()):
            runner = runners.get(model)
            if loaded.at > at:
                continue
            if runner is None or loaded.generation not in {None, runner.generation}:
                del self._loaded[model]
                if runner is None and loaded.generation is None:
                    self._unlisted.add(model)
            elif loaded.generation is None:
                self._loaded[model] = replace(loaded, generation=runner.generation)
        if before != (len(self._doubted), tuple(self._loaded), len(self._unlisted)):
            return True
        return known.keys() != runners.keys() or any(
            known[name].differs(each) for name, each in runners.items()
        )

    def unloaded(self, model: ModelName, now: float) -> None:
        """It is in memory no more."""
        self._loaded.pop(model, None)
        self._unloaded[model] = now
        self._lives[model] += 1

    def unloaded_since(self, model: ModelName, at: float) -> bool:
        """Whether it was unloaded after that, and not loaded again by the balancer."""
        return self._unloaded.get(model, float("-inf")) > at

    def forget(self) -> None:
        """The instance has ended, and its runners with it."""
        self._loaded.clear()
        self._doubted.clear()
        self._unloaded.clear()
        self._unlisted.clear()
        self._let_through.clear()

    def _runner_of(self, row: Row, known: Mapping[ModelName, Runner], slots: Mapping[str, int]) -> Runner:
        model = canonical_name(str(row["name"]))
        digest = str(row.get("digest", ""))
        before = known.get(model)
        same = before is not None and before.digest == digest
        if before is not None and same and before.row.get("context_length") == row.get("context_length"):
            return Runner(model, digest, before.generation, slots.get(digest, before.slots), row)
        self._generations += 1
        return Runner(model, digest, self._generations, slots.get(digest), row)


def by_name(rows: Sequence[Row]) -> Mapping[ModelName, Row]:
    """Items of a list by their canonical names."""
    return {canonical_name(str(row["name"])): row for row in rows}


def only_embedding(models: Mapping[ModelName, Row]) -> frozenset[ModelName]:
    """Those that do nothing else, as far as their list tells."""
    return frozenset(name for name, row in models.items() if _only_embeds(row.get("capabilities")))


def _only_embeds(able: object) -> bool:
    return isinstance(able, list) and "embedding" in able and "completion" not in able


def _matches(variant: Variant, loaded: Variant, runner: Runner | None) -> bool:
    """Whether a runner that was loaded for one variant serves another. A context length that is asked
    for explicitly fits any runner that has it."""
    if variant == loaded:
        return True
    wanted, had = dict(variant.options), dict(loaded.options)
    context: OptionValue = wanted.pop("num_ctx", None)
    had.pop("num_ctx", None)
    if wanted != had or context is None or runner is None:
        return False
    return runner.row.get("context_length") == context
