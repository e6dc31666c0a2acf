"""Every fuzz target over its seeds, the kept corpus and a few made-up inputs; `make fuzz` takes its time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS

_CORPUS_BYTES = 300_000


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept_breaks_no_promise(name: str) -> None:
    target = TARGETS[name]
    inputs = [*target.seeds(), *corpus.kept(name), b"", b"\0", b"\xff" * 8]

    for each in inputs:
        target.examine(each)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_made_up_breaks_no_promise(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.inputs)
    def examine(data: bytes) -> None:
        target.examine(data)

    examine()


def test_the_corpus_is_small_and_knows_every_target() -> None:
    files = sorted(each.stem for each in corpus.FOLDER.iterdir())

    assert files == sorted(TARGETS)
    assert sum(each.stat().st_size for each in corpus.FOLDER.iterdir()) < _CORPUS_BYTES
