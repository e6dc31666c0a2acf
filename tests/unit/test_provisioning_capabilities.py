"""What is known of GPUs by name, and the weights that come of it."""

import pytest

from balancer.provisioning.capabilities import (
    TABLE,
    Capability,
    Precision,
    _rows,
    capability_of,
    precisions,
    weight_of,
)
from tests.fakes.gpu_machine import GIB, device

ROWS = [row for row, _ in _rows()]
AS_THE_DRIVER_TELLS = [
    ("NVIDIA GeForce RTX 4090", 24, 1008),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, 576),
    ("NVIDIA GeForce RTX 4090 D", 24, 1008),
    ("NVIDIA GeForce RTX 4070", 12, 504),
    ("NVIDIA GeForce RTX 4070 Ti SUPER", 16, 672),
    ("NVIDIA GeForce RTX 4070 Ti", 12, 504),
    ("NVIDIA GeForce RTX 4070 Laptop GPU", 8, 256),
    ("NVIDIA GeForce RTX 3060", 12, 360),
    ("NVIDIA GeForce RTX 3060", 8, 240),
    ("NVIDIA GeForce RTX 3060 Ti", 8, 448),
    ("NVIDIA GeForce RTX 3080", 10, 760),
    ("NVIDIA GeForce RTX 3080", 12, 912),
    ("GeForce GTX 1080 Ti", 11, 484),
    ("NVIDIA GeForce GTX 1060 6GB", 6, 192),
    ("NVIDIA TITAN RTX", 24, 672),
    ("NVIDIA TITAN Xp", 12, 548),
    ("NVIDIA RTX A6000", 48, 768),
    ("NVIDIA RTX 6000 Ada Generation", 48, 960),
    ("Quadro RTX 6000", 24, 672),
    ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 96, 1792),
    ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 96, 1792),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 96, 1597),
    ("NVIDIA RTX 4000 SFF Ada Generation", 20, 280),
    ("Tesla T4", 16, 320),
    ("Tesla P40", 24, 346),
    ("Tesla P100-PCIE-16GB", 16, 732),
    ("Tesla P100-PCIE-12GB", 12, 549),
    ("Tesla V100-SXM2-32GB", 32, 900),
    ("Tesla V100S-PCIE-32GB", 32, 1134),
    ("NVIDIA A10G", 24, 600),
    ("NVIDIA A10", 24, 600),
    ("NVIDIA A16", 16, 200),
    ("NVIDIA A100-SXM4-40GB", 40, 1555),
    ("NVIDIA A100-SXM4-80GB", 80, 2039),
    ("NVIDIA A100-PCIE-40GB", 40, 1555),
    ("NVIDIA A100 80GB PCIe", 80, 1935),
    ("NVIDIA L4", 24, 300),
    ("NVIDIA L40", 48, 864),
    ("NVIDIA L40S", 48, 864),
    ("NVIDIA H100 80GB HBM3", 80, 3350),
    ("NVIDIA H100 PCIe", 80, 2000),
    ("NVIDIA H100 NVL", 94, 3900),
    ("NVIDIA H200", 141, 4800),
    ("NVIDIA GH200 480GB", 96, 4000),
    ("NVIDIA GH200 144G HBM3e", 144, 4900),
    ("NVIDIA B200", 180, 8000),
    ("NVIDIA GB10", 128, 273),
]


@pytest.mark.parametrize(("name", "gib", "bandwidth"), AS_THE_DRIVER_TELLS)
def test_a_name_as_the_driver_tells_it_is_known(name: str, gib: int, bandwidth: float) -> None:
    row = capability_of(name, gib * GIB)

    assert row is not None
    assert row.bandwidth_gb_per_second == bandwidth


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("RTX 4090", "RTX 4090"),
        ("rtx4070ti super", "RTX 4070 Ti SUPER"),
        ("Rtx 3060 TI", "RTX 3060 Ti"),
        ("a40", "A40"),
        ("H100", "H100"),
    ],
)
def test_a_name_as_people_write_it_is_known(name: str, known_as: str) -> None:
    row = capability_of(name)

    assert row is not None
    assert row.name == known_as


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name} {row.memory_gb[0]}")
def test_every_row_is_found_by_its_own_name_and_memory(row: Capability) -> None:
    for size in row.memory_gb:
        assert capability_of(f"NVIDIA {row.name}", size * 10**9) == row


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4060 SUPER",
        "NVIDIA GeForce GTX 1070 with Max-Q Design",
        "NVIDIA GeForce RTX 5050 Laptop GPU",
        "NVIDIA T400 4GB",
        "NVIDIA RTX 6000",
        "NVIDIA L400",
        "NVIDIA A100X",
        "NVIDIA T4G",
        "GeForce RTX 9090",
        "AMD Radeon RX 7900 XTX",
        "",
        "NVIDIA",
        "\u0661",
    ],
)
def test_a_name_that_says_more_than_is_known_is_unknown(name: str) -> None:
    assert capability_of(name, 16 * GIB) is None


def test_weights_are_the_bandwidth_in_terabytes_a_second() -> None:
    assert weight_of(device(name="NVIDIA GeForce RTX 4090")) == 1.01
    assert weight_of(device(name="Tesla T4", memory_bytes=15 * GIB)) == 0.32
    assert weight_of(device(name="NVIDIA H200", memory_bytes=140 * GIB)) == 4.8


def test_an_unknown_name_weighs_what_its_compute_capability_does() -> None:
    ampere = weight_of(device(name="RTX A7000", compute_capability=(8, 6)))
    hopper = weight_of(device(name="H900", compute_capability=(9, 0)))

    assert 0.3 < ampere < 0.9
    assert 3 < hopper < 5


@pytest.mark.parametrize("compute_capability", [None, (3, 5), (99, 0)])
def test_what_nothing_is_known_of_weighs_one(compute_capability: tuple[int, int] | None) -> None:
    assert weight_of(device(name="a card", compute_capability=compute_capability)) == 1.0


def test_precisions_grow_with_the_compute_capability() -> None:
    assert precisions((5, 2)) == set()
    assert precisions((7, 5)) == {Precision.FP16}
    assert precisions((8, 6)) == {Precision.FP16, Precision.BF16}
    assert precisions((8, 9)) == {Precision.FP16, Precision.BF16, Precision.FP8}
    assert precisions((12, 0)) == set(Precision)


def test_every_row_has_its_source_and_stands_once() -> None:
    keys = [(row.name, row.memory_gb) for row in ROWS]

    assert len(ROWS) == sum("|" in line for line in TABLE.splitlines()) > 100
    assert len(set(keys)) == len(keys)
    assert all(row.source.startswith("NVIDIA ") for row in ROWS)
    assert all(50 < row.bandwidth_gb_per_second < 10_000 for row in ROWS)
