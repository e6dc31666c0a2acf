"""Machines with GPUs for tests: a file that the fake NVML reads, and child processes that use it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from balancer.core.device import Device

FAKE_LIBRARY = Path(__file__).parent / "nvml"
GIB = 1 << 30


def gpu(number: int = 0, **facts: Any) -> dict[str, Any]:
    """A GPU that supports every call; `None` for a fact takes the support of its call away."""
    told = {
        "uuid": f"GPU-{number:08x}-1111-2222-3333-444444444444",
        "name": "NVIDIA GeForce RTX 4090",
        "total": 24 * GIB,
        "used": 4 * GIB,
        "capability": [8, 9],
        "mig": 0,
        "utilization": 40,
        "temperature": 50,
        "limits": {"1": 100, "3": 90},
        "milliwatts": 120_500,
        "throttle": 0,
        "ecc": 0,
        "xids": [],
        **facts,
    }
    return {key: value for key, value in told.items() if value is not None}


def device(number: int = 0, **facts: Any) -> Device:
    """The noun of that GPU."""
    values: dict[str, Any] = {
        "index": number,
        "name": "NVIDIA GeForce RTX 4090",
        "memory_bytes": 24 * GIB,
        "free_bytes": 20 * GIB,
        "uuid": gpu(number)["uuid"],
        "compute_capability": (8, 9),
    }
    return Device(**{**values, **facts})


class GpuMachine:
    """The file that says what the machine is; every change is seen by the next call of any process."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        monkeypatch.setenv("FAKE_NVML", str(path))
        inherited = os.environ.get("PYTHONPATH")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(FAKE_LIBRARY), inherited])))
        for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
            monkeypatch.delenv(name, raising=False)
        self.has()

    def has(self, *gpus: dict[str, Any], calls: dict[str, str] | None = None) -> None:
        """From now on it has these; `calls` are fates of calls that name no GPU, or of all."""
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps({"driver": "570.86", "gpus": gpus, "calls": calls or {}}))
        beside.replace(self._path)
