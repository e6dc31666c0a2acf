"""What is made of the answers of NVIDIA's library, asked through a fake of the same names."""

import re
from pathlib import Path
from typing import Any

import pynvml
import pytest

from balancer.core.detection import Detection, DetectionOutcome
from balancer.provisioning import nvml
from balancer.settings.sources import load
from tests.fakes.gpu_machine import GIB, GpuMachine, device, gpu
from tests.fakes.nvml import pynvml as fake

LOST = ["GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND"]
OPTIONAL = {
    "nvmlDeviceGetMemoryInfo": ("memory_used_bytes", "memory_total_bytes"),
    "nvmlDeviceGetUtilizationRates": ("utilization",),
    "nvmlDeviceGetTemperature": ("temperature_celsius",),
    "nvmlDeviceGetTemperatureThreshold": ("limit_celsius",),
    "nvmlDeviceGetPowerUsage": ("power_watts",),
    "nvmlDeviceGetTotalEccErrors": ("ecc_uncorrected",),
}
READ_EACH_TIME = [*(each for each in OPTIONAL if not each.endswith("Threshold")), "nvmlEventSetWait"]
SW_POWER_CAP, IDLE = 0x4, 0x1


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    return GpuMachine(tmp_path / "machine.json", monkeypatch)


def detected(told: str | None = None, order: str | None = None) -> Detection:
    return nvml.detect(fake, told=told, order=order)


def reading(**facts: Any) -> dict[str, Any]:
    """What is read of a GPU that has these, besides what every test machine has."""
    values: dict[str, Any] = {
        "key": gpu()["uuid"],
        "lost": None,
        "memory_used_bytes": 4 * GIB,
        "memory_total_bytes": 24 * GIB,
        "utilization": 0.4,
        "temperature_celsius": 50,
        "limit_celsius": 90,
        "power_watts": 120.5,
        "throttled": (),
        "ecc_uncorrected": 0,
        "xids": (),
    }
    return {**values, **facts}


def told_of(each: Any) -> dict[str, Any]:
    return {name: getattr(each, name) for name in each.__struct_fields__}


# -- the fake is what the library is


def used_names() -> set[str]:
    source = Path(nvml.__file__).read_text()
    return set(re.findall(r"library\.((?:nvml|NVML)\w+)", source))


def test_every_name_that_is_used_is_in_the_library_and_in_the_fake() -> None:
    names = used_names()

    assert len(names) > 30
    assert [name for name in sorted(names) if not hasattr(pynvml, name)] == []
    assert [name for name in sorted(names) if not hasattr(fake, name)] == []


def test_every_constant_of_the_fake_has_the_librarys_value() -> None:
    constants = {
        name: value
        for name, value in vars(fake).items()
        if isinstance(value, int) and name.lower().startswith("nvml")
    }

    assert len(constants) > 20
    assert {name: getattr(pynvml, name) for name in constants} == constants


def test_an_error_of_the_library_has_its_code_and_is_caught_by_its_base() -> None:
    for module in (pynvml, fake):
        with pytest.raises(module.NVMLError) as caught:
            raise module.NVMLError(module.NVML_ERROR_GPU_IS_LOST)
        assert caught.value.value == 15


def test_fields_that_are_read_are_those_of_the_librarys_structures() -> None:
    fields = {
        pynvml.c_nvmlMemory_t: {"total", "free", "used"},
        pynvml.c_nvmlUtilization_t: {"gpu"},
        pynvml.c_nvmlEventData_t: {"eventData"},
    }

    for structure, names in fields.items():
        assert names <= {each[0] for each in structure._fields_}


# -- detection


def test_a_gpu_is_told_with_all_that_a_plan_asks_for(machine: GpuMachine) -> None:
    machine.has(gpu(), gpu(1, name="Tesla P40", capability=[6, 1], ecc=None, mig=None))

    found = detected()

    assert found == Detection(
        outcome=DetectionOutcome.OK,
        devices=(
            device(bf16=True),
            device(1, name="Tesla P40", compute_capability=(6, 1), bf16=False),
        ),
        driver="570.86",
    )


@pytest.mark.parametrize(
    ("capability", "fp16", "bf16"),
    [([5, 2], False, False), ([5, 3], True, False), ([7, 5], True, False), ([8, 0], True, True)],
)
def test_precisions_come_from_the_compute_capability(
    machine: GpuMachine, capability: list[int], fp16: bool, bf16: bool
) -> None:
    machine.has(gpu(capability=capability))

    (only,) = detected().devices

    assert (only.fp16, only.bf16) == (fp16, bf16)


@pytest.mark.parametrize(
    ("fate", "outcome", "told"),
    [
        ("LIBRARY_NOT_FOUND", DetectionOutcome.NO_DRIVER, "libnvidia-ml"),
        ("DRIVER_NOT_LOADED", DetectionOutcome.NO_DRIVER, "not loaded"),
        ("NO_PERMISSION", DetectionOutcome.NO_PERMISSION, "/dev/nvidia"),
        ("LIB_RM_VERSION_MISMATCH", DetectionOutcome.FAILED, "reboot"),
        ("UNKNOWN", DetectionOutcome.FAILED, "UNKNOWN"),
    ],
)
def test_a_library_that_does_not_open_is_told_by_its_cause(
    machine: GpuMachine, fate: str, outcome: DetectionOutcome, told: str
) -> None:
    machine.has(gpu(), calls={"nvmlInit": fate})

    found = detected()

    assert (found.outcome, found.devices) == (outcome, ())
    assert told in found.reason


def test_a_driver_without_a_gpu_is_told_as_that(machine: GpuMachine) -> None:
    found = detected()

    assert (found.outcome, found.devices, found.driver) == (DetectionOutcome.NO_GPU, (), "570.86")
    assert found.reason


@pytest.mark.parametrize("fate", [*LOST, "UNKNOWN", "NO_PERMISSION"])
@pytest.mark.parametrize("call", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo"])
def test_a_gpu_that_cannot_be_read_is_left_out_and_named(machine: GpuMachine, call: str, fate: str) -> None:
    machine.has(gpu(calls={call: fate}), gpu(1))

    found = detected()

    assert [each.index for each in found.devices] == [1]
    assert [note for note in found.notes if note.startswith("GPU 0 ") and fate in note]


def test_a_gpu_with_the_uuid_of_another_is_left_out_and_named(machine: GpuMachine) -> None:
    machine.has(gpu(0), gpu(1), gpu(0, name="its twin"))

    found = detected()

    assert found.devices == (device(0), device(1))
    assert found.notes == (f"GPU 2 is left out, it cannot be told from GPU 0: both are {device(0).uuid}",)


def test_gpus_none_of_which_can_be_read_are_a_failure_and_not_none(machine: GpuMachine) -> None:
    machine.has(gpu(calls={"*": "UNKNOWN"}))

    assert detected().outcome is DetectionOutcome.FAILED


def test_a_gpu_whose_optional_calls_are_not_supported_is_used(machine: GpuMachine) -> None:
    machine.has(gpu(capability=None, mig=None))

    (only,) = detected().devices

    assert (only.compute_capability, only.mig, only.fp16, only.bf16) == (None, False, True, False)


def test_a_gpu_split_by_mig_is_not_planned_on_and_the_note_can_be_pasted(
    machine: GpuMachine, tmp_path: Path
) -> None:
    machine.has(gpu(mig=1), gpu(1))

    found = detected()

    assert (found.outcome, [each.index for each in found.devices]) == (DetectionOutcome.OK, [1])
    (note,) = found.notes
    assert note.startswith("GPU 0 ")
    path = tmp_path / "written.yaml"
    path.write_text(note[note.index("instances:") :])
    assert load([path], environ={}).instances[0].url == "http://127.0.0.1:11434"


def test_where_every_gpu_is_split_by_mig_that_is_the_outcome(machine: GpuMachine) -> None:
    machine.has(gpu(mig=1))

    found = detected()

    assert (found.outcome, found.devices) == (DetectionOutcome.MIG, ())
    assert "MIG" in found.reason


def test_hidden_gpus_are_told_as_hidden(machine: GpuMachine) -> None:
    machine.has(gpu(), gpu(1))

    found = detected(told="")

    assert (found.outcome, found.devices, found.notes) == (DetectionOutcome.ALL_HIDDEN, (), ())
    assert "CUDA_VISIBLE_DEVICES=" in found.reason


def test_a_mig_instance_in_the_variable_is_told_as_mig(machine: GpuMachine) -> None:
    machine.has(gpu(), gpu(1))

    found = detected(told="MIG-8932f937-d72c-4106-c12f-20bd9faed9f6")

    assert (found.outcome, found.devices) == (DetectionOutcome.MIG, ())
    assert any("MIG-8932f937" in note and "instances:" in note for note in found.notes)


def test_a_visible_gpu_is_used_though_the_hidden_ones_are_split(machine: GpuMachine) -> None:
    machine.has(gpu(mig=1), gpu(1))

    found = detected(told="1")

    assert (found.outcome, [each.index for each in found.devices], found.notes) == (
        DetectionOutcome.OK,
        [1],
        (),
    )


# -- readings


def test_a_reading_tells_what_the_card_tells(machine: GpuMachine) -> None:
    machine.has(gpu())

    (only,) = nvml.Readings(fake).read()

    assert told_of(only) == reading()


@pytest.mark.parametrize("call", OPTIONAL)
@pytest.mark.parametrize("fate", ["NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "UNKNOWN", "NO_PERMISSION"])
def test_what_a_card_does_not_tell_is_none_and_all_else_is_told(
    machine: GpuMachine, call: str, fate: str
) -> None:
    machine.has(gpu(calls={call: fate}))

    (only,) = nvml.Readings(fake).read()

    assert told_of(only) == reading(**dict.fromkeys(OPTIONAL[call]))


@pytest.mark.parametrize("fate", LOST)
@pytest.mark.parametrize("call", READ_EACH_TIME)
def test_a_card_that_is_lost_tells_nothing_but_that(machine: GpuMachine, call: str, fate: str) -> None:
    machine.has(gpu(), gpu(1))
    readings = nvml.Readings(fake)
    machine.has(gpu(calls={call: fate}), gpu(1))

    first, second = readings.read()

    assert first.lost == f"NVML_ERROR_{fate}"
    nothing = dict.fromkeys(set(reading()) - {"key", "lost", "xids"})
    assert told_of(first) == {**reading(lost=first.lost), **nothing}
    assert second.lost is None


def test_a_card_that_comes_back_is_read_again(machine: GpuMachine) -> None:
    machine.has(gpu())
    readings = nvml.Readings(fake)
    machine.has(gpu(calls={"*": "GPU_IS_LOST"}))
    readings.read()
    machine.has(gpu())

    assert [told_of(each) for each in readings.read()] == [reading()]


@pytest.mark.parametrize("fate", [*LOST, "UNKNOWN"])
def test_a_card_that_cannot_be_opened_is_in_no_reading(machine: GpuMachine, fate: str) -> None:
    machine.has(gpu(calls={"nvmlDeviceGetHandleByIndex": fate}), gpu(1))

    assert [each.key for each in nvml.Readings(fake).read()] == [gpu(1)["uuid"]]


def test_hidden_cards_are_read_too(machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    machine.has(gpu(), gpu(1))

    assert len(nvml.Readings(fake).read()) == 2


@pytest.mark.parametrize(
    ("bits", "told"),
    [
        (0, ()),
        (IDLE | SW_POWER_CAP, ()),
        (fake.nvmlClocksEventReasonSwThermalSlowdown, ("thermal",)),
        (fake.nvmlClocksEventReasonHwThermalSlowdown | fake.nvmlClocksEventReasonHwSlowdown, ("thermal",)),
        (
            fake.nvmlClocksEventReasonHwPowerBrakeSlowdown | fake.nvmlClocksEventReasonHwSlowdown,
            ("power_brake",),
        ),
        (fake.nvmlClocksEventReasonHwSlowdown, ("hw_slowdown",)),
        (0xE8, ("thermal", "power_brake")),
    ],
)
def test_only_slowdowns_that_mean_trouble_are_told(
    machine: GpuMachine, bits: int, told: tuple[str, ...]
) -> None:
    machine.has(gpu(throttle=bits))

    (only,) = nvml.Readings(fake).read()

    assert only.throttled == told


def test_an_old_driver_tells_of_slowdowns_by_the_former_name(machine: GpuMachine) -> None:
    machine.has(gpu(throttle=0x8, calls={"nvmlDeviceGetCurrentClocksEventReasons": "FUNCTION_NOT_FOUND"}))

    (only,) = nvml.Readings(fake).read()

    assert only.throttled == ("hw_slowdown",)


def test_a_card_that_tells_of_no_slowdown_may_have_one(machine: GpuMachine) -> None:
    machine.has(gpu(throttle=None))

    (only,) = nvml.Readings(fake).read()

    assert only.throttled is None


@pytest.mark.parametrize(("limits", "told"), [({"1": 100}, 100), ({"1": 100, "3": 0}, 100), ({}, None)])
def test_a_card_without_a_limit_of_its_clocks_is_hot_where_its_hardware_slows_down(
    machine: GpuMachine, limits: dict[str, int], told: int | None
) -> None:
    machine.has(gpu(limits=limits))

    (only,) = nvml.Readings(fake).read()

    assert only.limit_celsius == told


def test_xids_are_told_once_and_by_the_card_that_had_them(machine: GpuMachine) -> None:
    machine.has(gpu(xids=[13]), gpu(1))
    readings = nvml.Readings(fake)
    machine.has(gpu(xids=[13, 48, 63]), gpu(1, xids=[79]))

    assert [each.xids for each in readings.read()] == [(48, 63), (79,)]
    assert [each.xids for each in readings.read()] == [(), ()]


def test_a_storm_of_xids_is_read_in_parts_and_none_is_lost(machine: GpuMachine) -> None:
    machine.has(gpu())
    readings = nvml.Readings(fake)
    machine.has(gpu(xids=list(range(100))))

    (first,), (second,) = readings.read(), readings.read()

    assert first.xids + second.xids == tuple(range(100))
    assert 0 < len(first.xids) <= 64


@pytest.mark.parametrize("call", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents"])
def test_a_card_whose_events_cannot_be_had_is_read_all_the_same(machine: GpuMachine, call: str) -> None:
    fates = {call: "UNKNOWN"}
    machine.has(gpu(calls=fates, xids=[48]), calls=fates)

    (only,) = nvml.Readings(fake).read()

    assert told_of(only) == reading()


def test_the_last_xids_of_a_lost_card_are_told(machine: GpuMachine) -> None:
    machine.has(gpu())
    readings = nvml.Readings(fake)
    machine.has(gpu(xids=[79], calls={"nvmlDeviceGetMemoryInfo": "GPU_IS_LOST"}))

    (only,) = readings.read()

    assert (only.lost, only.xids) == ("NVML_ERROR_GPU_IS_LOST", (79,))
