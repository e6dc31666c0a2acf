"""The models in a store of Ollama, read from its files: no server needs to run for their sizes and shapes."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import msgspec

from balancer.core.names import canonical_name
from balancer.provisioning.files import read_start
from balancer.provisioning.gguf import GgufError, read_header
from balancer.provisioning.kv_cache import KnownModel, cache_shape, trained_context

_MANIFESTS = 1024
_MANIFEST_BYTES = 2**20
_MOST_BYTES = 2**50
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_LAYER = "application/vnd.ollama.image."
_IN_MEMORY = frozenset(_LAYER + kind for kind in ("model", "projector", "adapter", "tensor"))


class _Layer(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType")
    digest: str
    size: int


class _Manifest(msgspec.Struct):
    layers: list[_Layer]


def store_folder(environ: Mapping[str, str]) -> Path:
    """Where an Ollama with this environment keeps its models. Source: Ollama v0.33 envconfig/config.go."""
    return Path(environ.get("OLLAMA_MODELS") or Path(environ.get("HOME") or "/", ".ollama", "models"))


def known_models(folder: Path) -> tuple[KnownModel, ...]:
    """The models of a store by name, at most 1024, with what their files tell. Whatever cannot be read is
    left out, and a folder that cannot be read has none. Blocks for about a millisecond per model.

    Source: Ollama v0.33 manifest/manifest.go, manifests/HOST/NAMESPACE/MODEL/TAG.
    """
    found = {model.name: model for path in _manifests(folder) if (model := _model(folder, path))}
    return tuple(sorted(found.values(), key=lambda model: model.name))


def _manifests(folder: Path) -> Iterator[Path]:
    root = folder / "manifests"
    try:
        yield from sorted(islice(root.glob("*/*/*/*"), _MANIFESTS))
    except OSError:
        return


def _model(folder: Path, manifest: Path) -> KnownModel | None:
    try:
        layers = msgspec.json.decode(read_start(manifest, _MANIFEST_BYTES), type=_Manifest).layers
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    parts = [each for each in layers if each.media_type in _IN_MEMORY and 0 <= each.size <= _MOST_BYTES]
    if not parts:
        return None
    host, namespace, model, tag = manifest.parts[-4:]
    name = canonical_name(f"{host}/{namespace}/{model}:{tag}")
    if not (name.isascii() and name.isprintable()):
        return None  # no client can ask for it, and no log or file can hold what is no text
    known = KnownModel(name=name, size_bytes=sum(each.size for each in parts))
    weights = next((each for each in parts if each.media_type == _LAYER + "model"), None)
    return _with_shape(known, folder, weights.digest) if weights else known


def _with_shape(known: KnownModel, folder: Path, digest: str) -> KnownModel:
    hexadecimal = _DIGEST.match(digest)
    if hexadecimal is None:
        return known
    try:
        header = read_header(folder / "blobs" / f"sha256-{hexadecimal[1]}")
    except (OSError, GgufError):
        return known
    return msgspec.structs.replace(known, cache=cache_shape(header), trained_context=trained_context(header))
