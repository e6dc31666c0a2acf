"""What is known of GPUs by their names: memory, bandwidth, compute capability, and how they weigh against one
another.

Decoding reads all weights of a model for each token, so its rate is bound by the memory's bandwidth: the
weight of a GPU is its bandwidth in TB/s. A name that is not in the table falls
back to the median of its compute capability, and that to 1.0.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from statistics import median

from balancer.core.device import Device


class Precision(StrEnum):
    """A number format that a GPU computes in."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    FP4 = "fp4"


PRECISIONS = {Precision.FP16: (5, 3), Precision.BF16: (8, 0), Precision.FP8: (8, 9), Precision.FP4: (10, 0)}
"""From which compute capability on. Source: NVIDIA CUDA Programming Guide, Compute Capabilities: 16-bit
floating point arithmetic, and the data types of the tensor cores."""

_SIZE = re.compile(r"(?<![a-z0-9])[0-9]+ ?gi?b?(?![a-z0-9])")


@dataclass(frozen=True, slots=True)
class Capability:
    """One GPU as it is sold. Memory in GB as marketed, one figure for each size with that bandwidth."""

    name: str
    compute_capability: tuple[int, int]
    bandwidth_gb_per_second: float
    memory_gb: tuple[int, ...]
    source: str

    @property
    def precisions(self) -> frozenset[Precision]:
        """The number formats that it computes in, beside FP32."""
        return precisions(self.compute_capability)


def precisions(compute_capability: tuple[int, int]) -> frozenset[Precision]:
    """The number formats that GPUs of this compute capability compute in, beside FP32."""
    return frozenset(each for each, since in PRECISIONS.items() if compute_capability >= since)


def capability_of(name: str, memory_bytes: int | None = None) -> Capability | None:
    """What is known of a GPU by its name as the driver tells it, or as people write it; of several of one
    name the one whose memory is nearest. None where the name is unknown, or says more than is known:
    a 'Laptop GPU' or a 'Ti' is never taken for the card without it."""
    words = _words(name)
    found: list[Capability] = []
    length = 0
    for row, wanted in _rows():
        at = _position(wanted, words)
        if at is None or len(wanted) < length:
            continue
        if _TELLING & set(words[:at] + words[at + len(wanted) :]):
            continue
        found = [*found, row] if len(wanted) == length else [row]
        length = len(wanted)
    if not found:
        return None
    return min(found, key=lambda row: _distance(row, memory_bytes))


def weight_of(device: Device) -> float:
    """The weight of a GPU against others, its bandwidth in TB/s; 1.0 where nothing is known of it. Never
    below 0.01. A plan makes of it the weights of instances."""
    row = capability_of(device.name, device.memory_bytes)
    bandwidth = row.bandwidth_gb_per_second if row else _typical().get(device.compute_capability)
    return 1.0 if bandwidth is None else max(0.01, round(bandwidth / 1000, 2))


def _distance(row: Capability, memory_bytes: int | None) -> float:
    """How far the memory is from that of a row; 0 where it is not known."""
    if memory_bytes is None:
        return 0.0
    return min(abs(size - memory_bytes / 1e9) for size in row.memory_gb)


def _words(name: str) -> tuple[str, ...]:
    """Letters and digits apart, so that 'RTX 4070Ti' and 'A100-SXM4' read as their longer forms do; sizes
    of memory left out."""
    return tuple(re.findall(r"[a-z]+|[0-9]+", _SIZE.sub(" ", name.casefold())))


def _position(wanted: tuple[str, ...], words: tuple[str, ...]) -> int | None:
    """Where the words stand, next to each other and in this order."""
    starts = range(len(words) - len(wanted) + 1)
    return next((at for at in starts if words[at : at + len(wanted)] == wanted), None)


@cache
def _rows() -> tuple[tuple[Capability, tuple[str, ...]], ...]:
    return tuple((row, _words(row.name)) for row in _read(TABLE))


@cache
def _typical() -> dict[tuple[int, int] | None, float]:
    """The median bandwidth of each compute capability."""
    of_each: dict[tuple[int, int] | None, list[float]] = {}
    for row, _ in _rows():
        of_each.setdefault(row.compute_capability, []).append(row.bandwidth_gb_per_second)
    return {capability: float(median(each)) for capability, each in of_each.items()}


def _read(table: str) -> Iterator[Capability]:
    """The rows of the table; a line in brackets is the source of those below it."""
    source = ""
    for line in filter(None, map(str.strip, table.splitlines())):
        if line.startswith("["):
            source = line.strip("[]")
            continue
        name, capability, bandwidth, sizes = (each.strip() for each in line.split("|"))
        major, minor = capability.split(".")
        yield Capability(
            name=name,
            compute_capability=(int(major), int(minor)),
            bandwidth_gb_per_second=float(bandwidth),
            memory_gb=tuple(int(each) for each in sizes.split()),
            source=source,
        )


_TELLING = {"ti", "super", "laptop", "mobile", "max", "q", "titan", "d", "m", "x"} | {
    *("ada", "pro", "blackwell", "quadro", "sff", "nvl", "pcie", "sxm", "grid", "vgpu", "g", "s")
}
"""Words that make another card of a name; all others ('NVIDIA', 'GeForce', 'HBM3') add nothing."""

TABLE = """
[NVIDIA GeForce 10 series, specifications]
GTX 1050                   | 6.1 |  112 | 2
GTX 1050 Ti                | 6.1 |  112 | 4
GTX 1060                   | 6.1 |  192 | 3 6
GTX 1070                   | 6.1 |  256 | 8
GTX 1070 Ti                | 6.1 |  256 | 8
GTX 1080                   | 6.1 |  320 | 8
GTX 1080 Ti                | 6.1 |  484 | 11
TITAN X                    | 6.1 |  480 | 12
TITAN Xp                   | 6.1 |  548 | 12
[NVIDIA GeForce 16 and 20 series and TITAN, specifications]
GTX 1650                   | 7.5 |  128 | 4
GTX 1650 SUPER             | 7.5 |  192 | 4
GTX 1660                   | 7.5 |  192 | 6
GTX 1660 Ti                | 7.5 |  288 | 6
GTX 1660 SUPER             | 7.5 |  336 | 6
RTX 2060                   | 7.5 |  336 | 6 12
RTX 2060 SUPER             | 7.5 |  448 | 8
RTX 2070                   | 7.5 |  448 | 8
RTX 2070 SUPER             | 7.5 |  448 | 8
RTX 2080                   | 7.5 |  448 | 8
RTX 2080 SUPER             | 7.5 |  496 | 8
RTX 2080 Ti                | 7.5 |  616 | 11
TITAN RTX                  | 7.5 |  672 | 24
TITAN V                    | 7.0 |  653 | 12
[NVIDIA GeForce 30 series, specifications]
RTX 3050                   | 8.6 |  224 | 8
RTX 3050                   | 8.6 |  168 | 6
RTX 3060                   | 8.6 |  360 | 12
RTX 3060                   | 8.6 |  240 | 8
RTX 3060 Ti                | 8.6 |  448 | 8
RTX 3070                   | 8.6 |  448 | 8
RTX 3070 Ti                | 8.6 |  608 | 8
RTX 3080                   | 8.6 |  760 | 10
RTX 3080                   | 8.6 |  912 | 12
RTX 3080 Ti                | 8.6 |  912 | 12
RTX 3090                   | 8.6 |  936 | 24
RTX 3090 Ti                | 8.6 | 1008 | 24
RTX 3050 Laptop            | 8.6 |  192 | 4
RTX 3060 Laptop            | 8.6 |  336 | 6
RTX 3070 Laptop            | 8.6 |  448 | 8
RTX 3080 Laptop            | 8.6 |  448 | 8 16
RTX 3080 Ti Laptop         | 8.6 |  512 | 16
[NVIDIA GeForce 40 series, specifications]
RTX 4060                   | 8.9 |  272 | 8
RTX 4060 Ti                | 8.9 |  288 | 8 16
RTX 4070                   | 8.9 |  504 | 12
RTX 4070 SUPER             | 8.9 |  504 | 12
RTX 4070 Ti                | 8.9 |  504 | 12
RTX 4070 Ti SUPER          | 8.9 |  672 | 16
RTX 4080                   | 8.9 |  717 | 16
RTX 4080 SUPER             | 8.9 |  736 | 16
RTX 4090                   | 8.9 | 1008 | 24
RTX 4090 D                 | 8.9 | 1008 | 24
RTX 4050 Laptop            | 8.9 |  192 | 6
RTX 4060 Laptop            | 8.9 |  256 | 8
RTX 4070 Laptop            | 8.9 |  256 | 8
RTX 4080 Laptop            | 8.9 |  432 | 12
RTX 4090 Laptop            | 8.9 |  576 | 16
[NVIDIA GeForce 50 series, specifications]
RTX 5050                   | 12.0 |  320 | 8
RTX 5060                   | 12.0 |  448 | 8
RTX 5060 Ti                | 12.0 |  448 | 8 16
RTX 5070                   | 12.0 |  672 | 12
RTX 5070 Ti                | 12.0 |  896 | 16
RTX 5080                   | 12.0 |  960 | 16
RTX 5090                   | 12.0 | 1792 | 32
RTX 5090 D                 | 12.0 | 1792 | 32
RTX 5060 Laptop            | 12.0 |  384 | 8
RTX 5070 Laptop            | 12.0 |  384 | 8
RTX 5070 Ti Laptop         | 12.0 |  672 | 12
RTX 5080 Laptop            | 12.0 |  896 | 16
RTX 5090 Laptop            | 12.0 |  896 | 24
[NVIDIA Quadro RTX, data sheets]
Quadro RTX 4000            | 7.5 |  416 | 8
Quadro RTX 5000            | 7.5 |  448 | 16
Quadro RTX 6000            | 7.5 |  672 | 24
Quadro RTX 8000            | 7.5 |  672 | 48
[NVIDIA RTX A series, data sheets]
RTX A2000                  | 8.6 |  288 | 6 12
RTX A4000                  | 8.6 |  448 | 16
RTX A4500                  | 8.6 |  640 | 20
RTX A5000                  | 8.6 |  768 | 24
RTX A5500                  | 8.6 |  768 | 24
RTX A6000                  | 8.6 |  768 | 48
[NVIDIA RTX Ada Generation, data sheets]
RTX 2000 Ada               | 8.9 |  224 | 16
RTX 4000 SFF Ada           | 8.9 |  280 | 20
RTX 4000 Ada               | 8.9 |  360 | 20
RTX 4500 Ada               | 8.9 |  432 | 24
RTX 5000 Ada               | 8.9 |  576 | 32
RTX 6000 Ada               | 8.9 |  960 | 48
[NVIDIA RTX PRO Blackwell, data sheets]
RTX PRO 2000 Blackwell     | 12.0 |  288 | 16
RTX PRO 4000 Blackwell     | 12.0 |  672 | 24
RTX PRO 4500 Blackwell     | 12.0 |  896 | 32
RTX PRO 5000 Blackwell     | 12.0 | 1344 | 48 72
RTX PRO 6000 Blackwell     | 12.0 | 1792 | 96
RTX PRO 6000 Blackwell Max-Q  | 12.0 | 1792 | 96
RTX PRO 6000 Blackwell Server | 12.0 | 1597 | 96
[NVIDIA Tesla P4, P40, P100, V100, data sheets]
P4                         | 6.1 |  192 | 8
P40                        | 6.1 |  346 | 24
P100                       | 6.0 |  732 | 16
P100                       | 6.0 |  549 | 12
P100 SXM2                  | 6.0 |  732 | 16
P100 PCIE                  | 6.0 |  732 | 16
P100 PCIE                  | 6.0 |  549 | 12
V100                       | 7.0 |  900 | 16 32
V100 SXM2                  | 7.0 |  900 | 16 32
V100 PCIE                  | 7.0 |  900 | 16 32
V100S PCIE                 | 7.0 | 1134 | 32
[NVIDIA T4, A2, A10, A16, A30, A40, A100, data sheets]
T4                         | 7.5 |  320 | 16
A2                         | 8.6 |  200 | 16
A10                        | 8.6 |  600 | 24
A10G                       | 8.6 |  600 | 24
A16                        | 8.6 |  200 | 16
A30                        | 8.0 |  933 | 24
A40                        | 8.6 |  696 | 48
A100                       | 8.0 | 1555 | 40
A100                       | 8.0 | 1935 | 80
A100 PCIE                  | 8.0 | 1555 | 40
A100 PCIE                  | 8.0 | 1935 | 80
A100 SXM4                  | 8.0 | 1555 | 40
A100 SXM4                  | 8.0 | 2039 | 80
[NVIDIA L4, L40, L40S, data sheets]
L4                         | 8.9 |  300 | 24
L40                        | 8.9 |  864 | 48
L40S                       | 8.9 |  864 | 48
[NVIDIA H20, H100, H200, GH200, data sheets]
H20                        | 9.0 | 4000 | 96
H100                       | 9.0 | 3350 | 80
H100 PCIe                  | 9.0 | 2000 | 80
H100 NVL                   | 9.0 | 3900 | 94
H200                       | 9.0 | 4800 | 141
H200 NVL                   | 9.0 | 4800 | 141
GH200                      | 9.0 | 4000 | 96
GH200                      | 9.0 | 4900 | 144
[NVIDIA B200, GB200, B300, GB300, data sheets]
B200                       | 10.0 | 8000 | 180 192
GB200                      | 10.0 | 8000 | 186 192
B300                       | 10.3 | 8000 | 270 288
GB300                      | 10.3 | 8000 | 279 288
[NVIDIA Jetson and DGX Spark, data sheets]
Orin                       | 8.7 |  205 | 32 64
Thor                       | 11.0 |  273 | 128
GB10                       | 12.1 |  273 | 128
"""
