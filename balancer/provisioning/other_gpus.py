"""GPUs that are here and are not detected: those of other makers, and NVIDIA's without their driver.

The look is at Linux's list of PCI devices alone; nothing is asked of any driver.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ATTACH = 'instances: [{name: gpu0, url: "http://127.0.0.1:11434"}]'
"""What to write for an Ollama that someone else started: one entry for each."""

NVIDIA, AMD, INTEL = "0x10de", "0x1002", "0x8086"
_GPU_CLASSES = ("0x03", "0x12")
"""PCI classes: display controllers and processing accelerators."""
_LIMIT = 1000


def other_gpus(
    *, nvidia_found: bool, root: Path = Path("/"), platform: str = sys.platform
) -> tuple[str, ...]:
    """One note for each kind of GPU that is here and is not detected, with what to write instead. Beside
    an NVIDIA GPU an Intel one is not named: it is likely to be the processor's own."""
    if platform == "darwin":
        return (_note("this is macOS, where no GPU is detected", "Ollama uses the GPU by itself"),)
    makers = set(_makers(root))
    notes = []
    if NVIDIA in makers and not nvidia_found:
        notes.append(
            "an NVIDIA GPU is here and cannot be used: install NVIDIA's driver; in a container, start that "
            "with NVIDIA's container toolkit and the driver capabilities compute,utility"
        )
    if AMD in makers or (root / "dev/kfd").exists():
        notes.append(_note("an AMD GPU is here and is not detected", "for each GPU by ROCR_VISIBLE_DEVICES"))
    if INTEL in makers and not nvidia_found:
        notes.append(_note("an Intel GPU is here and is not detected", "where its build can use that GPU"))
    return tuple(notes)


def _note(found: str, how: str) -> str:
    return f"{found}: start Ollama yourself ({how}) and write {ATTACH}"


def _makers(root: Path) -> Iterator[str]:
    """The makers of the GPUs on the PCI bus."""
    with suppress(OSError):
        for device, _ in zip((root / "sys/bus/pci/devices").iterdir(), range(_LIMIT), strict=False):
            with suppress(OSError):
                if (device / "class").read_text().startswith(_GPU_CLASSES):
                    yield (device / "vendor").read_text().strip()
