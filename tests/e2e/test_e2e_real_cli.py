"""The `ollama` command works when OLLAMA_HOST names the balancer, over two real servers' own stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import ollama
import pytest
from harness import wait_for
from real_ollama import GGUF, MODELS, Behind, cli, needs_ollama

pytestmark = needs_ollama

Command = Callable[..., str]


@pytest.fixture
def run(apart: Behind, tmp_path: Path) -> Command:
    """Runs the command against the balancer."""
    return lambda *arguments: cli(apart.url, tmp_path, *arguments)


@pytest.fixture
def own(apart: Behind, run: Command) -> Iterator[str]:
    """A model of the test's own, created from a GGUF file by the command; gone afterwards."""
    modelfile = GGUF / "say.gguf"
    folder = apart.servers[0].child.out.parent
    (folder / "Modelfile").write_text(f"FROM {modelfile}\nPARAMETER num_thread 1\n")
    run("create", "own", "-f", str(folder / "Modelfile"))
    yield "own:latest"
    with ollama.Client(host=apart.url) as client:
        if "own:latest" in {each.model for each in client.list().models}:
            client.delete("own")


def column(printed: str) -> set[str]:
    """The names in the first column of what was printed."""
    return {line.split()[0] for line in printed.splitlines()[1:]}


def test_version_is_that_of_the_fleet(run: Command) -> None:
    assert "ollama version is 0." in run("-v")


def test_list_names_every_model(run: Command) -> None:
    assert {f"{name}:latest" for name in MODELS} <= column(run("list"))


def test_show_tells_what_a_model_can_do(run: Command) -> None:
    shown = run("show", "tool")

    assert "tools" in shown
    assert "completion" in shown


def test_run_prints_an_answer_and_ps_the_runner(run: Command) -> None:
    assert run("run", "say", "Hello").startswith("Hello there, café naïve ☃ 😀")
    wait_for(lambda: "say:latest" in column(run("ps")), about="the runner in a list read since")


def test_stop_unloads_at_every_server(apart: Behind, run: Command) -> None:
    for server in apart.servers:
        cli(server.url, apart.servers[0].child.out.parent, "run", "think", "Hello")
    assert all("think:latest" in each.resident() for each in apart.servers)

    run("stop", "think")

    wait_for(lambda: not any("think:latest" in each.resident() for each in apart.servers))
    assert "think:latest" not in column(run("ps"))


def test_create_gives_the_model_to_every_store(apart: Behind, run: Command, own: str) -> None:
    assert own in column(run("list"))
    assert all(own in each.listed() for each in apart.servers)
    assert run("run", "own", "Hello").startswith("Hello there")


def test_copy_and_remove_reach_every_store(apart: Behind, run: Command, own: str) -> None:
    run("cp", "own", "twin")
    copied = [each.listed() for each in apart.servers]
    listed = column(run("list"))
    run("rm", "twin", "own")

    assert {"twin:latest", own} <= listed
    assert all({"twin:latest", own} <= each for each in copied)
    assert not {"twin:latest", own} & column(run("list"))
    assert not any({"twin:latest", own} & each.listed() for each in apart.servers)
