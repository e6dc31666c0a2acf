# ruff: noqa: N802, N816 - the names are nvidia-ml-py's
"""A machine with GPUs as nvidia-ml-py would tell of it: the names, calls and values that the balancer uses.

The machine is a JSON file named by FAKE_NVML, read anew at each call, so that a test may change it:

    {"driver": "570.86", "calls": {CALL: FATE}, "gpus": [{
        "uuid", "name", "total", "used", "capability", "mig", "utilization", "temperature", "limits",
        "milliwatts", "throttle", "ecc", "xids", "calls": {CALL: FATE}}]}

A key that a GPU lacks is a call that it does not support. A FATE is the name of an error (`GPU_IS_LOST`),
`hang` (it never comes back) or `crash` (the process dies by SIGSEGV). `xids` grows; what is added
after a registration is an event.
"""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_ERROR_UNINITIALIZED = 1
NVML_ERROR_INVALID_ARGUMENT = 2
NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NO_PERMISSION = 4
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_TIMEOUT = 10
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_ERROR_FUNCTION_NOT_FOUND = 13
NVML_ERROR_GPU_IS_LOST = 15
NVML_ERROR_RESET_REQUIRED = 16
NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
NVML_ERROR_GPU_NOT_FOUND = 28
NVML_ERROR_UNKNOWN = 999
NVML_TEMPERATURE_GPU = 0
NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1
NVML_TEMPERATURE_THRESHOLD_GPU_MAX = 3
NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
NVML_VOLATILE_ECC = 0
NVML_DEVICE_MIG_ENABLE = 1
nvmlEventTypeXidCriticalError = 8
nvmlClocksEventReasonHwSlowdown = 0x08
nvmlClocksEventReasonSwThermalSlowdown = 0x20
nvmlClocksEventReasonHwThermalSlowdown = 0x40
nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80


class NVMLError(Exception):
    """An error of the library; `value` is its code."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return next(
            name
            for name, value in globals().items()
            if name.startswith("NVML_ERROR_") and value == self.value
        )


_opened: list[bool] = []


def nvmlInit() -> None:
    _meet(_machine(), "nvmlInit")
    _opened.append(True)


def nvmlSystemGetDriverVersion() -> str:
    return str(_call("nvmlSystemGetDriverVersion")["driver"])


def nvmlDeviceGetCount() -> int:
    return len(_call("nvmlDeviceGetCount")["gpus"])


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    _gpu(index, "nvmlDeviceGetHandleByIndex")
    return index


def nvmlDeviceGetUUID(handle: int) -> str:
    return str(_value(handle, "nvmlDeviceGetUUID", "uuid"))


def nvmlDeviceGetName(handle: int) -> str:
    return str(_value(handle, "nvmlDeviceGetName", "name"))


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    total = _value(handle, "nvmlDeviceGetMemoryInfo", "total")
    used = _value(handle, "nvmlDeviceGetMemoryInfo", "used")
    return SimpleNamespace(total=total, used=used, free=total - used)


def nvmlDeviceGetCudaComputeCapability(handle: int) -> tuple[int, int]:
    major, minor = _value(handle, "nvmlDeviceGetCudaComputeCapability", "capability")
    return major, minor


def nvmlDeviceGetMigMode(handle: int) -> list[int]:
    mode = _value(handle, "nvmlDeviceGetMigMode", "mig")
    return [mode, mode]


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:
    return SimpleNamespace(gpu=_value(handle, "nvmlDeviceGetUtilizationRates", "utilization"), memory=0)


def nvmlDeviceGetTemperature(handle: int, sensor: int) -> int:
    assert sensor == NVML_TEMPERATURE_GPU
    return int(_value(handle, "nvmlDeviceGetTemperature", "temperature"))


def nvmlDeviceGetTemperatureThreshold(handle: int, threshold: int) -> int:
    limits = _value(handle, "nvmlDeviceGetTemperatureThreshold", "limits")
    if str(threshold) not in limits:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return int(limits[str(threshold)])


def nvmlDeviceGetPowerUsage(handle: int) -> int:
    return int(_value(handle, "nvmlDeviceGetPowerUsage", "milliwatts"))


def nvmlDeviceGetCurrentClocksEventReasons(handle: int) -> int:
    return int(_value(handle, "nvmlDeviceGetCurrentClocksEventReasons", "throttle"))


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: int) -> int:
    return int(_value(handle, "nvmlDeviceGetCurrentClocksThrottleReasons", "throttle"))


def nvmlDeviceGetTotalEccErrors(handle: int, errors: int, counter: int) -> int:
    assert (errors, counter) == (NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC)
    return int(_value(handle, "nvmlDeviceGetTotalEccErrors", "ecc"))


def nvmlDeviceGetSupportedEventTypes(handle: int) -> int:
    gpu = _gpu(handle, "nvmlDeviceGetSupportedEventTypes")
    return nvmlEventTypeXidCriticalError if "xids" in gpu else 0


def nvmlEventSetCreate() -> SimpleNamespace:
    _call("nvmlEventSetCreate")
    return SimpleNamespace(handle=None, told=0)


def nvmlDeviceRegisterEvents(handle: int, types: int, events: SimpleNamespace) -> None:
    assert types == nvmlEventTypeXidCriticalError
    events.handle, events.told = handle, len(_value(handle, "nvmlDeviceRegisterEvents", "xids"))


def nvmlEventSetWait(events: SimpleNamespace, milliseconds: int) -> SimpleNamespace:
    assert milliseconds == 0
    xids = _value(events.handle, "nvmlEventSetWait", "xids")
    if events.told >= len(xids):
        raise NVMLError(NVML_ERROR_TIMEOUT)
    events.told += 1
    return SimpleNamespace(eventType=nvmlEventTypeXidCriticalError, eventData=xids[events.told - 1])


def _machine() -> dict[str, Any]:
    machine: dict[str, Any] = json.loads(Path(os.environ["FAKE_NVML"]).read_text())
    return machine


def _call(name: str) -> dict[str, Any]:
    if not _opened:
        raise NVMLError(NVML_ERROR_UNINITIALIZED)
    machine = _machine()
    _meet(machine, name)
    return machine


def _gpu(handle: int, name: str) -> dict[str, Any]:
    gpus = _call(name)["gpus"]
    if handle >= len(gpus):
        raise NVMLError(NVML_ERROR_INVALID_ARGUMENT)
    gpu: dict[str, Any] = gpus[handle]
    _meet(gpu, name)
    return gpu


def _value(handle: int, name: str, key: str) -> Any:
    gpu = _gpu(handle, name)
    if key not in gpu:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return gpu[key]


def _meet(told: dict[str, Any], name: str) -> None:
    """What a call is fated to; `*` is every call."""
    fates = told.get("calls", {})
    fate = fates.get(name, fates.get("*"))
    if fate == "hang":
        while True:
            time.sleep(3600)
    if fate == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fate is not None:
        raise NVMLError(globals()[f"NVML_ERROR_{fate}"])
