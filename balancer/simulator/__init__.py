"""A simulated Ollama server: real HTTP and wire shapes, simulated models, honest about it.

The embedded demo back end and the test double of everything else. Run it with
`python -m balancer.simulator`, or in process:

    async with SimulatedOllama(ServerConfig(speed=100)).running() as server:
        ...  # talk to server.url

It imports nothing from the rest of the balancer. The model of time is in
clock, service_model, prefix_cache, memory and runner_options, which are pure
and shared with simulations in virtual time.
"""

from balancer.simulator.configuration import VERSION, ServerConfig
from balancer.simulator.faults import Fault, FaultKind
from balancer.simulator.models import DEFAULT_MODELS, Kind, ModelSpec
from balancer.simulator.server import SimulatedOllama
from balancer.simulator.service_model import ServiceRates
from balancer.simulator.store import ModelStore

__all__ = [
    "DEFAULT_MODELS",
    "VERSION",
    "Fault",
    "FaultKind",
    "Kind",
    "ModelSpec",
    "ModelStore",
    "ServerConfig",
    "ServiceRates",
    "SimulatedOllama",
]
