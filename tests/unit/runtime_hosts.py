"""Hosts, devices and programs for the tests of what starts instances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from balancer.core.device import Device
from balancer.core.plan import PlannedInstance, Runtime
from balancer.provisioning.runtimes import Host
from balancer.settings import Settings

MIB, GIB = 2**20, 2**30
UUIDS = ("GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000")


def device(index: int = 0, *, gib: int = 24, capability: tuple[int, int] | None = (8, 9)) -> Device:
    """A card; one of before 8.0 has no BF16."""
    return Device(
        index=index,
        name=f"card {index}",
        memory_bytes=gib * GIB,
        free_bytes=gib * GIB,
        uuid=UUIDS[index],
        compute_capability=capability,
        bf16=capability is None or capability >= (8, 0),
    )


def program(folder: Path, name: str) -> Path:
    """A file that may be run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def host(
    folder: Path,
    *devices: Device,
    environ: Mapping[str, str] | None = None,
    runtimes: Mapping[str, object] | None = None,
    **settings: object,
) -> Host:
    """A host with the three programs on its PATH."""
    for name in ("ollama", "vllm", "llama-server"):
        program(folder / "bin", name)
    given = {"HOME": "/home/u", "PATH": str(folder / "bin"), **(environ or {})}
    return Host(devices, given, Settings.model_validate({"runtimes": runtimes or {}, **settings}))


def instance(runtime: Runtime = Runtime.OLLAMA, **changes: object) -> PlannedInstance:
    """An instance on the first card, with a quarter of it."""
    given: dict[str, object] = {
        "name": "gpu0-a",
        "port": 11500,
        "runtime": runtime,
        "devices": (UUIDS[0],),
        "memory_bytes": 6 * GIB,
        "reason": "a test",
        **changes,
    }
    return PlannedInstance(**given)  # type: ignore[arg-type]
