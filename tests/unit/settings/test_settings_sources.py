"""Where settings come from and which source wins."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from balancer.settings import Address, Settings, SettingsError, Strategy, load

CONFIG = Path(__file__).parents[3] / "config"
MODELIUM = """
# Enable runtimes
vllm:
  enabled: true

# Watch folder
orchestration:
  model_discovery:
    watch_directories: ["/models/incoming"]

# Unload policy
  policies:
    evict_after_idle_seconds: 300  # 5 minutes
    always_loaded: [gpt2]

# Metrics
metrics:
  enabled: true
  port: 9090
"""


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def settings(
    *files: Path,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    dotenv: Path | None = None,
) -> Settings:
    return load(files, environ=environ or {}, overrides=overrides or {}, dotenv=dotenv)


def test_no_source_at_all_gives_the_defaults() -> None:
    found = settings()

    assert Settings() == found
    assert Address("127.0.0.1", 11400) == found.listen
    assert Address("127.0.0.1", 11401) == found.admin_listen
    assert found.metrics_listen is None
    assert Strategy.ADAPTIVE is found.strategy
    assert found.all_instances == ()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings().strategy = Strategy.RANDOM  # type: ignore[misc]


# Each step adds the next stronger source of limits.queue_requests.
LADDER = [
    "default",
    "first file",
    "later file",
    ".env synonym",
    "synonym",
    ".env",
    "environment",
    "command line",
]


@pytest.mark.parametrize("height", range(len(LADDER)), ids=LADDER)
def test_stronger_source_wins(tmp_path: Path, height: int) -> None:
    first = write(tmp_path, "first.yaml", "limits: {queue_requests: 1}")
    later = write(tmp_path, "later.ini", "[limits]\nqueue_requests = 2\n")
    dotenv_lines = ["GPU_QUEUE_SIZE=3", "BALANCER_LIMITS__QUEUE_REQUESTS=5"]
    dotenv = write(tmp_path, ".env", "\n".join(dotenv_lines[: (height >= 3) + (height >= 5)]))
    environ = {"GPU_QUEUE_SIZE": "4"} if height >= 4 else {}
    environ |= {"BALANCER_LIMITS__QUEUE_REQUESTS": "6"} if height >= 6 else {}

    found = settings(
        *[first, later][: min(height, 2)],
        environ=environ,
        overrides={"limits.queue_requests": 7} if height >= 7 else {},
        dotenv=dotenv,
    )

    assert (height or 1000) == found.limits.queue_requests


def test_mappings_merge_and_lists_are_replaced(tmp_path: Path) -> None:
    first = write(
        tmp_path,
        "a.yaml",
        "health: {interval_seconds: 1, timeout_seconds: 2}\ninstances: [http://a, http://b]",
    )
    later = write(tmp_path, "b.yaml", "health: {timeout_seconds: 3}\ninstances: [http://c]")

    found = settings(first, later)

    assert (found.health.interval_seconds, found.health.timeout_seconds) == (1, 3)
    assert [each.url for each in found.instances] == ["http://c:80"]


def test_instances_and_gpu_instances_add_up(tmp_path: Path) -> None:
    own = write(tmp_path, "own.yaml", "instances: [{url: http://a:1, weight: 2}]")

    found = settings(CONFIG / "gpu_instances.yaml", own).all_instances

    assert [each.name for each in found] == ["a:1", "RTX 3060 Ti", "RTX 4070 Ti"]
    assert [each.url for each in found] == ["http://a:1", "http://127.0.0.1:11434", "http://127.0.0.1:11435"]
    assert [each.max_concurrent_requests for each in found] == [None, 2, 3]
    assert [each.device for each in found] == [None, "0", "1"]
    assert (found[0].host, found[0].port, found[0].tls) == ("a", 1, False)


def test_gpu_loadbalancing_section_is_read_in_full() -> None:
    found = settings(CONFIG / "gpu_loadbalancing.ini")

    assert found.load_balancing.enabled
    assert Strategy.WEIGHTED_ROUND_ROBIN is found.strategy
    assert tuple(found.health.model_dump().values())[:4] == (30, 5, 3, 2)
    assert tuple(found.batching.model_dump().values()) == (True, 4, 100)
    assert tuple(found.cache.model_dump().values()) == (True, 2**26, 30)
    assert tuple(found.circuit_breaker.model_dump().values()) == (True, 5, 60, 2)
    assert (
        sum(
            len(group) if isinstance(group, dict) else 1
            for group in found.model_dump(exclude_unset=True).values()
        )
        == 14
    )


def test_gpu_instances_are_read_in_full() -> None:
    first, second = settings(CONFIG / "gpu_instances.yaml").gpu_instances

    assert (
        first.gpu_id,
        first.name,
        first.port,
        first.memory_limit,
        first.max_concurrent_requests,
    ) == (0, "RTX 3060 Ti", 11434, 7 * 10**9, 2)
    assert second.models == ("codegemma:7b", "gemma2:9b")


@pytest.mark.parametrize("name", ["both.ini", "both.yaml", "both", "both.conf"])
@pytest.mark.parametrize("ini_first", [True, False])
def test_both_dialects_may_share_one_file(tmp_path: Path, name: str, ini_first: bool) -> None:
    parts = [(CONFIG / "gpu_loadbalancing.ini").read_text(), (CONFIG / "gpu_instances.yaml").read_text()]
    if name.endswith(("ini", "conf")) and not ini_first:
        parts[1] = parts[1].lstrip()
    shared = write(tmp_path, name, "\n".join(parts if ini_first else parts[::-1]))

    found = settings(shared)

    assert settings(CONFIG / "gpu_loadbalancing.ini", CONFIG / "gpu_instances.yaml") == found
    assert len(found.gpu_instances) == 2


def test_file_without_a_known_ending_is_told_by_its_content(tmp_path: Path) -> None:
    assert Strategy.RANDOM is settings(write(tmp_path, "x", "# c\n[balancer]\nstrategy = Random")).strategy
    assert Strategy.RANDOM is settings(write(tmp_path, "y", "# c\nstrategy: Random")).strategy


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", True), ("No", False), ("on", True), ("OFF", False), ("1", True), ("0", False), ("True", True)],
)
def test_ini_switches_are_taken_in_every_usual_spelling(tmp_path: Path, text: str, value: bool) -> None:
    path = write(tmp_path, "a.ini", f"[GPU_LoadBalancing]\nEnableGpuLoadBalancing = {text} ; why\n")

    assert value is settings(path).load_balancing.enabled


def test_ini_takes_percent_signs_comments_quotes_and_any_case(tmp_path: Path) -> None:
    lines = [
        "\ufeff; c",
        "[gpu_loadbalancing]",
        "  HEALTHYTHRESHOLD=4\t# four",
        "[balancer]",
        'drop_dir = "/a%b;c" ; x',
    ]
    text = "\r\n".join(lines)

    found = settings(write(tmp_path, "a.ini", text))

    assert found.health.healthy_threshold == 4
    assert found.drop_dir == ("/a%b;c",)


def test_ini_sections_hold_the_settings_of_every_group(tmp_path: Path) -> None:
    lines = ["[balancer]", "listen = 127.0.0.1:1", 'instances = ["http://a"]', "metrics_listen = null"]
    text = "\n".join([*lines, "[runtimes.vllm]", "enabled = yes"])

    found = settings(write(tmp_path, "a.cfg", text))

    assert found.listen.port == 1
    assert found.instances[0].name == "a:80"
    assert found.runtimes.vllm.enabled


def test_modelium_names_are_mapped(tmp_path: Path) -> None:
    found = settings(write(tmp_path, "modelium.yaml", MODELIUM))

    assert found.runtimes.vllm.enabled
    assert found.drop_dir == ("/models/incoming",)
    assert found.placement.evict_after_idle_seconds == 300
    assert found.placement.pinned == ("gpt2",)
    assert Address("127.0.0.1", 9090) == found.metrics_listen


def test_modelium_metrics_may_be_off_or_on_their_usual_port(tmp_path: Path) -> None:
    assert settings(write(tmp_path, "a.yaml", "metrics: {enabled: false, port: 9}")).metrics_listen is None
    assert (
        Address("127.0.0.1", 9090)
        == settings(write(tmp_path, "b.yaml", "metrics: {enabled: on}")).metrics_listen
    )


def test_own_names_win_over_modelium_names_in_a_file(tmp_path: Path) -> None:
    text = "drop_dir: /own\n" + MODELIUM

    assert settings(write(tmp_path, "a.yaml", text)).drop_dir == ("/own",)


def test_every_kind_of_source_works_together(tmp_path: Path) -> None:
    modelium = write(tmp_path, "m.yaml", MODELIUM)

    found = settings(
        CONFIG / "gpu_loadbalancing.ini",
        CONFIG / "gpu_instances.yaml",
        modelium,
        dotenv=CONFIG / ".env.example",
    )

    assert (found.batching.max_size, found.batching.window_ms) == (48, 50)
    assert len(found.gpu_instances) == 2
    assert found.runtimes.vllm.enabled


def test_environment_takes_lists_and_groups_as_json() -> None:
    environ = {
        "BALANCER_INSTANCES": json.dumps(["http://a", {"url": "http://b:2", "slots": 3}]),
        "BALANCER_HEALTH": '{"interval_seconds": 1, "timeout_seconds": 2}',
        "BALANCER_HEALTH__TIMEOUT_SECONDS": "3",
        "BALANCER_METRICS_LISTEN": "null",
        "BALANCER_RUNTIMES__VLLM__ENABLED": "on",
        "BALANCER_DROP_DIR": "/a",
        "BALANCER_STRATEGY": "",
    }

    found = settings(environ=environ)

    assert [each.slots for each in found.instances] == [None, 3]
    assert (found.health.interval_seconds, found.health.timeout_seconds) == (1, 3)
    assert found.metrics_listen is None
    assert found.runtimes.vllm.enabled
    assert found.drop_dir == ("/a",)


def test_variables_of_other_programs_are_left_alone() -> None:
    """Kubernetes adds service links to every pod beside a Service of the name 'balancer'."""
    environ = {
        "PATH": "/bin",
        "GPU_DEVICE_ORDINAL": "0",
        "BALANCER_SERVICE_HOST": "10.0.0.1",
        "BALANCER_SERVICE_PORT_HTTP": "80",
        "BALANCER_PORT": "tcp://10.0.0.1:80",
        "BALANCER_PORT_80_TCP_ADDR": "10.0.0.1",
    }

    assert Settings() == settings(environ=environ)


def test_synonyms_of_the_environment_are_read_in_full(tmp_path: Path) -> None:
    text = """
export GPU_ENABLE_MULTI_MODEL_INSTANCES=false
GPU_MAX_MODEL_INSTANCES=3  # three
GPU_MODEL_MEMORY_BUFFER_GB=2.5
GPU_ESTIMATED_MODEL_SIZE_GB="1.5"
GPU_BATCH_SIZE=64
GPU_MAX_DELAY_MS=200
GPU_QUEUE_SIZE=10
GPU_ENABLE_WARMUP=no
GPU_USE_FP16=0
MODEL_POOL_ENABLED=False
MODEL_POOL_MAX_INSTANCES=2
SOMETHING_ELSE='
"""
    found = settings(dotenv=write(tmp_path, ".env", text))

    assert found.provisioning.model_dump(exclude_unset=True) == {
        "several_instances": False,
        "max_instances_per_device": 3,
        "memory_reserve_bytes": 5 * 2**29,
        "model_size_estimate_bytes": 3 * 2**29,
        "warm_up": False,
        "use_fp16": False,
    }
    assert (found.batching.max_size, found.batching.window_ms) == (64, 200)
    assert found.limits.queue_requests == 10
    assert tuple(found.model_pool.model_dump().values()) == (False, 2)


def test_null_means_automatic() -> None:
    environ = {
        "GPU_MAX_MODEL_INSTANCES": "null",
        "MODEL_POOL_MAX_INSTANCES": "None",
        "GPU_BATCH_SIZE": "null",
    }

    found = settings(environ=environ)

    assert found.provisioning.max_instances_per_device is None
    assert found.model_pool.max_instances is None
    assert found.batching.max_size == 4


def test_missing_dotenv_is_no_fault_and_a_missing_file_is_one(tmp_path: Path) -> None:
    assert Settings() == settings(dotenv=tmp_path / "none")
    with pytest.raises(SettingsError, match="does not exist"):
        settings(tmp_path / "none.yaml")


def test_command_line_takes_dots_nesting_and_plain_urls() -> None:
    found = settings(
        overrides={
            "health.timeout_seconds": 1,
            "log": {"level": "DEBUG"},
            "instances": ["http://a"],
            "listen": None,
        }
    )

    assert found.health.timeout_seconds == 1
    assert found.log.level == "debug"
    assert found.instances[0].url == "http://a:80"
    assert found.listen.port == 11400


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n", "~", "health:\n", "\ufeff", "{}"])
@pytest.mark.parametrize("name", ["a.yaml", "a"])
def test_file_that_says_nothing_changes_nothing(tmp_path: Path, text: str, name: str) -> None:
    assert Settings() == settings(write(tmp_path, name, text))


def test_yaml_takes_byte_order_mark_and_any_line_end(tmp_path: Path) -> None:
    for text in ("\ufeffhealth:\r\n  healthy_threshold: 7\r\n", "health:\r  healthy_threshold: 7\r"):
        assert settings(write(tmp_path, "a.yaml", text)).health.healthy_threshold == 7


def test_yaml_aliases_and_merge_keys_work(tmp_path: Path) -> None:
    text = """
instances:
  - &base {url: "http://a:1", models: &models [m:1, m:2], slots: 2}
  - {<<: *base, url: "http://b:1"}
  - {url: "http://c:1", models: *models}
"""
    found = settings(write(tmp_path, "a.yaml", text)).instances

    assert [each.slots for each in found] == [2, 2, None]
    assert len({each.models for each in found}) == 1


def test_yaml_keeps_times_and_base_60_numbers_as_text(tmp_path: Path) -> None:
    found = settings(write(tmp_path, "a.yaml", "drop_dir: [2020-01-01, 10:30, 1_000, '7']"))

    assert found.drop_dir == ("2020-01-01", "10:30", "1_000", "7")


def test_off_is_a_word_for_provision(tmp_path: Path) -> None:
    assert settings(write(tmp_path, "a.yaml", "provision: off")).provision == "off"


def test_models_may_not_be_changed_by_everyone_unless_told() -> None:
    assert not settings().allow_model_changes
    assert settings(overrides={"allow_model_changes": True}).allow_model_changes


def test_load_balancing_off_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "a.ini", "[GPU_LoadBalancing]\nEnableGpuLoadBalancing = false\n")

    found = settings(path, overrides={"instances": ["http://a", "http://b"]})

    assert not found.load_balancing.enabled
    assert len(found.all_instances) == 2
