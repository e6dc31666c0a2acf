"""What a model costs in time: prefill, decode and load, as pure functions of rates.

The one model of time that the simulated server and a virtual-time fleet share.
It knows tokens, bytes and seconds; it knows no slots, queues, requests or
clocks. Called by runner (the server) and by any simulation of many servers.
"""

from __future__ import annotations

from dataclasses import dataclass

# Source: llama-server's default; a cancel is only seen between two batches.
BATCH_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRates:
    """How fast one device serves one model.

    `parallel_slowdown` is the share by which each further busy slot lengthens a
    decode step (0 = batching is free, 1 = slots share the device evenly).
    """

    prefill_tokens_per_second: float = 2000.0
    decode_tokens_per_second: float = 50.0
    parallel_slowdown: float = 0.1
    load_bytes_per_second: float = 2e9
    load_base_seconds: float = 0.5

    def scaled(self, factor: float) -> ServiceRates:
        """The same device `factor` times slower (a factor below 1 makes it faster)."""
        return ServiceRates(
            prefill_tokens_per_second=self.prefill_tokens_per_second / factor,
            decode_tokens_per_second=self.decode_tokens_per_second / factor,
            parallel_slowdown=self.parallel_slowdown,
            load_bytes_per_second=self.load_bytes_per_second / factor,
            load_base_seconds=self.load_base_seconds * factor,
        )


def prefill_batches(uncached_tokens: int, batch_tokens: int = BATCH_TOKENS) -> list[int]:
    """The token counts of the batches that a prompt is evaluated in, in order."""
    if uncached_tokens <= 0:
        return []
    whole, rest = divmod(uncached_tokens, batch_tokens)
    return [batch_tokens] * whole + ([rest] if rest else [])


def prefill_seconds(rates: ServiceRates, uncached_tokens: int) -> float:
    """Time to evaluate so many prompt tokens that are in no cache."""
    return uncached_tokens / rates.prefill_tokens_per_second


def decode_seconds_per_token(rates: ServiceRates, busy_slots: int) -> float:
    """Time of one decode step while so many slots of the runner are busy (at least one)."""
    return (1 + rates.parallel_slowdown * (max(busy_slots, 1) - 1)) / rates.decode_tokens_per_second


def load_seconds(rates: ServiceRates, weight_bytes: int) -> float:
    """Time from an empty device to a runner that answers."""
    return rates.load_base_seconds + weight_bytes / rates.load_bytes_per_second


def nanoseconds(seconds: float) -> int:
    """A duration as Ollama reports it: whole nanoseconds."""
    return max(0, round(seconds * 1e9))
