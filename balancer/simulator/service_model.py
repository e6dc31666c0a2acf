"""What a model costs in time: prefill, decode and load, as pure functions of rates.

The one model of time that the simulated server and the fleet in virtual time share.
It knows tokens, bytes and seconds; it knows no slots, queues, requests or
clocks. Called by runner (the server) and by virtual.execution (the fleet).
"""

from __future__ import annotations

from dataclasses import dataclass

# Source: llama-server's default; a cancel is only seen between two batches.
BATCH_TOKENS = 512
# Bandwidth of a GPU's memory over a desktop's: about 1000 GB/s over 50 GB/s.
_CPU_FACTOR = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRates:
    """How fast one device serves one model.

    `parallel_slowdown` is the share by which each further decoding slot lengthens a
    decode step (0 = batching is free, 1 = slots share the device evenly).
    `decode_while_prefilling` is what is left of a runner's decode rate while it
    evaluates a prompt for another slot: the two go in turns, batch by batch.
    Tokens that come back from the prompt cache in host memory cost a copy,
    `restore_tokens_per_second` (some 128 KiB a token of an 8B model at 10 GB/s).
    """

    prefill_tokens_per_second: float = 2000.0
    decode_tokens_per_second: float = 50.0
    parallel_slowdown: float = 0.1
    decode_while_prefilling: float = 0.35
    restore_tokens_per_second: float = 80_000.0
    load_bytes_per_second: float = 2e9
    load_base_seconds: float = 0.5

    def scaled(self, factor: float) -> ServiceRates:
        """The same device `factor` times slower (a factor below 1 makes it faster)."""
        return ServiceRates(
            prefill_tokens_per_second=self.prefill_tokens_per_second / factor,
            decode_tokens_per_second=self.decode_tokens_per_second / factor,
            parallel_slowdown=self.parallel_slowdown,
            decode_while_prefilling=self.decode_while_prefilling,
            restore_tokens_per_second=self.restore_tokens_per_second,
            load_bytes_per_second=self.load_bytes_per_second / factor,
            load_base_seconds=self.load_base_seconds * factor,
        )


def prefill_batches(uncached_tokens: int, batch_tokens: int = BATCH_TOKENS) -> list[int]:
    """The token counts of the batches that a prompt is evaluated in, in order."""
    if uncached_tokens <= 0:
        return []
    whole, rest = divmod(uncached_tokens, batch_tokens)
    return [batch_tokens] * whole + ([rest] if rest else [])


def prefill_seconds(
    rates: ServiceRates, uncached_tokens: float, prefilling: int = 1, sharing: int = 1
) -> float:
    """Time to evaluate so many prompt tokens that are in no cache, while `prefilling` slots of the runner
    (at least one) evaluate prompts and `sharing` runners (at least one) work on the device."""
    return uncached_tokens * max(prefilling, 1) * sharing / rates.prefill_tokens_per_second


def decode_seconds_per_token(
    rates: ServiceRates, decoding: int, prefilling: int = 0, sharing: int = 1
) -> float:
    """Time of one decode step while so many slots of the runner decode (at least one) and evaluate prompts,
    and `sharing` runners (at least one) work on the device."""
    step = (1 + rates.parallel_slowdown * (max(decoding, 1) - 1)) * sharing / rates.decode_tokens_per_second
    return step / rates.decode_while_prefilling if prefilling else step


def restore_seconds(rates: ServiceRates, tokens: int) -> float:
    """Time to copy so many cached tokens back from host memory."""
    return tokens / rates.restore_tokens_per_second


def on_device(rates: ServiceRates, share: float) -> ServiceRates:
    """The rates of a runner of which only this share (0 to 1) found room on its device: the rest runs on
    the CPU, whose memory is some 20 times slower."""
    return rates if share >= 1 else rates.scaled(share + _CPU_FACTOR * (1 - share))


def load_seconds(rates: ServiceRates, weight_bytes: int) -> float:
    """Time from an empty device to a runner that answers."""
    return rates.load_base_seconds + weight_bytes / rates.load_bytes_per_second


def nanoseconds(seconds: float) -> int:
    """A duration as Ollama reports it: whole nanoseconds."""
    return max(0, round(seconds * 1e9))
