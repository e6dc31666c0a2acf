"""The plan of a machine as it is: its memory, the models in its store, the ports that are taken on it."""

import os
from collections.abc import Callable, Collection

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


def planned(
    settings: Settings,
    host: Host,
    *,
    port_is_free: Callable[[int], bool] = is_free,
    others_stores: Collection[str] = (),
) -> Plan:
    """The plan for the devices of a host. Reads what models are in the store and tries ports, for some
    milliseconds. A store whose real path is one of `others_stores`, into which someone else's Ollama may just
    pull, is tidied by no instance.

    Raises:
        SettingsError: settings name what is not there, or want more than there is.
        CannotLaunch: a model of vLLM or llama-server is not there or has no room.
    """
    memory = memory_allowed()
    ports = Addresses(settings, is_free=port_is_free).ports()
    served = served_models(host, host_memory_bytes=memory, ports=ports)
    store = models_folder(host)
    environment = {**host.environ, **settings.runtimes.ollama.environment}
    return make_plan(
        host.devices,
        memory,
        settings,
        models=known_models(store),
        served=served,
        kv_cache_type=environment.get(_CACHE_TYPE, DEFAULT_CACHE_TYPE),
        port_is_free=port_is_free,
        weight_of=weight_of,
        tidies=os.path.realpath(store) not in others_stores,
    )
