"""Modules marked `both_sinks` run with each of the two sinks, all others with the default one."""

import pytest

from tests.fakes import running_balancer

FAST_PATH = {"fast": True, "plain": False}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("both_sinks"):
        metafunc.parametrize("_sink", FAST_PATH, indirect=True)


@pytest.fixture(autouse=True)
def _sink(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    name = getattr(request, "param", None)
    if name is not None:
        monkeypatch.setitem(running_balancer.SETTINGS, "fast_path", FAST_PATH[name])
