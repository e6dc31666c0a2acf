"""What `status` shows: narrow tables, what was cut, and nothing that controls a terminal."""

from typing import Any

import pytest

from balancer.commands.status import render
from balancer.commands.tables import age


def instance(**facts: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "url": "http://gpu1:11434",
        "state": "up",
        "suspect": False,
        "drained": False,
        "version": "0.33.0",
        "running": 1,
        "models": ["m:latest", "n:latest"],
        "runners": [{"model": "m:latest", "running": 1, "slots": 2}],
        **facts,
    }


def waiting(position: int = 1, **facts: Any) -> dict[str, Any]:
    told = {"id": "w", "position": position, "model": "m:latest", "class": "normal", "client": "10.0.0.1"}
    return {**told, "waited_seconds": 1.25, **facts}


def live(**facts: Any) -> dict[str, Any]:
    told = {"id": "r1", "model": "m:latest", "instance": "a", "age_seconds": 61.0, "stage": "streaming"}
    return {**told, **facts}


def told(**parts: Any) -> dict[str, Any]:
    queue = parts.pop("queue", [])
    return {
        "config": {"config": "0123456789ab", "loaded_seconds_ago": 3.2, "refused": []},
        "instances": [instance()],
        "queue": {"limit": 1000, "waiting": len(queue), "requests": queue},
        "live": [],
        "devices": {"devices": [], "undetected": None},
        **parts,
    }


def test_an_idle_fleet_is_told_in_a_few_lines() -> None:
    assert render(told()).splitlines() == [
        "instance  state  running  models  loaded          version  url",
        "a         up     1        2       m:latest (1/2)  0.33.0   http://gpu1:11434",
        "",
        "0 of at most 1000 requests wait",
        "",
        "0 requests are under way",
        "",
        "configuration 0123456789ab, loaded 3.2 s ago",
    ]


@pytest.mark.parametrize(("percent", "shown"), [(None, "m (0/1)  "), (12.5, "m (0/1, 12.5 % on the CPU)  ")])
def test_a_model_on_the_cpu_is_seen_at_once(percent: float | None, shown: str) -> None:
    runner = {"model": "m", "running": 0, "slots": 1, "cpu_percent": percent}

    assert shown in render(told(instances=[instance(runners=[runner])])).splitlines()[1]


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"state": "down", "drained": True}, "down, drained"),
        ({"suspect": True}, "up, suspect"),
        ({"breaker": "closed", "breakers": {"m": "closed"}, "cooling": 0, "loading": []}, "up"),
        ({"breaker": "half_open"}, "up, breaker half_open"),
        ({"breakers": {"m": "open", "n": "closed"}}, "up, breaker open for m"),
        ({"cooling": 2}, "up, 2 slots cooling"),
        ({"cooling": {"m": 1, "n": 2}}, "up, 3 slots cooling"),
        ({"shared": True}, "up, shared"),
    ],
)
def test_the_state_tells_all_that_keeps_requests_away(facts: dict[str, Any], state: str) -> None:
    line = render(told(instances=[instance(**facts)])).splitlines()[1]

    assert f"  {state}  " in line


def test_models_that_load_are_named_and_long_lists_are_cut() -> None:
    runners = [{"model": f"m{each}", "running": 0, "slots": 1} for each in range(9)]
    line = render(told(instances=[instance(runners=runners, loading=["n"])])).splitlines()[1]

    assert "n (loading), m0 (0/1), m1 (0/1) … and 7 more" in line


def test_queue_and_live_requests_are_listed_and_cut() -> None:
    shown = render(told(queue=[waiting(each) for each in range(1, 13)], live=[live()])).splitlines()

    assert shown[3:5] == ["12 of at most 1000 requests wait", "  #   model     class   client    waited"]
    assert shown[5] == "  1   m:latest  normal  10.0.0.1  1.2 s"
    assert shown[15] == "  … and 2 more"
    assert shown[17:20] == [
        "1 requests are under way",
        "  request  model     instance  age   stage",
        "  r1       m:latest  a         61 s  streaming",
    ]


def test_a_request_for_no_model_at_no_instance_is_shown_as_such() -> None:
    nowhere = {"id": "r2", "age_seconds": 0.0, "stage": "received"}

    assert "  r2       -      -         0.0 s  received" in render(told(live=[nowhere])).splitlines()


def test_a_newer_configuration_that_was_refused_is_shown() -> None:
    faults = [f"a.yaml: key{each}: is bad, good" for each in range(7)]
    config = {"config": "0123456789ab", "loaded_seconds_ago": 7300, "refused": faults}
    shown = render(told(config=config)).splitlines()

    assert shown[-8:-5] == [
        "configuration 0123456789ab, loaded 2 h ago",
        "a newer one is refused:",
        f"  {faults[0]}",
    ]
    assert shown[-1] == "  … and 2 more"


def test_nothing_that_a_client_made_up_controls_the_terminal() -> None:
    evil = "\x1b[2J\r\n" + "x" * 500
    shown = render(told(queue=[waiting(model=evil, client=evil)], live=[live(model=evil)]))

    assert all(line.isprintable() and len(line) < 200 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (10, "10 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h")],
)
def test_ages_are_told_as_people_say_them(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_gpus_that_could_not_be_asked_for_are_told() -> None:
    lines = render(told(devices={"devices": [], "undetected": "no answer\n"})).splitlines()

    assert lines[-1] == "GPUs are not known of: no answer\\n"
