"""Progress of one pull or create over several model stores, merged into one stream of records.

What a client draws stays true: a layer's total and completed are sums over the stores, each other
status is told once, `success` only when every store succeeded, and a failure at the end by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Record = Mapping[str, object]


@dataclass(slots=True)
class _Layer:
    total: dict[int, int]
    completed: dict[int, int]


class ProgressMerge:
    """Merges the records of the stores named; one index each, in that order."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._layers: dict[str, _Layer] = {}
        self._told: set[str] = set()
        self._succeeded: set[int] = set()
        self._errors: dict[int, str] = {}

    def feed(self, store: int, record: Record) -> Record | None:
        """The merged record to tell now that one store told `record`; None where there is none."""
        status = str(record.get("status", ""))
        if "error" in record:
            self.fail(store, str(record["error"]))
            return None
        if "digest" in record:
            return self._feed_layer(store, record)
        if status == "success":
            self._succeeded.add(store)
            return None
        if status in self._told:
            return None
        self._told.add(status)
        return record

    def fail(self, store: int, message: str) -> None:
        """One store failed; the others go on."""
        self._errors.setdefault(store, message)

    @property
    def whole(self) -> bool:
        """Whether every store succeeded."""
        return not self._errors and len(self._succeeded) == len(self._names)

    def last(self) -> Record:
        """The final record, once every store has ended."""
        for store in range(len(self._names)):
            if store not in self._succeeded:
                self.fail(store, "ended before it was complete")
        if not self._errors:
            return {"status": "success"}
        return {
            "error": describe_failures(
                {self._names[i]: text for i, text in self._errors.items()}, len(self._names)
            )
        }

    def _feed_layer(self, store: int, record: Record) -> Record:
        layer = self._layers.setdefault(str(record["digest"]), _Layer({}, {}))
        layer.total[store] = _count(record.get("total"))
        layer.completed[store] = _count(record.get("completed"))
        unknown = len(self._names) - len(layer.total)
        total = sum(layer.total.values()) + unknown * max(layer.total.values())
        return {**record, "total": total, "completed": sum(layer.completed.values())}


def describe_failures(failures: Mapping[str, str], stores: int) -> str:
    """Which of the instances failed and how, in one line; where all failed alike, how."""
    texts = set(failures.values())
    if len(failures) == stores and len(texts) == 1:
        return texts.pop()
    told = "; ".join(f"{name}: {text}" for name, text in failures.items())
    return f"failed on {len(failures)} of {stores} model stores: {told}"


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0
