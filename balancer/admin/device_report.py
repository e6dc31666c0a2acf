"""Devices as JSON-ready data and as gauges."""

from collections.abc import Mapping, Sequence

from balancer.fleet.device_state import WatchedDevice
from balancer.telemetry.metrics import Metrics


def device_row(watched: WatchedDevice, now: float) -> Mapping[str, object]:
    """One device and its newest reading, with the reading's age."""
    device, reading, age = watched.device, watched.reading, watched.age_seconds(now)
    capability = device.compute_capability
    return {
        "key": device.key,
        "index": device.index,
        "name": device.name,
        "memory_bytes": device.memory_bytes,
        "compute_capability": None if capability is None else ".".join(map(str, capability)),
        "fp16": device.fp16,
        "bf16": device.bf16,
        "state": watched.state(now).value,
        "lost": watched.lost,
        "health": round(watched.health(now), 3),
        "reading_age_seconds": None if age is None else round(age, 3),
        "memory_used_bytes": reading and reading.memory_used_bytes,
        "utilization": reading and reading.utilization,
        "temperature_celsius": reading and reading.temperature_celsius,
        "limit_celsius": reading and reading.limit_celsius,
        "power_watts": reading and reading.power_watts,
        "throttled": reading and reading.throttled,
        "ecc_uncorrected": reading and reading.ecc_uncorrected,
    }


def show_devices(metrics: Metrics, devices: Sequence[WatchedDevice], now: float) -> None:
    """Bring the gauges up to date. The values of a lost device are gone; those of one that was not read
    lately stay, and their age says so."""
    for watched in devices:
        metrics.gpu_health.labels(watched.key).set(watched.health(now))
        age, reading = watched.age_seconds(now), watched.reading
        if age is None or reading is None or watched.lost is not None:
            continue
        metrics.gpu_reading_age.labels(watched.key).set(age)
        for gauge, value in (
            (metrics.gpu_memory_used, reading.memory_used_bytes),
            (metrics.gpu_memory_total, reading.memory_total_bytes),
            (metrics.gpu_utilization, reading.utilization),
            (metrics.gpu_temperature, reading.temperature_celsius),
            (metrics.gpu_power, reading.power_watts),
        ):
            if value is not None:
                gauge.labels(watched.key).set(value)
