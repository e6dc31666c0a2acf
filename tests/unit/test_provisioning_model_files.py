"""Which runtime a folder or file of a model is for, and why others are refused."""

import json
import os
import struct
from pathlib import Path

import pytest

from balancer.core.plan import Runtime
from balancer.provisioning.model_files import ModelFiles, Refused, runtime_of
from balancer.provisioning.vllm_architectures import SERVED
from tests.fakes.gguf_file import gguf, llama

MODEL = gguf(llama(), tensors=3)
PART = gguf({"general.architecture": "llama"})
PROJECTOR = gguf({"general.architecture": "clip"}, tensors=3)
TENSORS = struct.pack("<Q", 2) + b"{}" + bytes(10)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def config(*architectures: str) -> bytes:
    return json.dumps({"architectures": architectures}).encode()


def index(*names: str) -> bytes:
    return json.dumps({"weight_map": {f"layer.{at}": name for at, name in enumerate(names)}}).encode()


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def chosen(path: Path) -> ModelFiles:
    found = runtime_of(path, vllm_enabled=True)
    assert isinstance(found, ModelFiles), found
    return found


def refused(path: Path, *, vllm_enabled: bool = True) -> str:
    found = runtime_of(path, vllm_enabled=vllm_enabled)
    assert isinstance(found, Refused), found
    return found.reason


def test_a_gguf_file_is_for_ollama_and_llama_server(tmp_path: Path) -> None:
    folder(tmp_path, {"a.gguf": MODEL, "README.md": b"x"})

    expected = ModelFiles(
        runtimes=(Runtime.OLLAMA, Runtime.LLAMA_SERVER),
        path=str(tmp_path / "a.gguf"),
        size_bytes=len(MODEL),
        reason="GGUF, architecture llama",
    )
    assert chosen(tmp_path) == chosen(tmp_path / "a.gguf") == expected


def test_a_file_is_known_by_its_beginning_and_not_by_its_name(tmp_path: Path) -> None:
    folder(tmp_path, {"sha256-0": MODEL, "b.gguf": b"no model"})

    assert chosen(tmp_path / "sha256-0").path == str(tmp_path / "sha256-0")
    assert "'b.gguf' is no readable GGUF file: it does not begin with GGUF" in refused(tmp_path / "b.gguf")


def test_a_model_of_several_parts_is_named_by_its_first_for_llama_server(tmp_path: Path) -> None:
    names = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    folder(tmp_path, dict.fromkeys(names, PART))

    for path in (tmp_path, *(tmp_path / name for name in names)):
        found = chosen(path)
        assert (found.runtimes, found.path) == ((Runtime.LLAMA_SERVER,), str(tmp_path / names[0]))
        assert found.size_bytes == 3 * len(PART)
    (tmp_path / names[1]).unlink()
    assert refused(tmp_path) == "1 of 3 parts are missing ('m-00002-of-00003.gguf')"
    (tmp_path / names[0]).unlink()
    assert "'m-00001-of-00003.gguf' is missing" in refused(tmp_path)


def test_a_projector_goes_with_its_model(tmp_path: Path) -> None:
    folder(tmp_path, {"eyes.gguf": PROJECTOR})

    assert refused(tmp_path) == "'eyes.gguf' is a projector: it needs its language model beside it"
    folder(tmp_path, {"a.gguf": MODEL})
    found = chosen(tmp_path)
    assert (found.path, found.projector) == (str(tmp_path / "a.gguf"), str(tmp_path / "eyes.gguf"))
    assert found.size_bytes == len(MODEL) + len(PROJECTOR)
    assert chosen(tmp_path / "a.gguf").projector == ""


def test_a_projector_is_known_by_name_or_type(tmp_path: Path) -> None:
    typed = gguf(llama({"general.type": "mmproj"}), tensors=3)
    folder(tmp_path, {"mmproj-f16.gguf": MODEL})

    assert "is a projector" in refused(tmp_path)
    folder(tmp_path, {"mmproj-f16.gguf": typed})
    assert "is a projector" in refused(tmp_path)


def test_an_embedding_model_is_for_ollama(tmp_path: Path) -> None:
    embedding = gguf(llama({"llama.pooling_type": 1}), tensors=3)

    assert chosen(folder(tmp_path, {"e.gguf": embedding})).runtimes == (Runtime.OLLAMA,)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.gguf": MODEL, "b.gguf": MODEL}, "2 models ('a.gguf', 'b.gguf'): name the one that is meant"),
        ({f"{number}.gguf": MODEL for number in range(65)}, "65 GGUF files: name the one that is meant"),
        ({"a.gguf": gguf(llama({"general.type": "adapter"}), tensors=3)}, "'a.gguf' is an adapter"),
        ({"a.gguf": gguf(llama())}, "'a.gguf' holds a vocabulary and no weights"),
        ({"a.gguf": POINTER}, "'a.gguf' is a Git LFS pointer: fetch the file"),
        ({"a.gguf": b""}, "'a.gguf' is no readable GGUF file: it ends inside its header"),
        (
            {"adapter_config.json": b"{}", "adapter_model.safetensors": TENSORS, "config.json": config("X")},
            "an adapter (adapter_config.json): a runtime needs the model that it adapts",
        ),
        (
            {"model.safetensors": TENSORS},
            "'model.safetensors' without a config.json that names an architecture",
        ),
        ({"model.safetensors": TENSORS, "config.json": b"{"}, "without a config.json"),
        ({"model.safetensors": TENSORS, "config.json": b"[]"}, "without a config.json"),
        ({"model.safetensors": TENSORS, "config.json": b'{"architectures": 5}'}, "without a config.json"),
        (
            {"model.safetensors": TENSORS, "config.json": b'{"architectures": "\xff"}'},
            "without a config.json",
        ),
        ({"model.safetensors": TENSORS, "config.json": b"[" * 100_000}, "without a config.json"),
        (
            {"model.safetensors": TENSORS, "config.json": config("BertModel")},
            "BertModel is an encoder or embedding model: it generates no text",
        ),
        (
            {"model.safetensors": TENSORS, "config.json": config("RobertaForSequenceClassification")},
            "is an encoder or embedding model",
        ),
        (
            {"model.safetensors": TENSORS, "config.json": config("WhatForCausalLM")},
            "vLLM is not known to serve the architecture WhatForCausalLM",
        ),
        (
            {"model.safetensors": POINTER, "config.json": config("LlamaForCausalLM")},
            "'model.safetensors' is no safetensors file, or was not fetched whole",
        ),
        (
            {"model.safetensors": struct.pack("<Q", 100) + b"{}", "config.json": config("LlamaForCausalLM")},
            "is no safetensors file",
        ),
        (
            {"model.safetensors": b"{}", "config.json": config("LlamaForCausalLM")},
            "is no safetensors file",
        ),
        (
            {
                "a.safetensors": TENSORS,
                "model.safetensors.index.json": index("a.safetensors", "b.safetensors"),
                "config.json": config("LlamaForCausalLM"),
            },
            "1 of 2 files are missing ('b.safetensors')",
        ),
        (
            {
                "a.safetensors": TENSORS,
                "model.safetensors.index.json": b"{}",
                "config.json": config("LlamaForCausalLM"),
            },
            "'model.safetensors.index.json' is no safetensors file",
        ),
        *(
            (
                {
                    "a.safetensors": TENSORS,
                    "model.safetensors.index.json": broken,
                    "config.json": config("LlamaForCausalLM"),
                },
                "'model.safetensors.index.json' is no safetensors file",
            )
            for broken in (index(), b'{"weight_map": {"a": "\xff"}}', b'{"metadata": ' + b"[" * 100_000)
        ),
        (
            {"pytorch_model.bin": b"x", "config.json": config("LlamaForCausalLM")},
            "'pytorch_model.bin': loading a pickle runs code; convert it to safetensors or GGUF",
        ),
        ({"model.pt": b"x"}, "'model.pt': loading a pickle runs code"),
        ({"a": b"", "b": b"", "c": b"", "d": b""}, "there is 'a', 'b', 'c' and 1 more"),
        ({}, "it is empty"),
    ],
)
def test_what_is_refused_is_named(tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    assert reason in refused(folder(tmp_path, files))


def test_safetensors_of_a_served_architecture_are_for_vllm(tmp_path: Path) -> None:
    files = {"a.safetensors": TENSORS, "b.safetensors": TENSORS, "consolidated.safetensors": TENSORS}
    folder(tmp_path, files | {"config.json": config("LlamaForCausalLM"), "old.bin": b"x"})

    expected = ModelFiles(
        runtimes=(Runtime.VLLM,),
        path=str(tmp_path),
        size_bytes=2 * len(TENSORS),
        reason="LlamaForCausalLM in 2 safetensors files",
    )
    assert chosen(tmp_path) == expected
    folder(tmp_path, {"model.safetensors.index.json": index("b.safetensors", "b.safetensors")})
    assert chosen(tmp_path).size_bytes == len(TENSORS)


def test_without_vllm_safetensors_are_refused(tmp_path: Path) -> None:
    files = {"model.safetensors": TENSORS, "config.json": config("LlamaForCausalLM")}

    assert "runtimes.vllm.enabled is false" in refused(folder(tmp_path, files), vllm_enabled=False)


def test_gguf_goes_before_safetensors_and_those_before_pickles(tmp_path: Path) -> None:
    files = {"model.safetensors": TENSORS, "config.json": config("LlamaForCausalLM"), "model.bin": b"x"}

    assert chosen(folder(tmp_path, files)).runtimes == (Runtime.VLLM,)
    assert chosen(folder(tmp_path, {"a.gguf": MODEL})).runtimes[0] is Runtime.OLLAMA


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    folder(blobs, {"0": TENSORS, "1": config("LlamaForCausalLM")})
    (snapshot / "model.safetensors").symlink_to(blobs / "0")
    (snapshot / "config.json").symlink_to(blobs / "1")

    assert chosen(snapshot).path == str(snapshot)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")

    assert "it is empty" in refused(tmp_path)
    assert "is not a regular file" in refused(tmp_path / "a.gguf")
    assert "No such file" in refused(tmp_path / "none")


def test_the_architectures_are_names() -> None:
    assert len(SERVED) > 200
    assert all(name.isidentifier() for name in SERVED)
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM", "Qwen2_5_VLForConditionalGeneration"} <= SERVED
    assert "BertModel" not in SERVED
