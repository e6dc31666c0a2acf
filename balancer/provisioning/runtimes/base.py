"""What every runtime module needs: the host that an instance is started on, the one error, and the search
for a program.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from balancer.core.device import Device
from balancer.core.plan import PlannedInstance
from balancer.provisioning.launch import Launch
from balancer.settings import Settings


class CannotLaunch(Exception):
    """An instance cannot be started on this host; `str()` says what is missing and what to do about it."""


@dataclass(frozen=True, slots=True)
class Host:
    """What a launch depends on besides the instance: the devices as they were detected, the balancer's own
    environment, and the settings."""

    devices: tuple[Device, ...]
    environ: Mapping[str, str]
    settings: Settings

    def devices_of(self, instance: PlannedInstance) -> tuple[Device, ...]:
        """The devices that an instance is pinned to, none for the CPU.

        Raises:
            CannotLaunch: one of them is not there.
        """
        known = {device.key: device for device in self.devices}
        if missing := [key for key in instance.devices if key not in known]:
            there = ", ".join(known) or "none"
            raise CannotLaunch(f"instance '{instance.name}' needs device '{missing[0]}'; there are {there}")
        return tuple(known[key] for key in instance.devices)


class Launcher(Protocol):
    """How an instance of one runtime is started.

    Raises:
        CannotLaunch: its program is missing, or the instance cannot run on this host.
    """

    def __call__(self, instance: PlannedInstance, host: Host, /) -> Launch: ...


def find_program(command: str, *, setting: str, install: str, environ: Mapping[str, str]) -> str:
    """The path of a program, looked for on the PATH of `environ` unless the command is a path itself.

    Raises:
        CannotLaunch: there is none that may be run; names `setting` and `install`, how to get it.
    """
    wanted = expanded(command, environ)
    found = shutil.which(wanted, path=environ.get("PATH", os.defpath))
    if found is None:
        where = "is not there, or may not be run" if os.sep in wanted else "is not on PATH"
        raise CannotLaunch(f"'{command}' {where}: {install}, or name its path in {setting}")
    return str(Path(found).absolute())


def expanded(path: str, environ: Mapping[str, str]) -> str:
    """A path with a leading `~/` replaced by the home folder of `environ`."""
    home = environ.get("HOME")
    return f"{home}/{path[2:]}" if home and path.startswith("~/") else path


def absolute(path: str, environ: Mapping[str, str]) -> Path:
    """The same from anywhere: managed processes do not run in the balancer's folder."""
    return Path(expanded(path, environ)).absolute()


def model_name(instance: PlannedInstance) -> str:
    """How an error calls what an instance of one model serves."""
    return f"'{instance.models[0]}'" if instance.models else f"of '{instance.name}'"
