"""A store of Ollama read from its files."""

import os
from pathlib import Path

import pytest

from balancer.provisioning.kv_cache import CacheShape, KnownModel
from balancer.provisioning.model_store import known_models, store_folder
from tests.fakes.gguf_file import gguf, llama, store

LIBRARY = "registry.ollama.ai/library"


def test_models_are_known_by_name_size_and_shape(tmp_path: Path) -> None:
    tiny, other = gguf(llama()), gguf({"general.architecture": "llama"})
    store(tmp_path, {f"{LIBRARY}/tiny/latest": tiny, "hf.co/me/Other/Q4": other})

    assert known_models(tmp_path) == (
        KnownModel(name="hf.co/me/other:q4", size_bytes=len(other)),
        KnownModel(
            name="tiny:latest",
            size_bytes=len(tiny),
            cache=CacheShape(full_elements=4 * 2 * 2 * 64),
            trained_context=8192,
        ),
    )


@pytest.mark.parametrize(
    "manifest",
    [
        *(b"", b"{", b"[]", b'{"layers": 5}', b'{"layers": [{"digest": 5}]}', b'{"layers": []}'),
        b'{"layers": [{"mediaType": "\xff", "digest": "", "size": 1}]}',
        b'{"config": ' + b"[" * 100_000,
    ],
    ids=lambda manifest: repr(manifest[:20]),
)
def test_a_manifest_that_cannot_be_read_is_left_out(tmp_path: Path, manifest: bytes) -> None:
    store(tmp_path, {f"{LIBRARY}/tiny/latest": gguf(llama())})
    (tmp_path / "manifests" / LIBRARY / "tiny" / "broken").write_bytes(manifest)

    assert [model.name for model in known_models(tmp_path)] == ["tiny:latest"]


def test_a_manifest_whose_name_is_none_of_a_model_is_left_out(tmp_path: Path) -> None:
    store(tmp_path, {f"{LIBRARY}/tiny/latest": gguf(llama())})
    manifest = tmp_path / "manifests" / LIBRARY / "tiny" / "latest"
    for name in (os.fsdecode(b"a\xff"), "a\nb", "\x1b[31m"):
        (manifest.parent / name).write_bytes(manifest.read_bytes())

    assert [model.name for model in known_models(tmp_path)] == ["tiny:latest"]


def test_a_model_whose_file_is_missing_or_broken_is_known_by_its_size(tmp_path: Path) -> None:
    store(tmp_path, {f"{LIBRARY}/a/latest": gguf(llama()), f"{LIBRARY}/b/latest": b"no model"})
    sizes = {model.name: model.size_bytes for model in known_models(tmp_path)}
    for blob in (tmp_path / "blobs").iterdir():
        if blob.read_bytes() != b"no model":
            blob.unlink()

    found = known_models(tmp_path)

    assert [model.name for model in found] == ["a:latest", "b:latest"]
    assert all(model.cache is None and model.size_bytes == sizes[model.name] for model in found)


def test_a_digest_leads_nowhere_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(gguf(llama()))
    manifest = tmp_path / "store" / "manifests" / LIBRARY / "a" / "latest"
    manifest.parent.mkdir(parents=True)
    layer = '{"mediaType": "application/vnd.ollama.image.model", "size": 5, "digest": "sha256:%s"}'
    (tmp_path / "store" / "blobs" / "sha256-x").mkdir(parents=True)
    manifest.write_text('{"layers": [' + layer % "x/../../../outside.gguf" + "]}")

    assert known_models(tmp_path / "store") == (KnownModel(name="a:latest", size_bytes=5),)


def test_a_pipe_in_place_of_a_manifest_is_not_waited_for(tmp_path: Path) -> None:
    store(tmp_path, {f"{LIBRARY}/tiny/latest": gguf(llama())})
    os.mkfifo(tmp_path / "manifests" / LIBRARY / "tiny" / "pipe")

    assert [model.name for model in known_models(tmp_path)] == ["tiny:latest"]


def test_at_most_1024_models_are_read(tmp_path: Path) -> None:
    store(tmp_path, {f"{LIBRARY}/tiny/{number}": b"" for number in range(1030)})

    assert len(known_models(tmp_path)) == 1024


def test_a_missing_store_has_no_models(tmp_path: Path) -> None:
    assert known_models(tmp_path / "none") == ()


def test_the_store_is_where_ollama_keeps_it() -> None:
    assert store_folder({"OLLAMA_MODELS": "/models", "HOME": "/home/me"}) == Path("/models")
    assert store_folder({"HOME": "/home/me"}) == Path("/home/me/.ollama/models")
    assert store_folder({"OLLAMA_MODELS": "", "HOME": ""}) == Path("/.ollama/models")
