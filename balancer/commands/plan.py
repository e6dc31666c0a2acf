"""`balancer plan`: what would be provisioned on this machine, or on devices named instead. Starts nothing."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from balancer.commands.asking import LONG, plain, print_json
from balancer.commands.exit_codes import BAD_USAGE, DONE
from balancer.commands.running import Running, look
from balancer.commands.tables import table
from balancer.core.detection import Detection
from balancer.core.device import Device
from balancer.core.plan import Plan, PlannedDevice, PlannedInstance
from balancer.provisioning.devices import detect
from balancer.provisioning.planning import DETECT_SECONDS, planned
from balancer.provisioning.ports import is_free
from balancer.provisioning.runtimes import CannotLaunch, Host
from balancer.provisioning.tiers import gib
from balancer.settings import Provision, Settings, SettingsError, load

GIB = 2**30
_MOST_GPUS = 64
_MOST_GIB = 4096
_COLUMNS = ("device", "instance", "port", "runtime", "share", "context", "why")
_SAME = "the same"
_FORM = "NAME:GIB, several with a comma, such as 'RTX 4090:24,RTX 3060:12'"


def plan(files: Sequence[Path], *, gpus: Sequence[Device] | None, as_json: bool) -> int:
    """Print it, for these GPUs or for those of this machine. Faults in the configuration exit 2, and so do
    models of vLLM and llama-server that are not there or have no room; programs are not looked for."""
    notes: Sequence[str] = ()
    try:
        settings = load(files, environ=os.environ, dotenv=Path(".env"))
        running = Running()
        port_is_free = is_free if gpus is None else lambda port: True
        if gpus is None:
            detection, running = asyncio.run(_looked(settings))
            gpus, notes = detection.devices, detection.sentences
        host = Host(tuple(gpus), os.environ, settings)
        found = planned(settings, host, port_is_free=port_is_free, others_stores=running.stores)
    except (SettingsError, CannotLaunch) as error:
        print("\n".join([*notes, str(error)]), file=sys.stderr)
        return BAD_USAGE
    told = [*notes, *found.notes, *_not_started(settings, running)]
    if as_json:
        print_json(as_data(found, told))
    else:
        print(render(found, told))
    return DONE


def parse_gpus(text: str) -> tuple[Device, ...]:
    """GPUs from `NAME:GIB,…`. Raises: ValueError, saying what is allowed."""
    parts = text.split(",")
    if len(parts) > _MOST_GPUS:
        raise ValueError(f"{len(parts)} GPUs are named; at most {_MOST_GPUS} are planned for")
    return tuple(_gpu(index, part) for index, part in enumerate(parts))


def _gpu(index: int, part: str) -> Device:
    name, _, memory = part.rpartition(":")
    name = name.strip()
    try:
        size = float(memory)
    except ValueError:
        size = 0.0
    if not name or not name.isprintable() or not 0 < size <= _MOST_GIB:
        raise ValueError(f"'{part}' is no GPU; allowed is {_FORM}, above 0 and up to {_MOST_GIB} GiB")
    return Device(index=index, name=name, memory_bytes=int(size * GIB), free_bytes=int(size * GIB))


async def _looked(settings: Settings) -> tuple[Detection, Running]:
    """The GPUs of this machine, and what runs on it that `serve` would heed."""
    detection = await detect(DETECT_SECONDS)
    return detection, Running() if settings.provision is Provision.OFF else await look(settings)


def _not_started(settings: Settings, running: Running) -> list[str]:
    """What `serve` would not start of the plan, and what it would tell of what runs already."""
    if settings.provision is Provision.OFF:
        return ["provision is off: serve starts none of them"]
    notes = list(running.sentences)
    if settings.instances:
        notes.append(
            "instances are named: serve starts those of gpu_instances and of runtimes alone beside them"
        )
    if running.attached:
        where = ", ".join(running.attached)
        notes.append(f"Ollama answers at {where}: serve attaches what runs and starts none of these")
    if running.named:
        names = ", ".join(sorted(running.named))
        notes.append(f"Ollama answers where gpu_instances have {names}: serve attaches what runs there")
    return notes


def as_data(planned: Plan, notes: Sequence[str]) -> Mapping[str, object]:
    """The plan as plain data; what `--json` prints."""
    return {
        "devices": [
            {
                "name": device.name,
                "index": device.gpu.index if device.gpu else None,
                "uuid": device.gpu.uuid if device.gpu else "",
                "memory_bytes": device.memory_bytes,
                "instances": [_data(each) for each in device.instances],
            }
            for device in planned.devices
        ],
        "spanning": [_data(each) | {"devices": list(each.devices)} for each in planned.spanning],
        "notes": list(notes),
    }


def _data(each: PlannedInstance) -> dict[str, object]:
    return {
        "name": each.name,
        "port": each.port,
        "memory_bytes": each.memory_bytes,
        "runtime": each.runtime.value,
        "reason": each.reason,
        "slots": each.slots,
        "context_length": each.context_length,
        "prompt_cache_bytes": each.prompt_cache_bytes,
        "models": list(each.models),
        "max_concurrent_requests": each.max_concurrent_requests,
        "weight": each.weight,
    }


def render(planned: Plan, notes: Sequence[str]) -> str:
    """A table for people, and below it what they should know besides."""
    rows = [row for device in planned.devices for row in _rows(device)]
    rows += [_row(_together(planned, each), each) for each in planned.spanning]
    lines = table(_COLUMNS, rows)
    cache = max((each.prompt_cache_bytes for each in planned.instances), default=0)
    if cache:
        lines += ["", f"each may keep prompt caches of {gib(cache)} in the host's memory"]
    return "\n".join([*lines, *(f"note: {plain(note, characters=LONG)}" for note in notes)])


def _rows(device: PlannedDevice) -> list[tuple[str, ...]]:
    name = f"GPU {device.gpu.index}: {plain(device.name)}" if device.gpu else device.name
    label = f"{name}, {gib(device.memory_bytes)}"
    if not device.instances:
        return [(label, *("-" * (len(_COLUMNS) - 1)))]
    rows = [_row(label, device.instances[0])]
    for before, each in pairwise(device.instances):
        row = _row("", each)
        rows.append((*row[:-1], _SAME) if each.reason == before.reason else row)
    return rows


def _row(label: str, each: PlannedInstance) -> tuple[str, ...]:
    share = gib(each.memory_bytes) if each.memory_bytes else "lent"
    context = "-" if each.context_length is None else str(each.context_length)
    why = plain(each.reason, characters=LONG)
    return (label, plain(each.name), str(each.port), each.runtime.value, share, context, why)


def _together(planned: Plan, each: PlannedInstance) -> str:
    gpus = [device.gpu for device in planned.devices if device.gpu and device.gpu.key in each.devices]
    return "GPU " + " + ".join(str(gpu.index) for gpu in gpus)
