"""Every metric of the house, declared once. Labels are bounded: never a client, a key or a path."""

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from balancer.telemetry import tallies

_WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_INSTANCE_MODEL = ("instance", "model")

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """One registry of its own, so that several balancers in one process do not meet in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._declare_requests()
        self._declare_instances()
        self._declare_devices()
        self._declare_balancer()
        self.mirrored = (
            *(
                self.requests_waiting,
                self.waiting_work,
                self.model_vram,
                self.breaker_state,
                self.instance_up,
            ),
            *(self.instance_health, self.instance_ejected, self.gpu_memory_used, self.gpu_memory_total),
            *(
                self.gpu_utilization,
                self.gpu_temperature,
                self.gpu_power,
                self.gpu_reading_age,
                self.gpu_health,
            ),
        )
        """Gauges with labels that are written anew for each look: what is gone must not stay in them."""

    def render(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self.registry)

    def _declare_requests(self) -> None:
        self.requests = self._counter(
            "balancer_requests", "Requests ended, by outcome", (*_INSTANCE_MODEL, "dialect", "outcome")
        )
        self.requests_running = tallies.Gauge(
            "balancer_requests_running", "Requests at an instance", _INSTANCE_MODEL, registry=self.registry
        )
        self.requests_waiting = self._gauge(
            "balancer_requests_waiting", "Requests in the queue", ("model", "class")
        )
        self.waiting_work = self._gauge(
            "balancer_waiting_work_seconds",
            "Work of the requests in the queue, in seconds of a device's time",
            ("model", "class"),
        )
        self.queue_duration = self._histogram(
            "balancer_queue_duration_seconds", "Time in the queue", ("model",)
        )
        self.time_to_first_token = self._histogram(
            "balancer_time_to_first_token_seconds",
            "From arrival to the first byte of the answer's body",
            ("model",),
        )
        self.request_duration = self._histogram(
            "balancer_request_duration_seconds", "From arrival to the end of the answer", ("model",)
        )
        self.time_per_output_token = self._histogram(
            "balancer_time_per_output_token_seconds", "As the instance counted it", ("model",), _PER_TOKEN
        )
        self.prompt_tokens = self._counter(
            "balancer_prompt_tokens", "Prompt tokens evaluated or cached", _INSTANCE_MODEL
        )
        self.generation_tokens = self._counter(
            "balancer_generation_tokens", "Tokens generated", _INSTANCE_MODEL
        )
        self._declare_prefixes()
        self.retries = self._counter("balancer_retries", "Further tries of requests", ("reason",))
        self.retries_refused = self._counter(
            "balancer_retries_refused", "Further tries that the retry budget did not allow", ()
        )
        self.hedges = self._counter(
            "balancer_hedges", "Requests that a second instance was asked for, too, by its fate", ("outcome",)
        )
        self.rejections = self._counter(
            "balancer_rejections", "Requests turned away by the balancer", ("reason",)
        )
        self.errors = self._counter("balancer_errors", "Failures of instances", (*_INSTANCE_MODEL, "kind"))

    def _declare_prefixes(self) -> None:
        self.prefix_lookups = self._counter(
            "balancer_prefix_cache_lookups", "Requests whose prompt was looked up there", _INSTANCE_MODEL
        )
        self.prefix_hits = self._counter(
            "balancer_prefix_cache_hits",
            "Those of which a beginning was believed to be cached there",
            _INSTANCE_MODEL,
        )
        self.prefix_believed_tokens = self._counter(
            "balancer_prefix_cache_believed_tokens",
            "Prompt tokens believed to be cached, of answers that tell how it was",
            _INSTANCE_MODEL,
        )
        self.prefix_inferred_tokens = self._counter(
            "balancer_prefix_cache_inferred_tokens",
            "Prompt tokens that were cached, by how long their evaluation took",
            _INSTANCE_MODEL,
        )
        self.prefix_index_bytes = self._gauge(
            "balancer_prefix_index_bytes", "What is remembered of prompts, about", ()
        )

    def _declare_instances(self) -> None:
        self.instance_up = self._gauge(
            "balancer_instance_up", "1 where an instance answers its probes", ("instance",)
        )
        self.instance_health = self._gauge(
            "balancer_instance_health", "1 healthy, lower where degraded, 0 down", ("instance",)
        )
        self.instance_ejected = self._gauge(
            "balancer_instance_ejected", "1 where an outlier is left alone for a while", ("instance",)
        )
        self.instance_restarts = self._counter(
            "balancer_instance_restarts",
            "Managed instances started anew",
            ("instance", "reason"),
        )
        self.breaker_state = self._gauge(
            "balancer_breaker_state",
            "0 closed, 1 half-open, 2 open; an instance's own has an empty model",
            _INSTANCE_MODEL,
        )
        self.model_vram = self._gauge(
            "balancer_model_vram_bytes", "Device memory of a runner", _INSTANCE_MODEL
        )
        self.model_loads = self._counter(
            "balancer_model_loads", "Loads that the balancer began", (*_INSTANCE_MODEL, "cause")
        )
        self.model_load_duration = self._histogram(
            "balancer_model_load_duration_seconds", "Loads that went well", ("model",)
        )
        self.model_evictions = self._counter(
            "balancer_model_evictions", "Models that the balancer unloaded", ("model", "reason")
        )

    def _declare_devices(self) -> None:
        self.gpu_memory_used = self._gauge(
            "balancer_gpu_memory_used_bytes", "Device memory in use, by whomever", ("device",)
        )
        self.gpu_memory_total = self._gauge(
            "balancer_gpu_memory_total_bytes", "Device memory there is", ("device",)
        )
        self.gpu_utilization = self._gauge(
            "balancer_gpu_utilization_ratio",
            "Share of time in which the device computed, 0 to 1",
            ("device",),
        )
        self.gpu_temperature = self._gauge(
            "balancer_gpu_temperature_celsius", "Temperature of the device", ("device",)
        )
        self.gpu_power = self._gauge("balancer_gpu_power_watts", "Power that the device draws", ("device",))
        self.gpu_reading_age = self._gauge(
            "balancer_gpu_reading_age_seconds", "How old the other values of the device are", ("device",)
        )
        self.gpu_health = self._gauge(
            "balancer_gpu_health", "1 healthy, lower where degraded, 0 lost", ("device",)
        )
        self.gpu_detection_success = self._gauge(
            "balancer_gpu_detection_success", "0 where it is not known whether there are devices", ()
        )
        self.gpu_faults = self._counter(
            "balancer_gpu_faults", "Faults that the driver reported", ("device", "kind")
        )

    def _declare_balancer(self) -> None:
        self.proxy_overhead = self._histogram(
            "balancer_proxy_overhead_seconds",
            "Time in the balancer's own code before the first byte",
            (),
            _OVERHEAD,
        )
        self.loop_lag = self._gauge(
            "balancer_loop_lag_seconds", "How late the event loop ran its newest tick", ()
        )
        self.body_memory = self._gauge("balancer_body_memory_bytes", "Held of request bodies", ())
        self.stream_memory = self._gauge(
            "balancer_stream_memory_bytes", "What slow readers have left of their streams", ()
        )
        self.config_reload_success = self._gauge(
            "balancer_config_reload_success", "1 where the newest reload of the configuration went well", ()
        )
        self.config_reload_timestamp = self._gauge(
            "balancer_config_reload_timestamp_seconds",
            "When the configuration in force was last loaded, Unix time",
            (),
        )
        self.build_info = self._gauge("balancer_build_info", "1, with the version as label", ("version",))

    def _counter(self, name: str, about: str, labels: tuple[str, ...]) -> tallies.Counter:
        return tallies.Counter(name, about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, about, labels, registry=self.registry)

    def _histogram(
        self, name: str, about: str, labels: tuple[str, ...], buckets: tuple[float, ...] = _WAITS
    ) -> tallies.Histogram:
        return tallies.Histogram(name, about, labels, buckets=buckets, registry=self.registry)
