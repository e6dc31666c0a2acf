"""Runtimes: how a planned instance becomes a process. Each runtime is one module with one function of the
form `Launcher`; nothing here starts anything.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec

from balancer.core.plan import PlannedInstance, Runtime
from balancer.provisioning.launch import Launch
from balancer.provisioning.runtimes import llama_server, ollama, vllm
from balancer.provisioning.runtimes.base import CannotLaunch, Host, Launcher
from balancer.provisioning.runtimes.shares import check_shares

LAUNCHERS: Mapping[Runtime, Launcher] = MappingProxyType(
    {
        Runtime.OLLAMA: ollama.launch,
        Runtime.VLLM: vllm.launch,
        Runtime.LLAMA_SERVER: llama_server.launch,
    }
)


def launches(instances: Iterable[PlannedInstance], host: Host) -> tuple[Launch, ...]:
    """How each of these instances is started, in the same order.

    Raises:
        CannotLaunch: a program is missing, or what is planned cannot run on this host.
    """
    planned = tuple(instances)
    check_shares(planned, host.devices)
    return tuple(
        msgspec.structs.replace(LAUNCHERS[each.runtime](each, host), devices=each.devices) for each in planned
    )


__all__ = ["LAUNCHERS", "CannotLaunch", "Host", "Launcher", "launches"]
