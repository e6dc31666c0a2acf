"""What is worth starting once: a store with every tiny model, and two real servers on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import BalancerProcess, balancer_process
from real_ollama import MODELS, Behind, RealOllama, behind, copy_store, fill, serving


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of models; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("store")
    with serving("filler", folder / "models", folder) as server:
        fill(server.url, *MODELS)
    manifests = sorted(each for each in (folder / "models" / "manifests").rglob("*") if each.is_file())
    newest = max(each.stat().st_mtime for each in manifests)
    for place, manifest in enumerate(manifests):
        # Seconds apart: Ollama lists models of the same second in a random order.
        written = newest - place
        os.utime(manifest, (written, written))
    return folder / "models"


@pytest.fixture(scope="module")
def apart(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """Two real servers with a store each, which tests may change, and a balancer in front of them."""
    folder = tmp_path_factory.mktemp("apart")
    stores = [copy_store(store, folder / "models-one"), copy_store(store, folder / "models-two")]
    with behind(stores, folder) as started:
        yield started


@pytest.fixture(scope="module")
def together(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """As `apart`, but both on one store."""
    folder = tmp_path_factory.mktemp("together")
    with behind([copy_store(store, folder / "models")] * 2, folder) as started:
        yield started


@pytest.fixture(scope="module")
def pair(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RealOllama]]:
    """Two real servers on that store, with two slots a runner."""
    folder = tmp_path_factory.mktemp("pair")
    with (
        serving("one", store, folder, OLLAMA_NUM_PARALLEL="2") as one,
        serving("two", store, folder, OLLAMA_NUM_PARALLEL="2") as two,
    ):
        yield [one, two]


@pytest.fixture(scope="module")
def balanced(pair: list[RealOllama], tmp_path_factory: pytest.TempPathFactory) -> Iterator[BalancerProcess]:
    """A balancer in front of the two."""
    folder = tmp_path_factory.mktemp("balanced")
    with balancer_process(folder, "serve", *(each.url for each in pair)) as started:
        yield started
