"""What NVIDIA's management library tells: which GPUs there are, and one reading of each.

The only door to `pynvml`, and only the child process of `device_reader` goes through it: a call may hang
in the kernel for ever, or crash. All functions take the library as an argument: anything with its names
will do. What a card does not support is None and no failure. Source: NVIDIA NVML API reference.
"""

from collections.abc import Callable
from typing import Any

import pynvml  # type: ignore[import-untyped]  # it ships none

from balancer.core.detection import Detection, DetectionOutcome, DeviceReading
from balancer.core.device import Device
from balancer.provisioning.capabilities import Precision, precisions
from balancer.provisioning.cuda_visible import visible
from balancer.provisioning.other_gpus import ATTACH

LIBRARY: Any = pynvml

_MOST_EVENTS = 64
"""Of one device in one reading; the rest is read the next time."""


def detect(library: Any, *, told: str | None, order: str | None) -> Detection:
    """The GPUs that a plan may use; `told` and `order` are the values of CUDA_VISIBLE_DEVICES and
    CUDA_DEVICE_ORDER. Raises nothing: what fails is an outcome."""
    try:
        library.nvmlInit()
        driver = str(library.nvmlSystemGetDriverVersion())
        count = library.nvmlDeviceGetCount()
    except library.NVMLError as error:
        return _undetected(library, error)
    found, notes = _described(library, count)
    if not found:
        outcome = DetectionOutcome.FAILED if count else DetectionOutcome.NO_GPU
        reason = "no GPU can be read" if count else "the NVIDIA driver is here, and no GPU"
        return Detection(outcome=outcome, reason=reason, notes=tuple(notes), driver=driver)
    left = visible(found, told, order)
    notes += left.notes
    notes += [_mig_note(each) for each in left.devices if each.mig]
    usable = tuple(each for each in left.devices if not each.mig)
    outcome, reason = DetectionOutcome.OK, ""
    if not usable and (left.mig or left.devices):
        outcome, reason = DetectionOutcome.MIG, "every visible GPU is split by MIG, which is not planned on"
    elif not usable:
        outcome = DetectionOutcome.ALL_HIDDEN
        reason = f"CUDA_VISIBLE_DEVICES={told} hides every GPU of this machine ({len(found)})"
    return Detection(outcome=outcome, devices=usable, reason=reason, notes=tuple(notes), driver=driver)


class Readings:
    """Reads every GPU of this machine, hidden ones too, again and again; opened once, in one process.

    Raises the library's NVMLError from its constructor where the library cannot be opened."""

    def __init__(self, library: Any) -> None:
        library.nvmlInit()
        gpus = (_opened(library, index) for index in range(library.nvmlDeviceGetCount()))
        self._gpus = [each for each in gpus if each is not None]

    def read(self) -> tuple[DeviceReading, ...]:
        """One reading of each; a GPU that could not be found at the opening is in none."""
        return tuple(each.read() for each in self._gpus)


class _Gpu:
    """One GPU, by its handle."""

    def __init__(self, library: Any, key: str, handle: Any) -> None:
        self._library = library
        self._key = key
        self._handle = handle
        self._limit_celsius = self._limit()
        self._events = self._registered()

    def read(self) -> DeviceReading:
        library = self._library
        try:
            memory = self._of_handle(library.nvmlDeviceGetMemoryInfo)
            rates = self._of_handle(library.nvmlDeviceGetUtilizationRates)
            milliwatts = self._of_handle(library.nvmlDeviceGetPowerUsage)
            uncorrected = (library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, library.NVML_VOLATILE_ECC)
            return DeviceReading(
                key=self._key,
                memory_used_bytes=None if memory is None else int(memory.used),
                memory_total_bytes=None if memory is None else int(memory.total),
                utilization=None if rates is None else min(1.0, rates.gpu / 100),
                temperature_celsius=self._of_handle(
                    library.nvmlDeviceGetTemperature, library.NVML_TEMPERATURE_GPU
                ),
                limit_celsius=self._limit_celsius,
                power_watts=None if milliwatts is None else milliwatts / 1000,
                throttled=self._throttled(),
                ecc_uncorrected=self._of_handle(library.nvmlDeviceGetTotalEccErrors, *uncorrected),
                xids=self._xids(),
            )
        except library.NVMLError as error:
            return DeviceReading(key=self._key, lost=str(error), xids=self._xids_of_a_lost_one())

    def _of_handle(self, call: Callable[..., Any], *more: Any) -> Any:
        return _maybe(self._library, call, self._handle, *more)

    def _limit(self) -> int | None:
        """Where the clocks are lowered; on cards that do not tell, where the hardware slows down."""
        library = self._library
        for threshold in (
            library.NVML_TEMPERATURE_THRESHOLD_GPU_MAX,
            library.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
        ):
            celsius = self._of_handle(library.nvmlDeviceGetTemperatureThreshold, threshold)
            if celsius:
                return int(celsius)
        return None

    def _throttled(self) -> tuple[str, ...] | None:
        """Reasons that mean trouble; idling and a power limit that was set do not. `hw_slowdown` is told
        where none of its two named causes is. Drivers before 535 know the call by its former name."""
        library = self._library
        bits = self._of_handle(library.nvmlDeviceGetCurrentClocksEventReasons)
        if bits is None:
            bits = self._of_handle(library.nvmlDeviceGetCurrentClocksThrottleReasons)
        if bits is None:
            return None
        hot = library.nvmlClocksEventReasonSwThermalSlowdown | library.nvmlClocksEventReasonHwThermalSlowdown
        reasons = ["thermal"] if bits & hot else []
        if bits & library.nvmlClocksEventReasonHwPowerBrakeSlowdown:
            reasons.append("power_brake")
        if not reasons and bits & library.nvmlClocksEventReasonHwSlowdown:
            reasons.append("hw_slowdown")
        return tuple(reasons)

    def _registered(self) -> Any:
        """A set of its own, so that every event in it is this card's; None where it reports none."""
        library = self._library
        xid = library.nvmlEventTypeXidCriticalError
        try:
            if not library.nvmlDeviceGetSupportedEventTypes(self._handle) & xid:
                return None
            events = library.nvmlEventSetCreate()
            library.nvmlDeviceRegisterEvents(self._handle, xid, events)
        except library.NVMLError:
            return None
        return events

    def _xids(self) -> tuple[int, ...]:
        """What came since the last time, without waiting. Raises NVMLError where the card is lost."""
        xids: list[int] = []
        while self._events is not None and len(xids) < _MOST_EVENTS:
            event = _maybe(self._library, self._library.nvmlEventSetWait, self._events, 0)
            if event is None:
                break
            xids.append(int(event.eventData))
        return tuple(xids)

    def _xids_of_a_lost_one(self) -> tuple[int, ...]:
        try:
            return self._xids()
        except self._library.NVMLError:
            return ()


def _opened(library: Any, index: int) -> _Gpu | None:
    """A GPU ready to be read, None where it cannot even be named."""
    try:
        handle = library.nvmlDeviceGetHandleByIndex(index)
        return _Gpu(library, str(library.nvmlDeviceGetUUID(handle)), handle)
    except library.NVMLError:
        return None


def _maybe(library: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call answers, None where the card or the driver does not support it or cannot tell now.
    Raises NVMLError where the card is lost."""
    lost = (
        library.NVML_ERROR_GPU_IS_LOST,
        library.NVML_ERROR_RESET_REQUIRED,
        library.NVML_ERROR_GPU_NOT_FOUND,
    )
    try:
        return call(*arguments)
    except library.NVMLError as error:
        if error.value in lost:
            raise
        return None


def _undetected(library: Any, error: Any) -> Detection:
    """The outcome where the library itself does not work."""
    if error.value == library.NVML_ERROR_LIBRARY_NOT_FOUND:
        return Detection(
            outcome=DetectionOutcome.NO_DRIVER, reason="no NVIDIA driver is here (no libnvidia-ml.so.1)"
        )
    if error.value == library.NVML_ERROR_DRIVER_NOT_LOADED:
        return Detection(
            outcome=DetectionOutcome.NO_DRIVER, reason="the NVIDIA driver is installed, and not loaded"
        )
    if error.value == library.NVML_ERROR_NO_PERMISSION:
        reason = "this user may not use the NVIDIA driver (see the permissions of /dev/nvidia*)"
        return Detection(outcome=DetectionOutcome.NO_PERMISSION, reason=reason)
    if error.value == library.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        reason = "the NVIDIA driver was updated and its old kernel module is still loaded: reboot"
        return Detection(outcome=DetectionOutcome.FAILED, reason=reason)
    return Detection(outcome=DetectionOutcome.FAILED, reason=f"the NVIDIA driver answers: {error}")


def _described(library: Any, count: int) -> tuple[list[Device], list[str]]:
    """Every GPU that can be read and told from the others, and a note on each that cannot."""
    found: dict[str, Device] = {}
    notes = []
    for index in range(count):
        try:
            device = _device(library, index)
        except library.NVMLError as error:
            notes.append(f"GPU {index} is left out, it cannot be read: {error}")
            continue
        same = found.setdefault(device.key, device)
        if same is not device:
            notes.append(
                f"GPU {index} is left out, it cannot be told from GPU {same.index}: both are {same.uuid}"
            )
    return list(found.values()), notes


def _device(library: Any, index: int) -> Device:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    capability = _maybe(library, library.nvmlDeviceGetCudaComputeCapability, handle)
    mig = _maybe(library, library.nvmlDeviceGetMigMode, handle)
    known = None if capability is None else (int(capability[0]), int(capability[1]))
    return Device(
        index=index,
        name=str(library.nvmlDeviceGetName(handle)),
        memory_bytes=int(memory.total),
        free_bytes=int(memory.free),
        uuid=str(library.nvmlDeviceGetUUID(handle)),
        compute_capability=known,
        fp16=known is None or Precision.FP16 in precisions(known),
        bf16=known is not None and Precision.BF16 in precisions(known),
        mig=mig is not None and mig[0] == library.NVML_DEVICE_MIG_ENABLE,
    )


def _mig_note(device: Device) -> str:
    return (
        f"GPU {device.index} ({device.name}) is split by MIG and is not planned on: start an Ollama on each "
        f"MIG instance yourself (CUDA_VISIBLE_DEVICES=MIG-…, from nvidia-smi -L) and write {ATTACH}"
    )
