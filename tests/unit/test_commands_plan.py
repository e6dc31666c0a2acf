"""`balancer plan`: what it prints, as a table and as JSON, and what it refuses."""

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from balancer.cli import main
from balancer.commands.plan import as_data, parse_gpus, render
from balancer.core.device import Device
from balancer.core.plan import Plan, PlannedDevice, PlannedInstance, Runtime
from balancer.provisioning.devices import detect
from balancer.provisioning.plan import make_plan
from balancer.settings import Settings
from tests.fakes.foreign_ollama import foreign_ollama
from tests.fakes.gguf_file import gguf, llama, sparse, store
from tests.fakes.gpu_machine import GpuMachine, gpu

GIB = 2**30


@pytest.fixture(autouse=True)
def _nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no variable and no store of this machine plays a part."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in list(os.environ):
        if name.upper().startswith(("BALANCER_", "GPU_", "MODEL_POOL_", "OLLAMA_")):
            monkeypatch.delenv(name)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(("plan", *arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert isinstance(data, dict)
    return data


def test_json_has_every_device_and_instance() -> None:
    planned = make_plan(parse_gpus("RTX 4090:24,RTX 3060:12"), 64 * GIB, Settings())

    data = as_data(planned, ["a note"])

    assert list(data) == ["devices", "spanning", "notes"]
    assert [list(each) for each in data["devices"]] == [
        ["name", "index", "uuid", "memory_bytes", "instances"]
    ] * 2
    assert data["devices"][1] == {
        "name": "RTX 3060",
        "index": 1,
        "uuid": "",
        "memory_bytes": 12 * GIB,
        "instances": [
            {
                "name": "gpu1",
                "port": 11503,
                "memory_bytes": 10 * GIB,
                "runtime": "ollama",
                "reason": "1 instance below 14 GiB; context 32768: 4.0 GiB of KV cache beside an assumed 8B "
                "model (4.6 GiB)",
                "slots": 1,
                "context_length": 32768,
                "prompt_cache_bytes": 64 * GIB * 3 // 10 // 5,
                "models": [],
                "max_concurrent_requests": None,
                "weight": 1.0,
            }
        ],
    }
    (spanning,) = data["spanning"]
    assert (spanning["name"], spanning["port"], spanning["devices"]) == ("gpus", 11504, ["0", "1"])
    assert (spanning["runtime"], spanning["memory_bytes"]) == ("ollama", 0)
    assert spanning["reason"].startswith("for models that no single GPU holds; ")
    assert data["notes"] == ["a note"]


def test_the_table_of_the_manual_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "provisioning.md").read_text()

    assert run("--gpus", "RTX 4090:24,RTX 3060:12") == 0

    table, _, rest = capsys.readouterr().out.partition("\n\n")
    assert f"$ balancer plan --gpus 'RTX 4090:24,RTX 3060:12'\n{table}\n```" in page
    assert rest.startswith("each may keep prompt caches of ")


def test_a_device_without_instances_and_one_that_spans_are_shown() -> None:
    card = Device(index=3, name="bad\nname", memory_bytes=GIB, free_bytes=GIB)
    other = Device(index=4, name="b", memory_bytes=GIB, free_bytes=GIB)
    spanning = PlannedInstance(
        name="v", port=9, runtime=Runtime.VLLM, devices=("3", "4"), memory_bytes=3 * 2**29, reason="r"
    )
    planned = Plan(
        devices=tuple(
            PlannedDevice(name=gpu.name, memory_bytes=GIB, instances=(), gpu=gpu) for gpu in (card, other)
        ),
        spanning=(spanning,),
    )

    lines = render(planned, ["look"]).splitlines()

    assert lines[1].split("  ")[0] == "GPU 3: bad\\nname, 1.0 GiB"
    assert lines[1].split()[-6:] == ["-"] * 6
    assert lines[3].split() == ["GPU", "3", "+", "4", "v", "9", "vllm", "1.5", "GiB", "-", "r"]
    assert lines[-1] == "note: look"


def test_a_reason_is_told_once_and_another_one_is_told() -> None:
    items = [
        {"gpu_id": 0, "port": port, "memory_limit": limit * GIB} for port, limit in ((1, 7), (2, 7), (3, 9))
    ]
    settings = Settings.model_validate({"gpu_instances": items})

    lines = render(make_plan(parse_gpus("a:24"), 64 * GIB, settings), []).splitlines()

    assert [line.split("ollama")[1].split()[3:5] for line in lines[1:4]] == [
        ["by", "gpu_instances;"],
        ["the", "same"],
        ["by", "gpu_instances;"],
    ]


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("RTX 4090:24", [("RTX 4090", 24 * GIB)]),
        ("a:0.5, b : 8", [("a", GIB // 2), ("b", 8 * GIB)]),
        ("NVIDIA: H100:80", [("NVIDIA: H100", 80 * GIB)]),
    ],
)
def test_gpus_are_named_with_their_memory(text: str, devices: list[tuple[str, int]]) -> None:
    found = parse_gpus(text)

    assert [(each.name, each.memory_bytes) for each in found] == devices
    assert [each.index for each in found] == list(range(len(devices)))
    assert all(each.free_bytes == each.memory_bytes for each in found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "24",
        ":24",
        " :24",
        "a:",
        "a:x",
        "a:0",
        "a:-1",
        "a:nan",
        "a:inf",
        "a:4097",
        "a:24GB",
        "a:1,",
        "a\x1b:1",
    ],
)
def test_other_text_exits_2_and_tells_what_is_allowed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--gpus", text) == 2
    assert "NAME:GIB" in capsys.readouterr().err


def test_too_many_gpus_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--gpus", ",".join(["a:1"] * 65)) == 2
    assert "65 GPUs are named; at most 64" in capsys.readouterr().err


def test_configuration_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("provisioning: {instances_per_device: 2, first_port: 12000}\n")
    (tmp_path / "b.yaml").write_text("provisioning: {first_port: 12500}\nprovision: off\n")

    data = told(capsys, "--gpus", "a:8", "--config", "a.yaml", "--config", "b.yaml")

    assert [each["port"] for each in data["devices"][0]["instances"]] == [12500, 12501]
    assert data["notes"] == ["provision is off: serve starts none of them"]


def test_what_serve_does_not_start_beside_named_instances_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("instances: ['http://127.0.0.1:9']\n")

    (note,) = told(capsys, "--gpus", "a:8", "--config", "a.yaml")["notes"]

    assert note.startswith("instances are named: serve starts those of gpu_instances and of runtimes alone")


@pytest.mark.parametrize(
    ("configuration", "fault"),
    [
        (
            "provisioning: {first_prt: 1}",
            "a.yaml: provisioning.first_prt: unknown key, did you mean 'first_port'?",
        ),
        (
            "gpu_instances: [{gpu_id: 2, port: 5}]",
            "this machine: gpu_instances[0].gpu_id: there is no GPU 2, there are GPU 0 (a)",
        ),
    ],
)
def test_faults_exit_2(
    configuration: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(configuration)

    assert run("--gpus", "a:8", "--config", "a.yaml") == 2

    captured = capsys.readouterr()
    assert captured.err == fault + "\n"
    assert captured.out == ""


def test_models_of_the_store_are_planned_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = gguf(llama({"llama.context_length": 12345}))
    store(tmp_path / "store", {"registry.ollama.ai/library/mine/latest": model})
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    monkeypatch.setenv("BALANCER_PROVISIONING__MODEL", "mine")

    data = told(capsys, "--gpus", "a:8")

    assert data["devices"][0]["instances"][0]["context_length"] == 12345


def test_the_type_of_the_kv_cache_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def context() -> int:
        found = told(capsys, "--gpus", "a:12")["devices"][0]["instances"][0]["context_length"]
        assert isinstance(found, int)
        return found

    assert context() == 32768
    monkeypatch.setenv("OLLAMA_KV_CACHE_TYPE", "q8_0")
    assert context() == 65536


def test_weights_are_the_bandwidths_of_the_gpus_by_their_mean(capsys: pytest.CaptureFixture[str]) -> None:
    devices = told(capsys, "--gpus", "RTX 4070:12,RTX 3060:12,RTX 4090:24")["devices"]

    mean = (504 + 360 + 1008) / 3
    assert [each["weight"] for device in devices for each in device["instances"]] == [
        pytest.approx(504 / mean, abs=0.01),
        pytest.approx(360 / mean, abs=0.01),
        *[pytest.approx(1008 / mean / 3, abs=0.01)] * 3,
    ]


def test_without_names_the_gpus_of_this_machine_are_planned_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever this machine is: as it was detected, and why where nothing was."""
    detection = asyncio.run(detect(10))

    data = told(capsys)

    gpus = [(each["index"], each["uuid"]) for each in data["devices"] if each["index"] is not None]
    assert gpus == sorted((each.index, each.uuid) for each in detection.devices)
    assert bool(detection.reason) != bool(detection.devices)
    reasons = [detection.reason] if detection.reason else []
    assert data["notes"][: len(reasons) + len(detection.notes)] == [*reasons, *detection.notes]


def test_an_ollama_that_runs_here_is_told_since_serve_attaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with foreign_ollama(tmp_path / "other") as other:
        attached = told(capsys)["notes"]
        monkeypatch.setenv("BALANCER_PROVISIONING__ATTACH_EXISTING", "false")
        alone = told(capsys)["notes"]
        elsewhere = told(capsys, "--gpus", "a:8")["notes"]

    (note,) = (each for each in attached if "serve attaches what runs and starts none of these" in each)
    assert other.url in note
    assert any(f"process {other.pid}" in each for each in attached)
    assert not any("serve attaches" in each for each in alone)
    assert any("attach_existing is false" in each for each in alone)
    assert elsewhere == []


def test_an_ollama_where_gpu_instances_are_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    GpuMachine(tmp_path / "machine.json", monkeypatch).has(gpu())
    with foreign_ollama(tmp_path / "other") as other:
        (tmp_path / "a.yaml").write_text(f"gpu_instances: [{{gpu_id: 0, port: {other.port}, name: own}}]")
        notes = told(capsys, "--config", "a.yaml")["notes"]

    assert "Ollama answers where gpu_instances have own: serve attaches what runs there" in notes


def test_a_gpu_that_cannot_be_asked_for_is_told_with_what_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    GpuMachine(tmp_path / "machine.json", monkeypatch).has(gpu(), calls={"*": "NO_PERMISSION"})
    (tmp_path / "a.yaml").write_text("gpu_instances: [{gpu_id: 0, port: 9}]")

    assert any(each.startswith("whether there are GPUs is not known") for each in told(capsys)["notes"])
    assert run("--config", "a.yaml") == 2
    shown = capsys.readouterr().err
    assert "may not use the NVIDIA driver" in shown
    assert "there is no GPU 0" in shown


def weights(path: Path, size: int) -> Path:
    """A file of weights; it takes no room on the disk."""
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


SERVED = """
gpu_instances: [{gpu_id: 1, port: 11501, name: llama-server-small}]
runtimes:
  vllm:
    enabled: true
    models:
      - {name: both, path: ~/both, devices: [0, 1], memory_share: 0.25}
      - {name: large, path: ~/large}
  llama_server:
    models: [{name: small, path: ~/small.gguf, devices: [cpu]}]
"""


def test_served_models_are_planned_and_their_programs_are_not_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights(tmp_path / "both" / "a.safetensors", GIB)
    weights(tmp_path / "large" / "a.safetensors", 2 * GIB)
    sparse(tmp_path / "small.gguf", 1)
    (tmp_path / "a.yaml").write_text(SERVED)
    monkeypatch.setenv("PATH", "")

    data = told(capsys, "--gpus", "a:24,b:12", "--config", "a.yaml")

    found = [[(each["name"], each["port"]) for each in device["instances"]] for device in data["devices"]]
    assert found == [
        [("vllm-large", 11503), ("gpu0", 11504)],
        [("llama-server-small", 11501)],
        [("llama-server-small-2", 11500)],
    ]
    assert [(each["name"], each["port"], each["devices"]) for each in data["spanning"]] == [
        ("vllm-both", 11502, ["0", "1"])
    ]
    assert [each["memory_bytes"] for each in data["devices"][0]["instances"]] == [
        5 * GIB,
        (24 - 6 - 5 - 2) * GIB,
    ]


@pytest.mark.parametrize(
    ("model", "told_of"),
    [
        (
            "{name: large, path: /nowhere/a.gguf}",
            "model 'large': '/nowhere/a.gguf' cannot be read: No such file or directory",
        ),
        (
            "{name: large, path: ~/text.gguf}",
            "model 'large': 'text.gguf' is no readable GGUF file: it does not begin with GGUF",
        ),
        (
            "{name: large, path: ~/large.gguf}",
            "model 'large' has 20.0 GiB of weights, and GPU 0 (a) has 8.0 GiB left for it: name other "
            "devices, or fewer models",
        ),
        (
            "{name: large, path: ~/large.gguf, devices: [3]}",
            "model 'large' is to run on GPU '3'; the GPUs here are 0 (a)",
        ),
    ],
)
def test_a_served_model_that_cannot_be_planned_exits_2(
    model: str, told_of: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse(tmp_path / "large.gguf", 20 * GIB)
    (tmp_path / "text.gguf").write_text("text")
    (tmp_path / "a.yaml").write_text(f"runtimes: {{llama_server: {{models: [{model}]}}}}")

    assert run("--gpus", "a:8", "--config", "a.yaml") == 2

    captured = capsys.readouterr()
    assert captured.err == told_of + "\n"
    assert captured.out == ""


def test_too_few_ports_for_served_models_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sparse(tmp_path / "a.gguf", GIB)
    entry = "{name: a, path: ~/a.gguf}"
    (tmp_path / "a.yaml").write_text(
        f"provisioning: {{first_port: 65535}}\nruntimes: {{llama_server: {{models: [{entry}, {entry}]}}}}"
    )

    assert run("--gpus", "a:8", "--config", "a.yaml") == 2
    assert "provisioning.first_port: no port is left" in capsys.readouterr().err


def test_ports_that_are_taken_here_are_passed_over_for_this_machine_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        (tmp_path / "a.yaml").write_text(f"provisioning: {{first_port: {port}}}")

        here = told(capsys, "--config", "a.yaml")
        elsewhere = told(capsys, "--gpus", "a:8", "--config", "a.yaml")

    assert here["devices"][0]["instances"][0]["port"] > port
    assert elsewhere["devices"][0]["instances"][0]["port"] == port
