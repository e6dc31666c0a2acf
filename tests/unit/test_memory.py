"""How much memory the process may use, by what its control groups say."""

import os
from pathlib import Path

import pytest

from balancer.memory import memory_allowed

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MIB = 1 << 20


def allowed(tmp_path: Path, own: bytes | None, limits: dict[str, str]) -> int:
    """By the groups that the process is in, and the files under the root."""
    file = tmp_path / "own"
    if own is not None:
        file.write_bytes(own)
    root = tmp_path / "cgroup"
    for name, text in limits.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return memory_allowed(root, file)


V1 = b"12:cpu,cpuacct:/pod\n7:memory:/pod/box\n1:name=systemd:/memory\n"


@pytest.mark.parametrize(
    ("own", "limits", "told"),
    [
        (None, {}, MACHINE),
        (b"", {"memory.max": f"{MIB}\n"}, MACHINE),
        (b"0::/\n", {}, MACHINE),
        (b"0::/\n", {"memory.max": f"{MIB}\n"}, MIB),
        (b"0::/\n", {"memory.max": "max\n"}, MACHINE),
        (b"0::/\n", {"memory.max": ""}, MACHINE),
        (b"0::/\n", {"memory.max": "0\n"}, MACHINE),
        (b"0::/\n", {"memory.max": f"{1 << 62}\n"}, MACHINE),
        (b"0::/a/b\n", {"a/b/memory.max": f"{2 * MIB}\n", "memory.max": "max"}, 2 * MIB),
        (b"0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{MIB}\n"}, MIB),
        (b"0::/a/b\n", {"a/b/memory.max": f"{3 * MIB}\n", "a/memory.max": f"{2 * MIB}"}, 2 * MIB),
        (b"0::/a:b\n", {"a:b/memory.max": f"{MIB}\n"}, MIB),
        (b"0::/of/the/host\n", {"memory.max": f"{MIB}\n"}, MIB),
        (b"0::/../../other\n", {"memory.max": f"{MIB}\n"}, MIB),
        (V1, {"memory/pod/box/memory.limit_in_bytes": f"{MIB}\n"}, MIB),
        (V1, {"memory/pod/memory.limit_in_bytes": f"{MIB}\n"}, MIB),
        (V1, {"memory/memory.limit_in_bytes": f"{MIB}\n"}, MIB),
        (V1, {"memory/pod/box/memory.limit_in_bytes": "9223372036854771712\n"}, MACHINE),
        (V1, {"cpu/pod/memory.limit_in_bytes": f"{MIB}\n", "memory.max": f"{MIB}\n"}, MACHINE),
        (b"0::/\n" + V1, {"memory.max": "max", "memory/pod/memory.limit_in_bytes": f"{MIB}\n"}, MIB),
        (b"no line of a group\n\n0::/\n", {"memory.max": f"{MIB}\n"}, MIB),
        (b"0::/\xff\xfe\n", {"memory.max": f"{MIB}\n"}, MIB),
    ],
)
def test_the_lowest_limit_around_the_process_is_told(
    tmp_path: Path, own: bytes | None, limits: dict[str, str], told: int
) -> None:
    assert told == allowed(tmp_path, own, limits)


def test_a_limit_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "cgroup" / "memory.max").mkdir(parents=True)

    assert allowed(tmp_path, b"0::/\n", {}) == MACHINE


def test_this_process_may_use_something() -> None:
    assert 0 < memory_allowed() <= MACHINE
