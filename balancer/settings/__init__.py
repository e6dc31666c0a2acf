"""The configuration of the balancer: `load` gives one frozen `Settings` from files, environment and command
line, or a `SettingsError` with everything that is wrong. The schema lives in `schema` and `groups`, what
values look like in `values`, precedence in `sources`; `json_schema` writes the schema for editors.
"""

from balancer.settings.faults import Fault, SettingsError
from balancer.settings.groups import (
    BatchingSettings,
    CacheSettings,
    CircuitBreakerSettings,
    DeviceSettings,
    HealthSettings,
    HedgingSettings,
    LimitsSettings,
    LoadBalancingSettings,
    LogSettings,
    ModelPoolSettings,
    PlacementSettings,
    ProvisioningSettings,
)
from balancer.settings.rules import refuse_fixed_changes
from balancer.settings.runtimes import (
    LlamaServerSettings,
    OllamaSettings,
    RuntimesSettings,
    ServedModelSettings,
    VllmSettings,
)
from balancer.settings.schema import PENDING, GpuInstanceSettings, InstanceSettings, Settings
from balancer.settings.sources import load
from balancer.settings.values import Address, LogFormat, LogLevel, Provision, Strategy

__all__ = [
    "PENDING",
    "Address",
    "BatchingSettings",
    "CacheSettings",
    "CircuitBreakerSettings",
    "DeviceSettings",
    "Fault",
    "GpuInstanceSettings",
    "HealthSettings",
    "HedgingSettings",
    "InstanceSettings",
    "LimitsSettings",
    "LlamaServerSettings",
    "LoadBalancingSettings",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "ModelPoolSettings",
    "OllamaSettings",
    "PlacementSettings",
    "Provision",
    "ProvisioningSettings",
    "RuntimesSettings",
    "ServedModelSettings",
    "Settings",
    "SettingsError",
    "Strategy",
    "VllmSettings",
    "load",
    "refuse_fixed_changes",
]
