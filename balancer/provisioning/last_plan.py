"""The plan that the instances of this machine were started by, kept in the state folder.

Instances that a killed balancer has left hold memory and ports, so a new plan would come out otherwise, and
none of them could be adopted. While one of them lives, the plan of before holds.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from balancer.core.device import Device
from balancer.core.plan import Plan
from balancer.provisioning.keeper import is_held
from balancer.provisioning.process_table import pids
from balancer.settings import Settings

_FILE = "plan.json"
_LIMIT_BYTES = 1 << 20
_PLANNED_BY = frozenset({"cache", "gpu_instances", "load_balancing", "placement", "provisioning", "runtimes"})


class _Kept(msgspec.Struct, frozen=True):
    made_from: str
    plan: Plan


def last_plan(folder: Path, settings: Settings, devices: Sequence[Device]) -> Plan | None:
    """The plan of before, where it was made from the same settings and devices and an instance of it is
    still there; else None. Blocks for milliseconds."""
    try:
        with (folder / _FILE).open("rb") as file:
            kept = msgspec.json.decode(file.read(_LIMIT_BYTES), type=_Kept)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return kept.plan if kept.made_from == _made_from(settings, devices) and left_running(folder) else None


def keep_plan(folder: Path, settings: Settings, devices: Sequence[Device], plan: Plan) -> None:
    """Keep it for the next start; where it cannot be written nothing is kept."""
    kept = msgspec.json.encode(_Kept(_made_from(settings, devices), plan))
    part = folder / f"{_FILE}.part"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_bytes(kept)
        part.replace(folder / _FILE)


def left_running(folder: Path) -> frozenset[int]:
    """What the keeper of a folder holds, or has left behind: the instances, and all that carries their
    environment. Blocks for milliseconds."""
    mark = str(folder.resolve())
    return frozenset(pid for pid in pids() if is_held(pid, mark))


def _made_from(settings: Settings, devices: Sequence[Device]) -> str:
    """What a plan depends on, but for memory that is free and models that are there."""
    told = settings.model_dump(mode="json", include=set(_PLANNED_BY))
    known = [(each.index, each.uuid, each.name, each.memory_bytes) for each in devices]
    return hashlib.sha256(msgspec.json.encode([told, known], order="deterministic")).hexdigest()
