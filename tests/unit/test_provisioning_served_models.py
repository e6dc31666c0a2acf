"""Which instances the models of vLLM and llama-server get: where, with how much memory, in which order."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from runtime_hosts import GIB, MIB, UUIDS, device, host

from balancer.core.device import Device
from balancer.core.plan import PlannedInstance, Runtime
from balancer.provisioning.runtimes import CannotLaunch, Host, launches
from balancer.provisioning.runtimes.shares import left_for_ollama
from balancer.provisioning.served_models import served_models, weights_bytes
from balancer.settings import Settings
from tests.fakes import gguf_file


def folder_of(root: Path, name: str, mib: float) -> str:
    """A model's folder with two files of weights, which take no room on the disk."""
    folder = root / name
    folder.mkdir(parents=True)
    for part in (1, 2):
        with (folder / f"model-{part}.safetensors").open("wb") as file:
            file.truncate(round(mib * MIB / 2))
    (folder / "config.json").write_text("{}" * 1000)
    return str(folder)


def gguf(root: Path, name: str, mib: float) -> str:
    return str(gguf_file.sparse(root / name, round(mib * MIB)))


def model(name: str, path: str, **more: object) -> dict[str, object]:
    return {"name": name, "path": path, **more}


def planned(
    folder: Path,
    *devices: Device,
    vllm: Sequence[Mapping[str, object]] = (),
    llama_server: Sequence[Mapping[str, object]] = (),
    models: Sequence[Mapping[str, object]] = (),
    enabled: bool = True,
    **settings: object,
) -> tuple[PlannedInstance, ...]:
    runtimes = {
        "vllm": {"enabled": enabled, "models": list(vllm)},
        "llama_server": {"models": list(llama_server)},
        "models": list(models),
    }
    own = host(folder, *devices, runtimes=runtimes, **settings)
    return served_models(own, host_memory_bytes=64 * GIB, ports=count(11500))


def test_each_model_gets_an_instance_smallest_first(tmp_path: Path) -> None:
    found = planned(
        tmp_path,
        device(gib=32),
        vllm=[
            model("yi:6b", folder_of(tmp_path, "yi", 5000), slots=16, context_length=2048),
            model("qwen2.5:3b", folder_of(tmp_path, "qwen", 2000)),
        ],
        llama_server=[model("tiny", gguf(tmp_path, "tiny.gguf", 100))],
    )

    assert [each.models[0] for each in found] == ["tiny", "qwen2.5:3b", "yi:6b"]
    assert [each.port for each in found] == [11500, 11501, 11502]
    assert [each.name for each in found] == ["llama-server-tiny", "vllm-qwen2.5:3b", "vllm-yi:6b"]
    assert (found[2].slots, found[2].context_length) == (16, 2048)
    assert str(tmp_path / "yi") == found[2].model_path
    assert {(UUIDS[0],)} == {each.devices for each in found}


def test_vllms_need_is_guessed_as_two_and_a_half_times_its_weights(tmp_path: Path) -> None:
    (found,) = planned(tmp_path, device(), vllm=[model("a", folder_of(tmp_path, "a", 2048))])

    assert found.memory_bytes == 5 * GIB
    assert found.reason == "'a' of runtimes.vllm.models: 5.0 GiB, guessed from 2.0 GiB of weights"


def test_a_model_that_fits_but_for_its_guess_gets_what_there_is(tmp_path: Path) -> None:
    (found,) = planned(tmp_path, device(gib=24), vllm=[model("a", folder_of(tmp_path, "a", 14 * 1024))])

    assert round(24 * GIB * 0.95) == found.memory_bytes


def test_a_model_that_cannot_fit_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        CannotLaunch, match=r"model 'a' has 22\.0 GiB of weights, and GPU 0 \(card 0\) has 24\.0"
    ):
        planned(tmp_path, device(gib=24), vllm=[model("a", folder_of(tmp_path, "a", 22 * 1024))])


def test_a_share_that_is_asked_for_is_taken_as_it_is(tmp_path: Path) -> None:
    (found,) = planned(
        tmp_path, device(gib=24), vllm=[model("a", folder_of(tmp_path, "a", 100), memory_share=0.25)]
    )

    assert found.memory_bytes == 6 * GIB
    assert found.reason.endswith("6.0 GiB, memory_share 0.25")


def test_shares_of_one_gpu_that_come_to_1_are_refused_by_name(tmp_path: Path) -> None:
    models = [
        model(name, folder_of(tmp_path, name, 100), memory_share=0.5, devices=[devices])
        for name, devices in (("a", "0"), ("b", UUIDS[0]))
    ]

    with pytest.raises(CannotLaunch, match=r"'vllm-a' 0\.50, 'vllm-b' 0\.50: together 1\.00"):
        planned(tmp_path, device(), vllm=models)


def test_models_without_a_device_go_where_most_is_left_the_largest_first(tmp_path: Path) -> None:
    found = planned(
        tmp_path,
        device(0, gib=24),
        device(1, gib=24),
        vllm=[
            model("named", folder_of(tmp_path, "named", 4096), devices=[0]),
            model("large", folder_of(tmp_path, "large", 6144)),
            model("small", folder_of(tmp_path, "small", 1024)),
        ],
    )

    assert {"small": (UUIDS[0],), "named": (UUIDS[0],), "large": (UUIDS[1],)} == {
        each.models[0]: each.devices for each in found
    }


def test_a_model_over_several_gpus_takes_a_share_of_each(tmp_path: Path) -> None:
    models = [model("a", folder_of(tmp_path, "a", 100), devices=[0, 1], memory_share=0.5)]

    (found,) = planned(tmp_path, device(0, gib=24), device(1, gib=24), vllm=models)

    assert found.devices == UUIDS
    assert found.memory_bytes == 24 * GIB


def test_what_is_left_over_several_gpus_is_the_same_share_of_each(tmp_path: Path) -> None:
    first = model("a", folder_of(tmp_path, "a", 12 * 1024), devices=[0], memory_share=0.75)

    both = model("b", folder_of(tmp_path, "b", 7 * 1024), devices=[0, 1])
    found, _ = planned(tmp_path, device(0, gib=24), device(1, gib=24), vllm=[first, both])
    assert round(12 * GIB * 0.95) == found.memory_bytes

    both = model("c", folder_of(tmp_path, "c", 11 * 1024), devices=[0, 1])
    with pytest.raises(CannotLaunch, match=r"GPU 0 \(card 0\), GPU 1 \(card 1\) has 12\.0 GiB left"):
        planned(tmp_path, device(0, gib=24), device(1, gib=24), vllm=[first, both])


def test_what_others_hold_beyond_the_reserve_is_not_counted_on(tmp_path: Path) -> None:
    models = [model("a", folder_of(tmp_path, "a", 4096))]

    def free(gib: int) -> list[Device]:
        return [replace(device(0, gib=24), free_bytes=gib * GIB), device(1, gib=23)]

    (beside_little,) = planned(tmp_path, *free(22), vllm=models)
    (elsewhere,) = planned(tmp_path, *free(21), vllm=models)
    (tight,) = planned(tmp_path, free(8)[0], vllm=models)

    assert (beside_little.devices, elsewhere.devices) == ((UUIDS[0],), (UUIDS[1],))
    assert round(8 * GIB * 0.95) == tight.memory_bytes


def test_a_gpu_without_memory_is_refused_whatever_the_share(tmp_path: Path) -> None:
    models = [model("a", folder_of(tmp_path, "a", 1), memory_share=0.5)]

    with pytest.raises(CannotLaunch, match=r"memory_share 0\.5, and GPU 0 \(card 0\) has 0\.0 GiB left"):
        planned(tmp_path, device(gib=0), vllm=models)


def test_the_runtime_of_a_model_is_chosen_by_its_files(tmp_path: Path) -> None:
    one = tmp_path / "one.gguf"
    one.write_bytes(gguf_file.gguf(gguf_file.llama(), tensors=3))
    weights = {"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}
    header = json.dumps(weights).encode()
    two = tmp_path / "two"
    two.mkdir()
    (two / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (two / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"ab")

    found = planned(tmp_path, device(), models=[model("a", str(one)), model("b", str(two))])

    assert {each.models[0]: each.runtime for each in found} == {
        "a": Runtime.LLAMA_SERVER,
        "b": Runtime.VLLM,
    }
    assert all("of runtimes.models" in each.reason for each in found)


@pytest.mark.parametrize("key", ["models", "llama_server"])
def test_a_model_is_served_with_the_projector_in_its_folder(tmp_path: Path, key: str) -> None:
    seeing = tmp_path / "seeing"
    seeing.mkdir()
    (seeing / "model.gguf").write_bytes(gguf_file.gguf(gguf_file.llama(), tensors=3))
    eyes = gguf_file.gguf({"general.architecture": "clip"}, tensors=3, tail=bytes(100 * MIB))
    (seeing / "mmproj.gguf").write_bytes(eyes)
    devices = (device(),)

    both, alone = (
        planned(tmp_path, *devices, **{key: [model("m", str(path))]})
        for path in (seeing, seeing / "model.gguf")
    )
    (launch,) = launches(both, host(tmp_path, *devices))

    assert launch.arguments[launch.arguments.index("--mmproj") + 1] == str(seeing / "mmproj.gguf")
    assert both[0].memory_bytes - alone[0].memory_bytes >= 100 * MIB


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gguf_file.gguf(gguf_file.llama({"llama.pooling_type": 1}), tensors=3), "is one for Ollama"),
        (b"GGUF", "is no readable GGUF file"),
        (b"something", "model 'a': "),
    ],
)
def test_a_model_that_neither_serves_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "a.gguf").write_bytes(content)

    with pytest.raises(CannotLaunch, match=told):
        planned(tmp_path, device(), models=[model("a", str(tmp_path / "a.gguf"))])


def test_without_the_switch_vllm_serves_nothing(tmp_path: Path) -> None:
    assert planned(tmp_path, device(), vllm=[model("a", "/nowhere")], enabled=False) == ()


def test_llama_server_goes_to_the_cpu_where_asked_or_where_there_is_nothing_else(tmp_path: Path) -> None:
    path = gguf(tmp_path, "a.gguf", 1024)

    (asked,) = planned(tmp_path, device(), llama_server=[model("a", path, devices=["CPU"])])
    (alone,) = planned(tmp_path, llama_server=[model("a", path)])

    assert (asked.devices, alone.devices) == ((), ())
    assert round(1.2 * GIB) + GIB == asked.memory_bytes


@pytest.mark.parametrize(
    ("share", "problem"),
    [
        (None, r"model 'a' has 30\.0 GiB of weights, and this host has 27\.0 GiB left"),
        (0.6, r"model 'a' has memory_share 0\.6, and this host has 25\.6 GiB left"),
    ],
)
def test_models_on_the_cpu_together_take_no_more_than_the_host_has(
    tmp_path: Path, share: float | None, problem: str
) -> None:
    models = [
        model(name, gguf(tmp_path, name, 30 * 1024), memory_share=share, devices=["cpu"]) for name in "ab"
    ]

    assert len(planned(tmp_path, llama_server=models[:1])) == 1
    with pytest.raises(CannotLaunch, match=problem):
        planned(tmp_path, llama_server=models)


@pytest.mark.parametrize(
    ("devices", "problem"),
    [
        ([3], r"model 'a' is to run on GPU '3'; the GPUs here are 0 \(card 0\)"),
        (["cpu"], r"model 'a': \[cpu\] is for llama-server, and stands alone"),
        (["cpu", 0], r"model 'a': \[cpu\] is for llama-server, and stands alone"),
        ([0, UUIDS[0]], r"model 'a' names a GPU twice in its devices"),
    ],
)
def test_a_device_that_cannot_be_is_refused_with_those_there_are(
    tmp_path: Path, devices: list[object], problem: str
) -> None:
    with pytest.raises(CannotLaunch, match=problem):
        planned(tmp_path, device(), vllm=[model("a", folder_of(tmp_path, "a", 1), devices=devices)])


def test_vllm_without_any_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotLaunch, match="vLLM needs a GPU for model 'a', and none was found"):
        planned(tmp_path, vllm=[model("a", folder_of(tmp_path, "a", 1))])


def test_two_instances_of_one_name_are_told_apart(tmp_path: Path) -> None:
    path = gguf(tmp_path, "a.gguf", 10)
    long = "x" * 80

    found = planned(
        tmp_path, llama_server=[model("hf.co/a", path), model("hf.co/a", path), *[model(long, path)] * 2]
    )

    names = [each.name for each in found]
    assert names[:2] == ["llama-server-hf.co-a", "llama-server-hf.co-a-2"]
    assert len(set(names)) == 4
    assert all(len(name) <= 64 for name in names)


def test_names_of_the_configuration_are_passed_over(tmp_path: Path) -> None:
    path = gguf(tmp_path, "a.gguf", 10)

    (found,) = planned(
        tmp_path,
        llama_server=[model("a", path)],
        instances=[{"url": "http://gpu9:1", "name": "llama-server-a"}],
        gpu_instances=[{"gpu_id": 0, "port": 2, "name": "llama-server-a-2"}],
    )

    assert found.name == "llama-server-a-3"


def test_all_parts_of_a_gguf_count(tmp_path: Path) -> None:
    for part in (1, 2, 3):
        gguf(tmp_path, f"big-0000{part}-of-00003.gguf", 10)
    gguf(tmp_path, "other-00002-of-00003.gguf", 10)

    assert weights_bytes(tmp_path / "big-00001-of-00003.gguf") == 30 * MIB


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.gguf", b"something", "model 'a': 'a.gguf' is no readable GGUF file: it does not begin with GGUF"),
        ("a.txt", b"something", "model 'a': no model in .*: there is 'a.txt'"),
        ("a.gguf", b"version https://git-lfs.github.com/spec/v1", "model 'a': 'a.gguf' is a Git LFS pointer"),
        ("a-00001-of-00002.gguf", gguf_file.gguf({}, tensors=1), "model 'a': 1 of 2 parts are missing"),
        ("b.gguf", b"", "model 'a': '.*a.gguf' cannot be read: No such file"),
    ],
)
def test_what_llama_server_cannot_read_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    path = tmp_path / (name if name != "b.gguf" else "a.gguf")

    with pytest.raises(CannotLaunch, match=told):
        planned(tmp_path, device(), llama_server=[model("a", str(path))])


def test_a_model_of_vllm_is_refused_for_llama_server(tmp_path: Path) -> None:
    folder = Path(folder_of(tmp_path, "a", 1))
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    for each in folder.glob("*.safetensors"):
        each.write_bytes(struct.pack("<Q", 2) + b"{}")

    with pytest.raises(CannotLaunch, match="model 'a' is none for llama-server: LlamaForCausalLM in 2"):
        planned(tmp_path, device(), llama_server=[model("a", str(folder))])


def test_a_model_in_parts_is_named_by_any_of_them(tmp_path: Path) -> None:
    paths = [gguf(tmp_path, f"big-0000{part}-of-00003.gguf", 1024) for part in (1, 2, 3)]

    (found,) = planned(tmp_path, device(gib=24), llama_server=[model("a", paths[1])])

    assert found.model_path == paths[0]
    assert found.memory_bytes == round(3 * 1.2 * GIB) + GIB


def test_a_path_is_that_of_the_balancers_folder_wherever_the_process_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.gguf").write_bytes(gguf_file.gguf(gguf_file.llama(), tensors=1))
    gguf(tmp_path, "a.gguf", 100)

    found = planned(tmp_path, llama_server=[model("a", "a.gguf")], models=[model("b", "b.gguf")])

    assert {each.model_path for each in found} == {str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")}


@pytest.mark.parametrize(
    "name", ["missing", "empty", "missing.gguf", "missing/m-00001-of-00002.gguf", "long" * 100]
)
def test_a_model_without_weights_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(CannotLaunch, match=name):
        weights_bytes(tmp_path / name)


def test_ollama_gets_what_is_left(tmp_path: Path) -> None:
    devices = (device(0, gib=24), device(1, gib=8))
    found = planned(
        tmp_path,
        *devices,
        vllm=[model("a", folder_of(tmp_path, "a", 100), devices=[0, 1], memory_share=0.25)],
    )

    left = left_for_ollama(devices, found)

    assert [each.memory_bytes for each in left] == [18 * GIB, 6 * GIB]
    assert [each.free_bytes for each in left] == [18 * GIB, 6 * GIB]


@given(
    sizes=st.lists(st.integers(1, 60_000), max_size=6),
    cards=st.lists(st.integers(4, 96), min_size=1, max_size=2),
)
def test_no_device_is_promised_more_than_it_has(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], cards: list[int]
) -> None:
    """Whatever is planned can be launched, and leaves every device something; else it is refused."""
    folder = tmp_path_factory.mktemp("models")
    devices = tuple(device(index, gib=gib) for index, gib in enumerate(cards))
    models = [model(f"m{index}", folder_of(folder, f"m{index}", mib)) for index, mib in enumerate(sizes)]
    own = host(folder, *devices)
    settings = Settings.model_validate({"runtimes": {"vllm": {"enabled": True, "models": models}}})
    whole = Host(devices, own.environ, settings)

    try:
        found = served_models(whole, host_memory_bytes=GIB, ports=count(1))
    except CannotLaunch:
        return

    assert len(sizes) == len(launches(found, whole))
    for each in devices:
        assert sum(one.memory_bytes for one in found if each.key in one.devices) < each.memory_bytes
    assert all(one.runtime is Runtime.VLLM for one in found)
    assert sorted(sizes) == [sizes[int(one.models[0][1:])] for one in found]
