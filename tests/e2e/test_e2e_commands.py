"""The commands as a user runs them: each a process, with its output, its exit code and its log."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import (
    CHAT,
    EMBEDDER,
    BalancerProcess,
    balancer,
    balancer_process,
    child,
    command,
    wait_for,
)
from prometheus_client.parser import text_string_to_metric_families

SECRET = "the heron keeps its 47 umbrellas"
INSTANCES = ("simulated-1", "simulated-2", "simulated-3")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BalancerProcess]:
    """`balancer demo` with three instances."""
    folder, in_turn = tmp_path_factory.mktemp("demo"), {"BALANCER_STRATEGY": "round_robin"}
    with balancer_process(folder, "demo", "--speed", "500", **in_turn) as started:
        yield started


@pytest.fixture
def client(demo: BalancerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=demo.url, trust_env=False, timeout=20) as client:
        yield client


def children(pid: int) -> list[int]:
    """The processes that one started and that still run."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in listed]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def chat(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"model": CHAT, "messages": [{"role": "user", "content": text}], **fields}


def samples(text: str, name: str) -> Counter[str]:
    """The samples of a counter, by outcome."""
    counted: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                counted[sample.labels["outcome"]] += int(sample.value)
    return counted


def test_demo_serves_from_a_process_for_each_instance(demo: BalancerProcess, client: httpx.Client) -> None:
    answers = [client.post("/api/chat", json=chat(stream=False)) for _ in range(6)]

    assert len(children(demo.child.pid)) == 3
    assert set(INSTANCES) == {each.headers["X-Balancer-Instance"] for each in answers}
    assert all("[simulated" in each.json()["message"]["content"] for each in answers)
    assert "made up" in demo.child.line("simulated")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_demo_ends_properly_when_told_to(tmp_path: Path, number: int) -> None:
    with balancer_process(tmp_path, "demo", "--speed", "500", "--instances", "2") as started:
        simulators = children(started.child.pid)

        assert started.child.end(number) == 0
        assert len(simulators) == 2
        wait_for(lambda: not any(alive(each) for each in simulators))


def test_answer_under_way_is_finished_before_the_end(tmp_path: Path) -> None:
    """Some tenths of a second are left of it when the signal comes."""
    with balancer_process(tmp_path, "demo", "--speed", "4", "--instances", "1") as started:
        with (
            httpx.Client(base_url=started.url, trust_env=False, timeout=20) as client,
            client.stream("POST", "/api/chat", json=chat()) as stream,
        ):
            lines = stream.iter_lines()
            first = json.loads(next(lines))
            started.child.process.send_signal(signal.SIGTERM)
            last = json.loads(list(lines)[-1])

        assert (first["done"], last["done"]) == (False, True)
        assert started.child.process.wait(20) == 0


def test_killed_demo_leaves_no_instance_behind(tmp_path: Path) -> None:
    with balancer_process(tmp_path, "demo", "--speed", "500") as started:
        simulators = children(started.child.pid)
        running = [alive(each) for each in simulators]

        assert started.child.end(signal.SIGKILL) == -signal.SIGKILL
        assert running == [True] * 3
        wait_for(lambda: not any(alive(each) for each in simulators))


def test_lost_instance_of_the_demo_is_told_and_the_others_serve(tmp_path: Path) -> None:
    in_turn = {"BALANCER_STRATEGY": "round_robin"}
    with balancer_process(tmp_path, "demo", "--speed", "500", **in_turn) as started:
        os.kill(children(started.child.pid)[0], signal.SIGKILL)
        with httpx.Client(base_url=started.url, trust_env=False, timeout=20) as client:
            answers = [client.post("/api/chat", json=chat(stream=False)) for _ in range(6)]
        states = Counter(each["state"] for each in started.instances())

    assert [each.status_code for each in answers] == [200] * 6
    assert states == {"up": 2, "down": 1}


def test_status_tells_the_fleet(demo: BalancerProcess) -> None:
    told = json.loads(balancer("status", "--json", "--admin", demo.admin).stdout)
    table = balancer("status", "--admin", demo.admin)

    assert list(INSTANCES) == [each["id"] for each in told["instances"]]
    assert {"up"} == {each["state"] for each in told["instances"]}
    assert [len(each["models"]) for each in told["instances"]] == [4] * 3
    assert told["queue"]["waiting"] == 0
    assert all(name in table.stdout for name in INSTANCES)


def test_status_without_a_balancer_fails_with_advice() -> None:
    asked = balancer("status", "--admin", "http://127.0.0.1:9")

    assert (asked.returncode, asked.stdout) == (1, "")
    assert "--admin" in asked.stderr


def test_bench_reports_what_it_measured(demo: BalancerProcess) -> None:
    asked = balancer("bench", "--url", demo.url, "-n", "12", "-c", "4", "--json")
    told = json.loads(asked.stdout)

    assert asked.returncode == 0
    assert (told["requests"], told["concurrency"], told["errors"]) == (12, 4, {})
    assert sum(told["instances"].values()) == 12
    assert set(told["instances"]) <= set(INSTANCES)
    assert told["tokens_per_second"] > 0
    assert told["ttft_seconds"]["p50"] <= told["ttft_seconds"]["p99"] <= told["seconds"]


def test_check_names_every_fault(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("instances: [http://gpu1:11434, http://gpu2:11434]\n")
    bad.write_text("strategi: round_robin\nlisten: 0.0.0.0:11400\n")
    valid, faulty = balancer("check", str(good)), balancer("check", "--json", str(bad))

    assert valid.returncode == 0
    assert "2 instances" in valid.stdout
    assert faulty.returncode == 2
    assert {"strategi", "listen"} == {each["key"] for each in json.loads(faulty.stdout)["faults"]}


def test_health_is_told_on_both_listeners(demo: BalancerProcess) -> None:
    told = {
        (url, path): httpx.get(url + path, trust_env=False)
        for url in (demo.url, demo.admin)
        for path in ("/livez", "/readyz", "/health")
    }
    summary, whole = told[demo.url, "/health"].json(), told[demo.admin, "/health"].json()

    assert {200} == {each.status_code for each in told.values()}
    assert "ok" == summary["status"] == whole["status"]
    assert summary["instances"] == {"usable": 3, "total": 3}
    assert "simulated-1" not in told[demo.url, "/health"].text
    assert list(INSTANCES) == [each["id"] for each in whole["instances"]]


def test_metrics_count_the_requests_made(demo: BalancerProcess, client: httpx.Client) -> None:
    def count() -> Counter[str]:
        text = httpx.get(f"{demo.admin}/metrics", trust_env=False).text
        return samples(text, "balancer_requests_total")

    before = count()
    for _ in range(3):
        client.post("/api/chat", json=chat(stream=False))
    client.post("/api/embed", json={"model": EMBEDDER, "input": "Hello"})
    client.post("/api/chat", json={**chat(), "model": "nosuch"})

    wait_for(lambda: (count() - before).total() == 5)
    assert count() - before == {"ok": 4, "unknown_model": 1}


def test_each_request_is_one_event_without_its_text(demo: BalancerProcess, client: httpx.Client) -> None:
    before = len(demo.finished())
    client.post("/api/chat", json=chat(SECRET), headers={"X-Request-ID": "mine-1"})
    client.post("/v1/chat/completions", json=chat(SECRET), headers={"Authorization": f"Bearer {SECRET}"})
    client.post("/v1/messages", json=chat(SECRET, max_tokens=8), headers={"X-Api-Key": SECRET})
    client.post("/api/generate", json={"model": CHAT, "prompt": SECRET})
    client.post("/predict/" + CHAT, json={"prompt": SECRET})
    client.post("/api/embed", json={"model": EMBEDDER, "input": SECRET})
    client.post("/api/chat", content=json.dumps({"model": 1, "text": SECRET}))
    client.get("/api/tags", params={"text": SECRET})
    wait_for(lambda: len(demo.finished()) == before + 8)
    events = demo.finished()[before:]

    assert events[0]["request_id"] == "mine-1"
    assert len({each["id"] for each in events}) == 8
    assert [each["outcome"] for each in events] == ["ok"] * 6 + ["bad_request", "ok"]
    assert [each["dialect"] for each in events[:3]] == ["ollama", "openai", "anthropic"]
    assert all({"instance", "ttft_seconds", "prompt_tokens"} <= each.keys() for each in events[:5])
    for written in (demo.child.err, demo.child.out):
        assert "heron" not in written.read_text()


def test_balancer_serves_on_though_nothing_can_be_logged(tmp_path: Path) -> None:
    addresses = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    quiet = ["sh", "-c", 'exec "$@" 2>/dev/full', "sh"]
    with child(
        "balancer", [*quiet, *command("demo", "--instances", "1", "--speed", "500", *addresses)], tmp_path
    ) as started:
        url = started.line("listens on").replace(",", " ").split()[3]
        answers = [httpx.post(f"{url}/api/chat", json=chat(stream=False), timeout=20) for _ in range(3)]

        assert [each.status_code for each in answers] == [200] * 3
        assert started.end(signal.SIGTERM) == 0
