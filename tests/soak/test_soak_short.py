"""The soak for a short time, and the fixed number of requests: `make soak` is the long one.

SETTINGS are those that a run must hold with; what a switch of the configuration changes belongs there.
"""

from __future__ import annotations

from typing import Any

import pytest
import uvloop

from tests.soak.run import Soaked, soak

SETTINGS: tuple[dict[str, Any], ...] = ({},)
_SECONDS = 15.0
_REQUESTS = 1500
_PATIENCE_SECONDS = 90.0
_GROWTH_BYTES = 256 << 20
"""A run this short ends within the warm-up of the allocator: only what runs away shows."""


def check(soaked: Soaked) -> None:
    """The claims that hold for every run."""
    assert soaked.violations == []
    assert soaked.growth_bytes < _GROWTH_BYTES


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_soak_leaves_nothing_behind(settings: dict[str, Any]) -> None:
    soaked = uvloop.run(soak(seconds=_SECONDS, clients=16, settings=settings))

    check(soaked)
    assert soaked.ended_whole > 0


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_no_marker_comes_to_the_wrong_client(settings: dict[str, Any]) -> None:
    """The same 1,500 requests each time, a fifth of them aborted anywhere."""
    soaked = uvloop.run(
        soak(seconds=_PATIENCE_SECONDS, clients=16, settings=settings, requests=_REQUESTS, seed=7)
    )

    check(soaked)
    assert len(soaked.tally.ended) >= _REQUESTS
    assert sum(soaked.tally.aborts.values()) > _REQUESTS / 10
