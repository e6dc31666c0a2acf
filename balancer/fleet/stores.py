"""Which instances share one model store, told from what they list.

A manifest's file time has nanoseconds, so two stores that were filled apart never agree on a name,
a digest and a time; two instances that do agree read the same files. Copies that keep file times
look shared too; the `store` setting tells them apart.
"""

from collections.abc import Iterable

from balancer.fleet.instance import Instance


def learn_shared_stores(instances: Iterable[Instance]) -> None:
    """Give instances that list an identical row the store of the first of them whose store is known,
    else of the first of them. What was learned before stands: an empty list says nothing."""
    seen: dict[tuple[str, str, str], Instance] = {}
    for instance in sorted(instances, key=_unknown):
        if instance.inventory is None:
            continue
        for name, row in instance.inventory.models.items():
            modified = str(row.get("modified_at", ""))
            if "." not in modified:
                continue
            first = seen.setdefault((name, str(row.get("digest", "")), modified), instance)
            if first is not instance and instance.learned_store in {None, first.spec.own_store}:
                instance.learned_store = first.store


def _unknown(instance: Instance) -> bool:
    return instance.spec.store is None and instance.learned_store is None
