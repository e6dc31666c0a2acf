"""The pure rules of the simulator, without a server."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from balancer.simulator.durations import keep_alive_seconds, parse_duration
from balancer.simulator.memory import choose_victim, fits_beside_others
from balancer.simulator.models import ModelSpec, parse_spec
from balancer.simulator.names import is_cloud, parse_name
from balancer.simulator.prefix_cache import PrefixCache
from balancer.simulator.runner_options import RunnerOptions, default_context, needs_reload
from balancer.simulator.service_model import (
    ServiceRates,
    decode_seconds_per_token,
    load_seconds,
    prefill_batches,
    prefill_seconds,
)
from balancer.simulator.text import encode, pieces, seeded
from balancer.simulator.web.gate import host_allowed


@dataclass(frozen=True)
class Resident:
    keep_alive: float
    path: str
    busy: bool


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("1m30s", 90), ("0s", 0), ("1.5h", 5400), ("-1s", -1), ("250ms", 0.25)]
)
def test_go_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "m", "", "5 m", "five"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="time: "):
        parse_duration(text)


def test_keep_alive_takes_numbers_durations_and_for_ever() -> None:
    given = (None, 10, "2m", -1, "-1s", 0)

    assert [keep_alive_seconds(value) for value in given] == [None, 10, 120, math.inf, math.inf, 0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("library/llama3.2:1b", "llama3.2:1b"),
        ("me/mine", "me/mine:latest"),
        ("host.example:8080/me/mine:x", "host.example:8080/me/mine:x"),
    ],
)
def test_names_are_shown_in_their_short_form(text: str, shown: str) -> None:
    assert parse_name(text).is_valid
    assert parse_name(text).display() == shown


@pytest.mark.parametrize("text", ["", "a@sha256:1", "a:b:c", "a.b/c", "/x", "x" * 81])
def test_invalid_names_are_known(text: str) -> None:
    assert not parse_name(text).is_valid


def test_cloud_names_are_known() -> None:
    assert [is_cloud(name) for name in ("a:cloud", "a:8b-cloud", "cloud", "a:cloudy")] == [
        True,
        True,
        False,
        False,
    ]


def test_specs_are_read_from_the_right() -> None:
    assert parse_spec("qwen3:8b:5.2GB:thinking").size_bytes == 5_200_000_000
    assert parse_spec("qwen3:8b") == ModelSpec(name="qwen3:8b")
    assert parse_spec("embed:embedding").name == "embed"


def test_victim_is_the_idle_one_with_the_shortest_keep_alive_then_path() -> None:
    busy, second, first = Resident(1, "a", True), Resident(300, "c", False), Resident(300, "b", False)

    assert choose_victim([busy, second, first]) is first
    assert choose_victim([busy, Resident(5, "b", True)]) is busy
    assert choose_victim([]) is None


def test_fit_leaves_a_fifth_free_and_needs_a_device_to_matter() -> None:
    assert fits_beside_others(80, 100, has_device=True)
    assert not fits_beside_others(81, 100, has_device=True)
    assert fits_beside_others(81, 0, has_device=False)


def test_automatic_gpu_layers_match_any_runner_and_nothing_else_does() -> None:
    loaded = RunnerOptions(num_ctx=4096, num_gpu=0)

    assert not needs_reload(loaded, RunnerOptions(num_ctx=4096))
    assert needs_reload(loaded, RunnerOptions(num_ctx=4096, num_gpu=10))
    assert needs_reload(loaded, RunnerOptions(num_ctx=4096, shift=False))


def test_default_context_follows_the_memory_tiers() -> None:
    gib = 1 << 30

    assert [default_context(0, size * gib) for size in (0, 16, 24, 48)] == [4096, 4096, 32768, 262144]
    assert default_context(8192, 48 * gib) == 8192


def test_prefix_cache_finds_the_longest_prefix_and_always_leaves_one_token() -> None:
    cache = PrefixCache(capacity_tokens=100)
    cache.remember([1, 2, 3, 4])
    cache.remember([1, 2, 9])

    assert cache.cached_tokens([1, 2, 3, 4, 5]) == 4
    assert cache.cached_tokens([1, 2, 3, 4]) == 3
    assert cache.cached_tokens([1, 2, 9, 9]) == 3
    assert cache.cached_tokens([7]) == 0


def test_prefix_cache_forgets_the_oldest_over_its_budget() -> None:
    cache = PrefixCache(capacity_tokens=5)
    cache.remember([1, 1, 1])
    cache.remember([2, 2, 2])

    assert (cache.held_tokens, cache.cached_tokens([1, 1, 1, 1])) == (3, 0)


def test_the_newest_sequences_are_in_slots_and_the_others_must_be_copied_back() -> None:
    cache = PrefixCache(capacity_tokens=100, slots=2)
    for first in (1, 2, 3):
        cache.remember([first, first, first])

    assert cache.find([1, 1, 1, 1]) == (3, False)
    assert cache.find([2, 2, 2, 2]) == (3, True)
    assert cache.find([3, 3, 3, 3]) == (3, True)
    assert cache.find([4, 4]) == (0, True)


def test_sequences_of_heavier_items_are_counted_in_tokens() -> None:
    cache = PrefixCache(capacity_tokens=100, weigh=lambda items: sum(tokens for _, tokens in items))
    cache.remember([(1, 50), (2, 30)])

    assert cache.held_tokens == 80
    assert cache.cached_tokens([(1, 50), (3, 30)]) == 50
    assert cache.cached_tokens([(1, 50), (2, 30)]) == 79
    cache.remember([(4, 60)])
    assert cache.cached_tokens([(1, 50), (3, 30)]) == 0


def test_extended_sequences_replace_their_prefix() -> None:
    cache = PrefixCache(capacity_tokens=100)
    cache.remember([1, 2])
    cache.remember([1, 2, 3])

    assert cache.held_tokens == 3


def test_times_follow_the_rates() -> None:
    rates = ServiceRates(decode_tokens_per_second=10, parallel_slowdown=0.5, load_bytes_per_second=100)

    assert prefill_batches(1100) == [512, 512, 76]
    assert decode_seconds_per_token(rates, 1) == pytest.approx(0.1)
    assert decode_seconds_per_token(rates, 3) == pytest.approx(0.2)
    assert load_seconds(rates, 200) == pytest.approx(2.5)
    assert decode_seconds_per_token(rates.scaled(2), 1) == pytest.approx(0.2)
    assert decode_seconds_per_token(rates, 1, sharing=2) == pytest.approx(0.2)
    assert decode_seconds_per_token(rates, 1, prefilling=1) == pytest.approx(0.1 / 0.35)
    alone = prefill_seconds(rates, 100)
    assert prefill_seconds(rates, 100, prefilling=2, sharing=3) == pytest.approx(6 * alone)


def test_pieces_join_to_the_text_and_prefixes_have_prefix_tokens() -> None:
    text = "some  words,\n and more äöü words  "

    assert "".join(pieces(text)) == text
    assert encode("some  words and") == encode("some  words and more")[: len(encode("some  words and"))]


def test_seeded_randomness_is_the_same_everywhere() -> None:
    """A changed number here changes every answer of the simulator."""
    assert seeded(1, "a").random() == seeded(1, "a").random() != seeded(1, "b").random()


def test_loopback_listeners_serve_local_names_only() -> None:
    served = ("", "localhost:11434", "127.0.0.1", "[::1]:80", "10.0.0.4", "box.internal")

    assert all(host_allowed(host) for host in served)
    assert not any(host_allowed(host) for host in ("example.com", "8.8.8.8", "localhost.example.com"))
