"""A variant: a model together with the runner options that force Ollama to reload it."""

from collections.abc import Mapping
from typing import TypeGuard

import msgspec

from balancer.core.names import ModelName

RUNNER_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"}
)
"""Options whose change makes Ollama reload. Source: Ollama v0.33 server/sched.go, needsReload."""

OptionValue = int | float | bool | str | None


class Variant(msgspec.Struct, frozen=True):
    """What a runner is keyed by. Without options it is `auto`: whatever the instance's own
    environment gives, which is not the same as any explicit value."""

    model: ModelName
    options: tuple[tuple[str, OptionValue], ...] = ()

    @classmethod
    def of(cls, model: ModelName, options: Mapping[str, object], *, shift: bool | None = None) -> "Variant":
        """The variant that a request names by its options; those that never reload are left out, and so
        are values that the option cannot have: the instance refuses such a request itself."""
        kept: list[tuple[str, OptionValue]] = [
            (name, value)
            for name, value in sorted(options.items())
            if name in RUNNER_OPTIONS and _fits(value, name)
        ]
        if shift is not None:
            kept.append(("shift", shift))
        return cls(model, tuple(kept))

    @property
    def auto(self) -> bool:
        """Whether nothing was asked for explicitly."""
        return not self.options

    def __str__(self) -> str:
        if self.auto:
            return self.model
        return self.model + "?" + "&".join(f"{name}={value}" for name, value in self.options)


def _fits(value: object, name: str) -> TypeGuard[int | bool]:
    """Whether Ollama takes the value for the option. Source: Ollama v0.33 api/types.go, Options.FromMap."""
    if name == "use_mmap":
        return isinstance(value, bool)
    return isinstance(value, int) and not isinstance(value, bool)
