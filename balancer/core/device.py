"""A device as the house names it: one GPU of this machine, and what was last read of it."""

import msgspec

CPU = "cpu"
"""What a configuration names the CPU by where it names a device."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. `index` is the driver's; `uuid` is empty for one that was only named on a command line.
    Memory is what the card reports, which is less than its name says. `compute_capability` is None where
    it is not known; `mig` says that the card is split by MIG."""

    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    uuid: str = ""
    compute_capability: tuple[int, int] | None = None
    fp16: bool = True
    bf16: bool = True
    mig: bool = False

    @property
    def key(self) -> str:
        """What `CUDA_VISIBLE_DEVICES` and the device ledger name it by: its UUID, else its index."""
        return self.uuid or str(self.index)
