"""How much memory the balancer may use: that of its control group, else that of the machine."""

import os
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def memory_allowed(root: Path = _ROOT, own: Path = _OWN) -> int:
    """Bytes. The lowest limit of the control groups that this process is in, of version 2 or 1, where it is
    below the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for each in _limit_files(root, own) if (limit := _read(each)))])


def _limit_files(root: Path, own: Path) -> list[Path]:
    """Those of the process's groups and of all groups around them.

    Source: cgroups(7): a line of /proc/self/cgroup is `id:controllers:path`, without controllers for
    version 2. In a container the path may be one of the host's, of which only the root is to be seen.
    """
    try:
        lines = own.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = Path(path.lstrip("/"))
        files += [top / each / name for each in (group, *group.parents)]
    return files


def _read(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
