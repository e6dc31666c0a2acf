"""Logs and metrics: one line an event whatever is in it, and names that dashboards rely on."""

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.telemetry.logs import Logger, make_logger
from balancer.telemetry.metrics import Metrics
from balancer.telemetry.tallies import Tally

# Every metric that is there already, with its labels, as the public face spells them.
PROMISED = {
    "balancer_requests_total": {"instance", "model", "dialect", "outcome"},
    "balancer_requests_running": {"instance", "model"},
    "balancer_requests_waiting": {"model", "class"},
    "balancer_waiting_work_seconds": {"model", "class"},
    "balancer_queue_duration_seconds": {"model"},
    "balancer_time_to_first_token_seconds": {"model"},
    "balancer_request_duration_seconds": {"model"},
    "balancer_time_per_output_token_seconds": {"model"},
    "balancer_prompt_tokens_total": {"instance", "model"},
    "balancer_generation_tokens_total": {"instance", "model"},
    "balancer_prefix_cache_lookups_total": {"instance", "model"},
    "balancer_prefix_cache_hits_total": {"instance", "model"},
    "balancer_prefix_cache_believed_tokens_total": {"instance", "model"},
    "balancer_prefix_cache_inferred_tokens_total": {"instance", "model"},
    "balancer_prefix_index_bytes": set(),
    "balancer_model_vram_bytes": {"instance", "model"},
    "balancer_instance_up": {"instance"},
    "balancer_instance_health": {"instance"},
    "balancer_instance_ejected": {"instance"},
    "balancer_gpu_memory_used_bytes": {"device"},
    "balancer_gpu_memory_total_bytes": {"device"},
    "balancer_gpu_utilization_ratio": {"device"},
    "balancer_gpu_temperature_celsius": {"device"},
    "balancer_gpu_power_watts": {"device"},
    "balancer_gpu_reading_age_seconds": {"device"},
    "balancer_gpu_health": {"device"},
    "balancer_gpu_detection_success": set(),
    "balancer_gpu_faults_total": {"device", "kind"},
    "balancer_instance_restarts_total": {"instance", "reason"},
    "balancer_breaker_state": {"instance", "model"},
    "balancer_model_loads_total": {"instance", "model", "cause"},
    "balancer_model_load_duration_seconds": {"model"},
    "balancer_model_evictions_total": {"model", "reason"},
    "balancer_retries_refused_total": set(),
    "balancer_retries_total": {"reason"},
    "balancer_hedges_total": {"outcome"},
    "balancer_rejections_total": {"reason"},
    "balancer_errors_total": {"instance", "model", "kind"},
    "balancer_loop_lag_seconds": set(),
    "balancer_proxy_overhead_seconds": set(),
    "balancer_body_memory_bytes": set(),
    "balancer_stream_memory_bytes": set(),
    "balancer_config_reload_success": set(),
    "balancer_config_reload_timestamp_seconds": set(),
    "balancer_build_info": {"version"},
}
BOUNDED = {
    "instance",
    "model",
    "dialect",
    "outcome",
    "reason",
    "cause",
    "kind",
    "class",
    "device",
    "runtime",
    "target",
    "version",
}
HOSTILE = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from("\n\r\x00\x0b\x0c\x1b\x7f\x85\u2028\u2029\u202e\"'\\="),
    max_size=40,
)


def families(metrics: Metrics) -> dict[str, set[str]]:
    """Name and labels of every metric, as it is rendered once it was used."""
    found = {}
    for each in vars(metrics).values():
        if not hasattr(each, "_labelnames"):
            continue
        plain = not each._labelnames and not isinstance(each, Tally)
        child = each if plain else each.labels(*("x" for _ in each._labelnames))
        (getattr(child, "inc", None) or child.observe)(*([] if hasattr(child, "inc") else [1.0]))
        found[each._name + ("_total" if each._type == "counter" else "")] = set(each._labelnames)
    return found


def test_metrics_have_exactly_the_names_and_labels_promised() -> None:
    assert families(Metrics()) == PROMISED


def test_every_promised_metric_is_rendered_under_its_name() -> None:
    metrics = Metrics()
    families(metrics)
    lines = metrics.render().decode().splitlines()

    for name, labels in PROMISED.items():
        (sample, *_) = [line for line in lines if re.match(rf"{name}(_count)?[ {{]", line)]
        assert labels == set(re.findall(r'([a-z_]+)="', sample))


def test_every_metric_says_what_it_is_and_no_label_is_unbounded() -> None:
    metrics = Metrics()

    for name, labels in families(metrics).items():
        assert labels <= BOUNDED, name
        assert f"# HELP {name} " in metrics.render().decode()


def test_two_balancers_in_one_process_do_not_count_together() -> None:
    one, other = Metrics(), Metrics()
    one.retries.labels("connect").inc()

    assert b'balancer_retries_total{reason="connect"} 1.0' in one.render()
    assert b"connect" not in other.render()


def logger(output_format: str, level: str = "info") -> tuple[Logger, io.StringIO]:
    stream = io.StringIO()
    return make_logger(level=level, output_format=output_format, stream=stream), stream


@given(HOSTILE, HOSTILE)
def test_a_json_line_is_one_line_and_gives_values_back(value: str, other: str) -> None:
    log, stream = logger("json")

    log.info("request_finished", model=value, error=other)

    text = stream.getvalue()
    assert [text[:-1]] == text.splitlines()
    told = json.loads(text)
    assert (value, other, "request_finished", "info") == (
        told["model"],
        told["error"],
        told["event"],
        told["level"],
    )


ODD = (
    st.text(max_size=10)
    | st.text("\ud800\udfffa\u00e9\x00\x7f\u2028", max_size=10)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.binary(max_size=5)
    | st.sampled_from([object(), ValueError("\ud800\n\x1b["), object, None, True, frozenset({1}), 1 << 70])
    | st.just(float("nan"))
)


@given(ODD | st.lists(ODD, max_size=3) | st.dictionaries(st.text(max_size=5), ODD, max_size=3), HOSTILE)
def test_a_json_line_is_one_of_printable_ascii_whatever_the_value(value: object, other: str) -> None:
    log, stream = logger("json")

    log.info("request_finished", model=value, error=other)

    text = stream.getvalue()
    assert text.endswith("\n")
    assert text[:-1].isascii()
    assert text[:-1].isprintable()
    assert json.loads(text)["error"] == other


@pytest.mark.parametrize("value", ["plain", "\x7f", "\x1b[2J", "é", "\ud800", "\u2028"])
def test_both_ways_to_write_a_json_line_give_the_same_value(value: str) -> None:
    log, stream = logger("json")

    log.info("request_finished", model=value, count=1 << 63, wait_seconds=0.1, nothing=None, told=True)

    told = json.loads(stream.getvalue())
    assert told["model"] == value
    assert stream.getvalue()[:-1].isprintable()
    rest = {key: told[key] for key in ("count", "wait_seconds", "nothing", "told")}
    assert rest == {"count": 1 << 63, "wait_seconds": 0.1, "nothing": None, "told": True}


@given(HOSTILE)
def test_a_console_line_is_one_line_and_controls_no_terminal(value: str) -> None:
    log, stream = logger("console")

    log.info("request_finished", model=value)

    text = stream.getvalue()
    assert [text[:-1]] == text.splitlines()
    assert text[:-1].isprintable()


def test_auto_is_json_away_from_a_terminal() -> None:
    log, stream = logger("auto")

    log.warning("instance_down", instance="a")

    assert tuple(json.loads(stream.getvalue())[key] for key in ("event", "level", "instance")) == (
        "instance_down",
        "warning",
        "a",
    )


def test_an_exception_stays_in_the_line_of_its_event() -> None:
    log, stream = logger("json")
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        log.error("request_failed", exc_info=error)

    (line,) = stream.getvalue().splitlines()
    assert "two\nlines" in json.loads(line)["exception"]


@pytest.mark.parametrize(("level", "told"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_less_severe_events_are_left_out(level: str, told: int) -> None:
    log, stream = logger("json", level)
    log.debug("a")
    log.info("b")
    log.warning("c")

    assert told == len(stream.getvalue().splitlines())


def test_times_are_told_in_utc() -> None:
    log, stream = logger("json")
    log.info("a")

    assert json.loads(stream.getvalue())["timestamp"].endswith("Z")
