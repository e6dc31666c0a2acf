"""What CUDA_VISIBLE_DEVICES leaves, and GPUs that are here and not detected."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from balancer.provisioning.cuda_visible import visible
from balancer.provisioning.other_gpus import AMD, INTEL, NVIDIA, other_gpus
from balancer.settings.sources import load
from tests.fakes.gpu_machine import device

FOUR = [device(number) for number in range(4)]
TWINS = [device(0, uuid="GPU-aaaa1111-0"), device(1, uuid="GPU-aaaa2222-0"), device(2, uuid="GPU-bbbb-0")]


def left(told: str | None, devices: Sequence[object] = FOUR) -> list[int]:
    return [each.index for each in visible(devices, told).devices]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "indices"),
    [
        (None, [0, 1, 2, 3]),
        ("2,1", [2, 1]),
        (" 3 , 0 ", [3, 0]),
        ("0,0,1", [0, 1]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,2,-1,1", [0, 2]),
        ("1,,0", [1]),
        ("1,9,0", [1]),
        ("0,none,1", [0]),
        ("٣", []),
        ("99999999999999999999999", []),
        (FOUR[2].uuid, [2]),
        (f"{FOUR[3].uuid},{FOUR[0].uuid}", [3, 0]),
        (f"0,{FOUR[3].uuid}", [0, 3]),
        ("GPU-00000001", [1]),
    ],
)
def test_the_variable_leaves_what_cuda_would_leave(told: str | None, indices: list[int]) -> None:
    assert left(told) == indices


@pytest.mark.parametrize(
    ("told", "indices"),
    [("GPU-b", [2]), ("GPU-aaaa1", [0]), ("GPU-aaaa", []), ("GPU-", []), ("bbbb", []), ("GPU-c", [])],
)
def test_the_beginning_of_a_uuid_names_a_gpu_only_where_it_is_unique(told: str, indices: list[int]) -> None:
    assert left(told, TWINS) == indices


def test_an_entry_that_names_nothing_is_said() -> None:
    (note,) = visible(FOUR, "1,9,0").notes

    assert "'9'" in note
    assert visible(FOUR, "1,0").notes == ()


def test_a_mig_instance_hides_all_else_and_is_named() -> None:
    found = visible(FOUR, "MIG-GPU-1/1/0,0")

    assert (found.devices, found.mig) == ((), "MIG-GPU-1/1/0")


@pytest.mark.parametrize(
    ("told", "order", "unlike", "said"),
    [
        ("1", None, True, True),
        ("1", "FASTEST_FIRST", True, True),
        ("1", "PCI_BUS_ID", True, False),
        ("1", None, False, False),
        (FOUR[1].uuid, None, True, False),
        (None, None, True, False),
    ],
)
def test_indices_among_unlike_cards_are_said_to_be_in_pci_order(
    told: str | None, order: str | None, unlike: bool, said: bool
) -> None:
    devices = [device(0, name="slow" if unlike else "fast"), device(1, name="fast")]

    assert any("PCI order" in note for note in visible(devices, told, order).notes) is said


# -- GPUs that are not detected


def pci(root: Path, address: str, maker: str, pci_class: str = "0x030000") -> None:
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{maker}\n")
    (folder / "class").write_text(f"{pci_class}\n")


@pytest.mark.parametrize(
    ("maker", "nvidia_found", "named"),
    [
        (AMD, False, "AMD"),
        (AMD, True, "AMD"),
        (INTEL, False, "Intel"),
        (INTEL, True, None),
        (NVIDIA, False, "NVIDIA"),
        (NVIDIA, True, None),
        ("0x1a03", False, None),
    ],
)
def test_gpus_that_are_not_detected_are_named(
    tmp_path: Path, maker: str, nvidia_found: bool, named: str | None
) -> None:
    pci(tmp_path, "0000:01:00.0", maker, "0x038000")
    pci(tmp_path, "0000:02:00.0", maker)
    pci(tmp_path, "0000:03:00.0", AMD, "0x060400")
    (tmp_path / "sys/bus/pci/devices/0000:04:00.0").mkdir()

    notes = other_gpus(nvidia_found=nvidia_found, root=tmp_path, platform="linux")

    assert [named is not None and named in each for each in notes] == ([True] if named else [])


def test_an_accelerator_without_a_display_is_a_gpu_too(tmp_path: Path) -> None:
    pci(tmp_path, "0000:01:00.0", AMD, "0x120000")

    assert len(other_gpus(nvidia_found=False, root=tmp_path, platform="linux")) == 1


def test_the_kernels_compute_device_tells_of_an_amd_gpu(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()

    (note,) = other_gpus(nvidia_found=True, root=tmp_path, platform="linux")

    assert "AMD" in note


def test_a_machine_without_any_list_of_devices_has_nothing_to_tell(tmp_path: Path) -> None:
    assert other_gpus(nvidia_found=False, root=tmp_path, platform="linux") == ()


@pytest.mark.parametrize(("platform", "maker"), [("darwin", None), ("linux", AMD), ("linux", INTEL)])
def test_what_is_to_be_written_instead_can_be_pasted(
    tmp_path: Path, platform: str, maker: str | None
) -> None:
    if maker:
        pci(tmp_path, "0000:01:00.0", maker)

    (note,) = other_gpus(nvidia_found=False, root=tmp_path, platform=platform)

    path = tmp_path / "written.yaml"
    path.write_text(note[note.index("instances:") :])
    (only,) = load([path], environ={}).instances
    assert (only.name, only.url) == ("gpu0", "http://127.0.0.1:11434")
