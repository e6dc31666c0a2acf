"""What is said of a configuration that cannot be used: where, which key, what is wrong, what is allowed."""

import re
from pathlib import Path

import pytest

from balancer.settings import Fault, SettingsError, load

TWO_GPUS = "gpu_instances:\n  - {gpu_id: 0, port: 1}\n  - {gpu_id: 1, port: 1}\n"
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
)

# name, text, key, what the problem says, what is said to be allowed
BROKEN: list[tuple[str, str | bytes, str, str, str]] = [
    ("a.yaml", "strateg: random", "strateg", "unknown key", "did you mean 'strategy'"),
    ("a.yaml", "Listen: 127.0.0.1:1", "Listen", "unknown key", "did you mean 'listen'?"),
    ("a.yaml", "zzz: 1", "zzz", "unknown key", "known are admin_listen"),
    ("a.yaml", "health: {intervalseconds: 1}", "health.intervalseconds", "unknown key", "'interval_seconds'"),
    ("a.yaml", "instances: [{url: http://a, wieght: 2}]", "instances[0].wieght", "unknown key", "'weight'"),
    ("a.yaml", "orchestration: {policy: {}}", "orchestration.policy", "unknown key", "'policies'"),
    (
        "a.yaml",
        "strategy: clairvoyant",
        "strategy",
        "'clairvoyant' is not a strategy",
        "adaptive, weighted_round_robin, least",
    ),
    ("a.yaml", "listen: 127.0.0.1:70000", "listen", "no valid port", "0 to 65535"),
    ("a.yaml", "listen: 11400", "listen", "11400 is not an address", "host:port"),
    ("a.yaml", "listen:", "listen", "null is not an address", "host:port"),
    ("a.yaml", "listen: 0.0.0.0:11400", "listen", "reached from other machines", "--allow-anonymous"),
    ("a.yaml", "admin_listen: 0.0.0.0:9", "admin_listen", "reached from other machines", "loopback"),
    ("a.yaml", "admin_listen: 127.0.0.1:11400", "admin_listen", "is taken by listen", "of its own"),
    ("a.yaml", "listen: localhost:11401", "listen", "is taken by admin_listen", "of its own"),
    ("a.yaml", "metrics_listen: 0.0.0.0:11401", "metrics_listen", "is taken by admin_listen", "of its own"),
    ("a.yaml", "health: 5", "health", "is not a mapping", "interval_seconds, timeout_seconds"),
    ("a.yaml", "health: {interval_seconds: -1}", "health.interval_seconds", "-1 is out", "from 0.05 to 3600"),
    ("a.yaml", "health: {interval_seconds: .inf}", "health.interval_seconds", "inf is", "from 0.05 to 3600"),
    ("a.yaml", "health: {interval_seconds: .nan}", "health.interval_seconds", "nan is", "from 0.05 to 3600"),
    (
        "a.yaml",
        "health: {interval_seconds: soon}",
        "health.interval_seconds",
        "'soon' is not a number",
        "from",
    ),
    (
        "a.yaml",
        "health: {healthy_threshold: 1.5}",
        "health.healthy_threshold",
        "1.5 is not a whole",
        "1 to 100",
    ),
    (
        "a.yaml",
        "health: {healthy_threshold: yes}",
        "health.healthy_threshold",
        "true is not a number",
        "1 to",
    ),
    (
        "a.yaml",
        "allow_anonymous: maybe",
        "allow_anonymous",
        "'maybe' is neither true nor false",
        "true or false",
    ),
    ("a.yaml", "instances: http://a", "instances", "'http://a' is not a list", "a list of mappings with url"),
    ("a.yaml", "instances: [5]", "instances[0]", "5 is not a mapping", "a mapping with url"),
    ("a.yaml", "instances: [{name: a}]", "instances[0].url", "is missing", "where it answers"),
    ("a.yaml", "instances: [ftp://a]", "instances[0].url", "the scheme 'ftp'", "http://host:port"),
    ("a.yaml", "instances: ['http://u:p@a']", "instances[0].url", "credentials", "without user and password"),
    (
        "a.yaml",
        "instances: ['http://a/api']",
        "instances[0].url",
        "path, query or fragment",
        "nothing after it",
    ),
    ("a.yaml", "instances: ['http://169.254.169.254']", "instances[0].url", "link-local", "routable"),
    ("a.yaml", "instances: ['http://a:99999']", "instances[0].url", "no valid port", "from 1 to 65535"),
    (
        "a.yaml",
        "instances: ['http://a', 'http://A:80/']",
        "instances[1].url",
        "address of instances[0]",
        "once",
    ),
    (
        "a.yaml",
        "instances: ['http://localhost:1', 'https://127.0.0.1:1']",
        "instances[1].url",
        "already",
        "once",
    ),
    (
        "a.yaml",
        "instances: [{url: http://a, name: x}, {url: http://b, name: x}]",
        "instances[1].name",
        "'x' is the name of instances[0] already",
        "a name of its own",
    ),
    (
        "a.yaml",
        "instances: ['http://localhost:11400']",
        "instances[0].url",
        "the balancer itself",
        "an instance",
    ),
    ("a.yaml", "instances: ['http://127.0.0.1:11401']", "instances[0].url", "admin_listen is", "an instance"),
    (
        "a.yaml",
        "instances: [{url: http://a, weight: 0}]",
        "instances[0].weight",
        "0 is out of range",
        "above 0",
    ),
    (
        "a.yaml",
        TWO_GPUS,
        "gpu_instances[1].port",
        "address of gpu_instances[0] already",
        "each instance once",
    ),
    (
        "a.yaml",
        TWO_GPUS + "instances: ['http://localhost:1']",
        "gpu_instances[0].port",
        "instances[0]",
        "once",
    ),
    (
        "a.yaml",
        "gpu_instances: [{gpu_id: 0, port: 70000}]",
        "gpu_instances[0].port",
        "70000 is out",
        "1 to 65535",
    ),
    ("a.yaml", "gpu_instances: [{gpu_id: -1, port: 1}]", "gpu_instances[0].gpu_id", "-1 is out", "0 to 1023"),
    ("a.yaml", "gpu_instances: [{gpu_id: 0}]", "gpu_instances[0].port", "is missing", "1 to 65535"),
    (
        "a.yaml",
        "gpu_instances: [{gpu_id: 0, port: 1, memory_limit: 7XB}]",
        "gpu_instances[0].memory_limit",
        "'7XB' is not a size",
        "GB (powers of 1000)",
    ),
    (
        "a.yaml",
        "provisioning: {devices: [{gpu_id: 5, instances: 1}, {gpu_id: x}, {gpu_id: 5, instances: 2}]}",
        "provisioning.devices[2].gpu_id",
        "GPU 5 is told of in provisioning.devices[0] already",
        "each GPU once",
    ),
    ("a.yaml", "cors_origins: ['*']", "cors_origins[0]", "is not an origin", "scheme://host"),
    (
        "a.yaml",
        "limits: {body_bytes: 2 GiB, body_memory_bytes: 1 GiB}",
        "limits.body_memory_bytes",
        "1 GiB, below limits.body_bytes, 2 GiB",
        "at",
    ),
    ("a.yaml", "limits: {body_bytes: 1}", "limits.body_bytes", "1 is out of range", "from 1 KiB to 16 GiB"),
    ("a.yaml", "log: {level: loud}", "log.level", "'loud' is not known", "debug, info, warning, error"),
    ("a.yaml", "metrics: {port: 0}", "metrics.port", "0 is out of range", "1 to 65535"),
    (
        "a.yaml",
        "a: 1\nlisten: 127.0.0.1:1\nlisten: 127.0.0.1:2",
        "listen",
        "line 3: given a second time",
        "once",
    ),
    ("a.yaml", "health:\n\tx: 1", "(file)", "line 2", "spaces for indentation"),
    ("a.yaml", "listen: [", "(file)", "line 1", "well-formed YAML"),
    ("a.yaml", "- a\n- b", "(file)", "line 1: holds a list at the top", "a mapping of settings"),
    ("a.yaml", "just words", "(file)", "holds a single value", "a mapping of settings"),
    ("a.yaml", "listen: x\n---\nlisten: y", "(file)", "second document", "one YAML document"),
    ("a.yaml", "listen: !!python/object:os.system x", "listen", "tag", "without tags"),
    ("a.yaml", "? [a]\n: b", "(file)", "a key is a list", "text as key"),
    ("a.yaml", "a: *nobody", "(file)", "undefined alias", "well-formed YAML"),
    ("a.yaml", "a: &a [*a]", "(file)", "refers to itself", "at most"),
    ("a.yaml", LAUGHS, "(file)", "more than 50000 values", "at most"),
    ("a.yaml", "a: " + "[" * 100_000, "(file)", "nested deeper than 32 levels", "well-formed YAML"),
    ("a.yaml", "a: 1\0", "(file)", "U+0000", "printable text"),
    ("a.yaml", "listen: ä".encode("latin-1"), "(file)", "is not UTF-8 text (byte 8)", "UTF-8"),
    ("a.yaml", "listen: x".encode("utf-16"), "(file)", "is not UTF-8 text", "UTF-8"),
    ("a.yaml", b"#" * (2**20 + 1), "(file)", "larger than 1 MiB", "at most 1 MiB"),
    (
        "a.ini",
        "[GPU_LoadBalancing]\nHealthyTreshold = 2",
        "GPU_LoadBalancing.HealthyTreshold",
        "unknown",
        "HealthyThr",
    ),
    (
        "a.ini",
        "[GPU_LoadBalancing]\nHealthyThreshold = 0",
        "GPU_LoadBalancing.HealthyThreshold",
        "out of range",
        "1 to",
    ),
    (
        "a.ini",
        "[GPU_LoadBalancing]\nEnableCircuitBreaker = 2",
        "GPU_LoadBalancing.EnableCircuitBreaker",
        "'2'",
        "true",
    ),
    (
        "a.ini",
        "[GPU_LoadBalancing]\nMaxBatchSize = 4 5",
        "GPU_LoadBalancing.MaxBatchSize",
        "'4 5' is not",
        "1 to",
    ),
    (
        "a.ini",
        "[GPU_LoadBalancing]\nMaxBatchSize =",
        "GPU_LoadBalancing.MaxBatchSize",
        "has no value",
        "key = value",
    ),
    (
        "a.ini",
        "[GPU_LoadBalancing]\nMaxBatchSize",
        "(file)",
        "line 2: 'MaxBatchSize' is no setting",
        "key = value",
    ),
    (
        "a.ini",
        "[GPU_LoadBalancing]\nMaxBatchSize=1\nMaxBatchSize=2",
        "GPU_LoadBalancing.MaxBatchSize",
        "line 3",
        "once",
    ),
    ("a.ini", "[GPU_LoadBalancer]\nx = 1", "GPU_LoadBalancer.x", "unknown section", "'GPU_LoadBalancing'"),
    ("a.ini", "MaxBatchSize = 1", "MaxBatchSize", "outside of a section", "[GPU_LoadBalancing]"),
    ("a.ini", "[health\n", "(file)", "is not a section", "a name in brackets"),
    ("a.ini", "[balancer]\ninstances = http://a", "balancer.instances", "not a JSON list", "a list in JSON"),
]


def faults_of(*files: Path, environ: dict[str, str] | None = None, **overrides: object) -> tuple[Fault, ...]:
    with pytest.raises(SettingsError) as caught:
        load(files, environ=environ or {}, overrides=overrides)
    return caught.value.faults


@pytest.mark.parametrize("case", BROKEN, ids=range(len(BROKEN)))
def test_fault_names_file_key_problem_and_what_is_allowed(
    tmp_path: Path, case: tuple[str, str | bytes, str, str, str]
) -> None:
    name, text, key, problem, allowed = case
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    found = faults_of(path)

    matching = [fault for fault in found if fault.key == key]
    assert matching, [str(fault) for fault in found]
    assert problem in matching[0].problem
    assert allowed in matching[0].allowed
    assert str(matching[0]) == f"{path}: {key}: {matching[0].problem}, {matching[0].allowed}"
    assert all(str(fault).isprintable() for fault in found)


def test_directory_and_missing_file_are_faults(tmp_path: Path) -> None:
    found = faults_of(tmp_path, tmp_path / "none", tmp_path / "x\0y")

    assert [fault.problem for fault in found[:2]] == ["is a directory", "does not exist"]
    assert "cannot be read" in found[2].problem


def test_unreadable_file_is_a_fault(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)

    assert "cannot be read" in faults_of(loop)[0].problem


def test_all_faults_of_all_sources_are_named_at_once(tmp_path: Path) -> None:
    first = tmp_path / "first.yaml"
    first.write_text("instances: [ftp://a, http://b, 5]\nhealth: {healthy_threshold: 0, x: 1}\n")
    later = tmp_path / "later.ini"
    later.write_text("[GPU_LoadBalancing]\nMaxBatchSize = -4\nFoo = 1\nBatchWindowMs\n")
    environ = {"BALANCER_LISTE": "x", "GPU_BATCH_SIZE": "none at all", "BALANCER_LOG": "loud"}

    found = faults_of(first, later, environ=environ, admin_listen="0.0.0.0:1", listen="10.0.0.1:1")

    assert {
        (str(first), "instances[0].url"),
        (str(first), "instances[2]"),
        (str(first), "health.healthy_threshold"),
        (str(first), "health.x"),
        (str(later), "(file)"),
        (str(later), "GPU_LoadBalancing.MaxBatchSize"),
        (str(later), "GPU_LoadBalancing.Foo"),
        ("environment", "GPU_BATCH_SIZE"),
        ("environment", "BALANCER_LISTE"),
        ("environment", "BALANCER_LOG"),
        ("command line", "listen"),
        ("command line", "admin_listen"),
    } == {(fault.source, fault.key) for fault in found}


def test_value_that_a_stronger_source_replaces_is_judged_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("strategy: nonsense")

    assert faults_of(path, strategy="random")[0].key == "strategy"


def test_items_are_counted_as_they_were_written(tmp_path: Path) -> None:
    """An unusable item does not shift the others, and does not hide what is wrong between them."""
    path = tmp_path / "a.yaml"
    path.write_text("instances: [ftp://x, http://a, {url: http://a, weight: -1}]")

    assert [each.key for each in faults_of(path)] == [
        "instances[0].url",
        "instances[2].weight",
        "instances[2].url",
    ]


def test_fault_between_sources_names_the_one_that_said_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("admin_listen: 127.0.0.1:5")

    assert faults_of(environ={"BALANCER_LISTEN": "0.0.0.0:7"})[0].source == "environment"
    assert str(path) == faults_of(path, listen="127.0.0.1:5")[0].source


def test_refused_value_causes_no_further_faults(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("listen: nonsense\nadmin_listen: 127.0.0.1:11400\nallow_anonymous: maybe\n")

    assert [fault.key for fault in faults_of(path)] == ["listen", "allow_anonymous"]


def test_listening_to_everyone_is_possible_when_it_is_meant() -> None:
    load([], environ={}, overrides={"listen": "0.0.0.0:11400", "allow_anonymous": True})
    load([], environ={}, overrides={"metrics_listen": "0.0.0.0:9090"})
    load([], environ={}, overrides={"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"})


def test_wildcard_listener_is_found_behind_every_local_name() -> None:
    for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.0.0.5"):
        found = faults_of(listen="0.0.0.0:7", allow_anonymous=True, instances=[f"http://{host}:7"])
        assert "the balancer itself" in found[0].problem
    load(
        [], environ={}, overrides={"listen": "127.0.0.1:7", "instances": ["http://127.0.0.2:7", "http://a:7"]}
    )


def test_message_shows_no_password_anywhere() -> None:
    found = faults_of(instances=["http://user:hunter2@a/x", {"url": "HTTP://hunter2@b?y"}])

    assert not re.search("hunter2", "".join(map(str, found)))


def test_a_fault_is_one_printable_line_whatever_a_key_holds(tmp_path: Path) -> None:
    file = tmp_path / "balancer.yaml"
    file.write_text('"lis\\ten\\e[31m\\u2028": 1\n')

    with pytest.raises(SettingsError) as caught:
        load([file], environ={})

    assert str(caught.value).isprintable()
    assert "\\x1b[31m\\u2028" in str(caught.value)


def test_a_line_of_a_dotenv_that_cannot_be_read_is_a_fault_without_its_value(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("not a variable\n\nexport BALANCER_LISTEN='127.0.0.1:1\nGPU_BATCH_SIZE=7\n")

    with pytest.raises(SettingsError) as caught:
        load([], environ={}, dotenv=dotenv)

    (fault,) = caught.value.faults
    assert (fault.source, fault.key) == (str(dotenv), "BALANCER_LISTEN")
    assert fault.problem == "line 3: cannot be read"
    assert "127.0.0.1" not in str(fault)
