"""What `serve` finds to start beside instances that are named."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from balancer.commands import running
from balancer.commands.provision import CannotProvision, find
from balancer.provisioning.existing import look_around
from balancer.provisioning.keeper import FOLDER_VARIABLE, INSTANCE_VARIABLE
from balancer.settings import Settings
from tests.fakes.foreign_ollama import foreign_ollama
from tests.fakes.gguf_file import gguf, llama
from tests.fakes.gpu_machine import GpuMachine, gpu
from tests.fakes.scripted_instance import ScriptedInstance


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    """Two GPUs, and programs that are there and are never run."""
    for name in ("ollama", "llama-server"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    machine = GpuMachine(tmp_path / "machine.json", monkeypatch)
    machine.has(gpu(0), gpu(1))
    return machine


def settings(folder: Path, **told: Any) -> Settings:
    model = folder / "tiny.gguf"
    model.write_bytes(gguf(llama(), tensors=1))
    runtimes = {"llama_server": {"models": [{"name": "tiny", "path": str(model)}]}}
    return Settings.model_validate({"runtimes": runtimes, "state_dir": str(folder / "state"), **told})


async def test_models_of_their_own_are_started_beside_named_instances_and_nothing_else(
    machine: GpuMachine, tmp_path: Path
) -> None:
    found = await find(settings(tmp_path, instances=["http://127.0.0.1:9"]))

    assert [each.name for each in found.provisioned.launches] == ["llama-server-tiny"]
    assert [each.url for each in found.settings.instances] == ["http://127.0.0.1:9"]


async def test_models_of_their_own_are_started_beside_gpu_instances_that_run_already(
    machine: GpuMachine, tmp_path: Path
) -> None:
    async with ScriptedInstance().running() as one:
        port = int(one.url.rpartition(":")[2])
        found = await find(settings(tmp_path, gpu_instances=[{"gpu_id": 0, "port": port}]))

        assert [each.name for each in found.provisioned.launches] == ["llama-server-tiny"]
        assert [each.port for each in found.settings.gpu_instances] == [port]


async def test_without_them_nothing_is_looked_for(machine: GpuMachine, tmp_path: Path) -> None:
    told = settings(tmp_path, instances=["http://127.0.0.1:9"], runtimes={})

    assert (await find(told)).provisioned.launches == ()


async def test_an_ollama_that_cannot_be_attached_is_told_of_beside_what_is_started(
    machine: GpuMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = tmp_path / "proc" / "7"
    process.mkdir(parents=True)
    (process / "comm").write_text("ollama\n")
    (process / "cmdline").write_text("ollama\0serve\0")
    (process / "cgroup").write_text(f"0::/system.slice/docker-{'ab' * 32}.scope\n")
    monkeypatch.setattr(running, "look_around", partial(look_around, proc=tmp_path / "proc"))
    monkeypatch.setattr(running, "OLLAMA_URL", "http://127.0.0.1:9")

    found = await find(settings(tmp_path))

    assert found.sentences[0] == "an Ollama runs here already: process 7, docker container abababababab"
    assert "to stop it and leave everything to the balancer: docker stop abababababab" in found.sentences
    assert found.provisioned.launches != ()


def provisioning(folder: Path, **told: Any) -> Settings:
    """Nothing is named; `told` is said of provisioning."""
    facts = {"first_port": 20_000 + os.getpid() % 900, **told}
    return Settings.model_validate({"provisioning": facts, "state_dir": str(folder / "state")})


async def test_an_ollama_that_runs_here_is_attached(machine: GpuMachine, tmp_path: Path) -> None:
    with foreign_ollama(tmp_path / "other") as other:
        found = await find(provisioning(tmp_path))

    assert other.url in [each.url for each in found.settings.instances]
    assert found.provisioned.launches == ()
    assert any(f"process {other.pid}" in each for each in found.sentences)


async def test_an_ollama_that_runs_here_can_be_left_alone(machine: GpuMachine, tmp_path: Path) -> None:
    with foreign_ollama(tmp_path / "other", HOME=str(tmp_path / "other")) as other:
        found = await find(provisioning(tmp_path, attach_existing=False))

    assert found.settings.instances == ()
    assert "gpu0-1" in [each.name for each in found.provisioned.launches]
    assert any(f"process {other.pid}" in each for each in found.sentences)
    assert any("attach_existing is false" in each for each in found.sentences)
    assert sum("OLLAMA_NOPRUNE" not in each.environment for each in found.provisioned.launches) == 1


async def test_an_instance_of_another_balancer_is_left_to_it(machine: GpuMachine, tmp_path: Path) -> None:
    marks = {FOLDER_VARIABLE: "/state/x", INSTANCE_VARIABLE: "gpu0"}
    with foreign_ollama(tmp_path / "other", HOME=str(tmp_path), **marks) as other:
        free = await find(provisioning(tmp_path, attach_existing=False))
        named = {"gpu_instances": [{"gpu_id": 0, "name": "own", "port": other.port}]}
        told = Settings.model_validate({"state_dir": str(tmp_path / "other"), **named})
        taken = await find(told)

    (sentence,) = (each for each in free.sentences if "/state/x" in each)
    assert str(other.port) in sentence
    assert not any(f"process {other.pid}" in each for each in free.sentences)
    assert all(each.environment["OLLAMA_NOPRUNE"] == "1" for each in free.provisioned.launches)
    assert "own" in [each.name for each in taken.provisioned.launches], "to be started, once the port is free"
    assert taken.settings.gpu_instances == ()


async def test_no_instance_tidies_a_store_into_which_another_ollama_may_pull(
    machine: GpuMachine, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with foreign_ollama(tmp_path / "other", HOME=str(tmp_path / "link")):
        found = await find(provisioning(tmp_path, attach_existing=False))

    assert found.provisioned.launches
    assert all(each.environment["OLLAMA_NOPRUNE"] == "1" for each in found.provisioned.launches)


async def test_none_tidies_it_beside_gpu_instances_either(machine: GpuMachine, tmp_path: Path) -> None:
    with foreign_ollama(tmp_path / "other", HOME=str(tmp_path)):
        found = await find(settings(tmp_path, gpu_instances=[{"gpu_id": 0, "name": "own", "port": 9}]))

    chosen = {each.name: each.environment for each in found.provisioned.launches}
    assert chosen["own"]["OLLAMA_NOPRUNE"] == "1"


@pytest.mark.parametrize("fate", ["crash", "NO_PERMISSION"])
async def test_gpus_that_cannot_be_asked_for_are_not_taken_for_none(
    fate: str, machine: GpuMachine, tmp_path: Path
) -> None:
    machine.has(gpu(), calls={"*": fate})

    found = await find(provisioning(tmp_path, attach_existing=False))

    assert [each.name for each in found.provisioned.launches] == ["cpu"]
    assert found.provisioned.undetected
    assert any(each.startswith("whether there are GPUs is not known") for each in found.sentences)


async def test_a_machine_without_gpus_is_none_of_which_that_is_said(
    machine: GpuMachine, tmp_path: Path
) -> None:
    machine.has()

    found = await find(provisioning(tmp_path, attach_existing=False))

    assert found.provisioned.undetected == ""
    assert not any("not known" in each for each in found.sentences)


async def test_a_gpu_that_is_named_and_cannot_be_asked_for_is_refused_with_the_reason(
    machine: GpuMachine, tmp_path: Path
) -> None:
    machine.has(gpu(), calls={"*": "NO_PERMISSION"})
    told = settings(tmp_path, gpu_instances=[{"gpu_id": 0, "port": 9}])

    with pytest.raises(CannotProvision, match=r"(?s)may not use the NVIDIA driver.*there is no GPU 0"):
        await find(told)
