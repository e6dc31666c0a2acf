"""Every row of the fault matrix for a few seconds each, with the claims that hold for all of them.

The full lengths, with what is measured, are `make faults`.
"""

from __future__ import annotations

import pytest

from tests.faults.matrix import keys, play_key


@pytest.mark.parametrize("key", keys())
def test_nothing_is_lost(key: str) -> None:
    verdict = play_key(key, short=True)

    assert verdict.account.violations == ()
    assert verdict.account.whole > 0
