"""The plan of a machine as it is: its memory, the models in its store, the ports that are taken on it."""

from collections.abc import Collection

from balancer.core.plan import Plan
from balancer.memory import memory_allowed
from balancer.provisioning.addresses import Addresses
from balancer.provisioning.capabilities import weight_of
from balancer.provisioning.kv_cache import DEFAULT_CACHE_TYPE
from balancer.provisioning.model_store import known_models
from balancer.provisioning.plan import make_plan
from balancer.provisioning.ports import is_free
from balancer.provisioning.runtimes import Host
from balancer.provisioning.runtimes.ollama import models_folder
from balancer.provisioning.served_models import served_models
from balancer.settings import Settings

DETECT_SECONDS = 15.0
_CACHE_TYPE = "OLLAMA_KV_CACHE_TYPE"
_LOOKED_AT = 200
"""So many ports from the first on are tried; a machine that has more taken is told by its instances."""
_PORTS = 65536


def taken_ports(settings: Settings) -> Collection[int]:
    """The ports for managed instances that somebody has already. Tries them, for some milliseconds."""
    first = settings.provisioning.first_port
    return [port for port in range(first, min(first + _LOOKED_AT, _PORTS)) if not is_free(port)]


def planned(settings: Settings, host: Host, *, taken_ports: Collection[int] = ()) -> Plan:
    """The plan for the devices of a host. Reads what models are in the store, for some milliseconds.

    Raises:
        SettingsError: settings name what is not there, or want more than there is.
        CannotLaunch: a model of vLLM or llama-server is not there or has no room.
    """
    memory = memory_allowed()
    ports = Addresses(settings, taken_ports=taken_ports).ports()
    served = served_models(host, host_memory_bytes=memory, ports=ports)
    environment = {**host.environ, **settings.runtimes.ollama.environment}
    return make_plan(
        host.devices,
        memory,
        settings,
        models=known_models(models_folder(host)),
        served=served,
        kv_cache_type=environment.get(_CACHE_TYPE, DEFAULT_CACHE_TYPE),
        taken_ports=taken_ports,
        weight_of=weight_of,
    )
