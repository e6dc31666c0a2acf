"""Which runtime a folder or file of a model is for, told from its files alone. Nothing is loaded, and of no
file more than its beginning is read.
"""

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import msgspec

from balancer.core.plan import Runtime
from balancer.provisioning.files import read_start
from balancer.provisioning.gguf import MAGIC, GgufError, GgufHeader, read_header
from balancer.provisioning.vllm_architectures import SERVED

_ENTRIES = 4096
_HEADERS = 64
_NAMED = 3
_CONFIG_BYTES = 2**20
_INDEX_BYTES = 2**24
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf\Z")
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_POINTER = b"version https://git-lfs"
_PROJECTOR = "is a projector: it needs its language model beside it"
_ENCODERS = ("Model", "ForMaskedLM", "Classification", "ForQuestionAnswering", "ForRanking", "RewardModel")


class ModelFiles(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be served: by which runtimes, best first, from which folder or file (the first of
    several parts), and why. `projector` is one beside it, `size_bytes` are the weights of both."""

    runtimes: tuple[Runtime, ...]
    path: str
    size_bytes: int
    reason: str
    projector: str = ""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and why no runtime serves it."""

    reason: str


Verdict: TypeAlias = ModelFiles | Refused


def runtime_of(path: Path, *, vllm_enabled: bool) -> Verdict:
    """What the first rule that applies says of a folder or a file. Blocks while it reads.

    Source: llama.cpp docs and ggml docs/gguf.md (names of parts and projectors), vLLM supported_models.md.
    """
    try:
        found = _look(path, vllm_enabled)
        return next(verdict for rule in _RULES if (verdict := rule(found)) is not None)
    except OSError as error:
        return Refused(reason=f"'{path}' cannot be read: {error.strerror or error}")


class _Found:
    """The regular files of a folder with their sizes; `only` is the one that was named, if a file was."""

    def __init__(self, folder: Path, sizes: Mapping[str, int], *, only: str, vllm_enabled: bool) -> None:
        self.folder = folder
        self.sizes = sizes
        self.only = only
        self.vllm_enabled = vllm_enabled

    def ending(self, *suffixes: str) -> list[str]:
        names = [self.only] if self.only else sorted(self.sizes)
        return [name for name in names if name.lower().endswith(suffixes)]

    @cached_property
    def config(self) -> Mapping[str, object]:
        """What `config.json` says; nothing where it is no JSON object."""
        if "config.json" not in self.sizes:
            return {}
        try:
            data: object = msgspec.json.decode(read_start(self.folder / "config.json", _CONFIG_BYTES))
        except _NO_JSON:
            return {}
        return data if isinstance(data, dict) else {}

    @cached_property
    def architectures(self) -> list[str]:
        named = self.config.get("architectures")
        return [str(each) for each in named] if isinstance(named, list) else []


def _look(path: Path, vllm_enabled: bool) -> _Found:
    folder, only = (path, "") if path.is_dir() else (path.parent, path.name)
    files = (each for each in folder.iterdir() if each.is_file())
    sizes = {each.name: each.stat().st_size for each in islice(files, _ENTRIES)}
    if only:
        sizes[only] = path.stat().st_size
    return _Found(folder, sizes, only=only, vllm_enabled=vllm_enabled)


def _adapter(found: _Found) -> Verdict | None:
    named = [each for each in ("adapter_config.json", "adapter_model.safetensors") if each in found.sizes]
    if named and not found.only:
        return Refused(reason=f"an adapter ({named[0]}): a runtime needs the model that it adapts")
    return None


def _gguf(found: _Found) -> Verdict | None:
    names = found.ending(".gguf")
    if found.only and read_start(found.folder / found.only, len(MAGIC)) == MAGIC:
        names = [found.only]
    if not names:
        return None
    firsts = list(dict.fromkeys(_first_part(name) for name in names))
    if len(firsts) > _HEADERS:
        return Refused(reason=f"{len(firsts)} GGUF files: name the one that is meant")
    kinds = {first: _kind(found, first) for first in firsts}
    models = [name for name, kind in kinds.items() if isinstance(kind, GgufHeader)]
    if len(models) == 1:
        header = kinds[models[0]]
        assert isinstance(header, GgufHeader)
        projectors = [name for name, kind in kinds.items() if kind == _PROJECTOR]
        return _gguf_model(found, models[0], header, projectors)
    if models:
        return Refused(reason=f"{len(models)} models ({_few(models)}): name the one that is meant")
    name, kind = next(iter(kinds.items()))
    return Refused(reason=f"'{name}' {kind}")


def _kind(found: _Found, name: str) -> GgufHeader | str:
    """The header of a model, or what the file is instead."""
    if name not in found.sizes:
        return "is missing: it is the first of several parts"
    try:
        header = read_header(found.folder / name)
    except GgufError as error:
        pointer = read_start(found.folder / name, len(_POINTER)) == _POINTER
        return "is a Git LFS pointer: fetch the file" if pointer else f"is no readable GGUF file: {error}"
    kind = header.values.get("general.type")
    if kind == "mmproj" or header.architecture == "clip" or name.lower().startswith("mmproj"):
        return _PROJECTOR
    if kind == "adapter":
        return "is an adapter: a runtime needs the model that it adapts"
    if not header.tensor_count and not _SHARD.match(name):
        return "holds a vocabulary and no weights"
    return header


def _gguf_model(found: _Found, name: str, header: GgufHeader, projectors: Sequence[str]) -> Verdict:
    parts = _parts(name)
    missing = [each for each in parts if each not in found.sizes]
    if missing:
        return Refused(reason=f"{len(missing)} of {len(parts)} parts are missing ({_few(missing)})")
    weights = (*parts, *projectors[:1])
    runtimes: tuple[Runtime, ...] = (Runtime.OLLAMA, Runtime.LLAMA_SERVER)
    reason = f"GGUF, architecture {header.architecture or 'unknown'}"
    if f"{header.architecture}.pooling_type" in header.values:
        runtimes, reason = (Runtime.OLLAMA,), f"{reason}, for embeddings"
    elif len(parts) > 1:
        # Ollama imports single files only (ollama/ollama#5245).
        runtimes, reason = (Runtime.LLAMA_SERVER,), f"{reason}, in {len(parts)} parts"
    return ModelFiles(
        runtimes=runtimes,
        path=str(found.folder / name),
        size_bytes=sum(found.sizes[each] for each in weights),
        reason=reason,
        projector=str(found.folder / projectors[0]) if projectors else "",
    )


def _first_part(name: str) -> str:
    shard = _SHARD.match(name)
    return f"{shard[1]}-00001-of-{shard[3]}.gguf" if shard else name


def _parts(name: str) -> list[str]:
    shard = _SHARD.match(name)
    if shard is None:
        return [name]
    return [f"{shard[1]}-{number:05}-of-{shard[3]}.gguf" for number in range(1, int(shard[3]) + 1)]


def _safetensors(found: _Found) -> Verdict | None:
    names = found.ending(".safetensors")
    if not names:
        return None
    if not found.architectures:
        return Refused(reason=f"{_few(names)} without a config.json that names an architecture")
    architecture = found.architectures[0]
    if architecture not in SERVED:
        if architecture.endswith(_ENCODERS):
            return Refused(reason=f"{architecture} is an encoder or embedding model: it generates no text")
        return Refused(reason=f"vLLM is not known to serve the architecture {architecture[:100]}")
    weights = _weights(found, names)
    missing = [each for each in weights if each not in found.sizes]
    if missing:
        return Refused(reason=f"{len(missing)} of {len(weights)} files are missing ({_few(missing)})")
    broken = [each for each in weights if not _is_safetensors(found, each)]
    if broken:
        return Refused(reason=f"{_few(broken)} is no safetensors file, or was not fetched whole")
    if not found.vllm_enabled:
        return Refused(
            reason=f"{architecture} in safetensors is for vLLM, and runtimes.vllm.enabled is false"
        )
    return ModelFiles(
        runtimes=(Runtime.VLLM,),
        path=str(found.folder),
        size_bytes=sum(found.sizes[each] for each in weights),
        reason=f"{architecture} in {len(weights)} safetensors files",
    )


def _weights(found: _Found, names: Sequence[str]) -> list[str]:
    """The files of the index where there is one, else all but copies in another naming."""
    if _INDEX in found.sizes:
        try:
            index = msgspec.json.decode(read_start(found.folder / _INDEX, _INDEX_BYTES), type=_WeightIndex)
            return sorted(set(index.weight_map.values())) or [_INDEX]
        except _NO_JSON:
            return [_INDEX]
    return [name for name in names if not name.startswith("consolidated")] or list(names)


class _WeightIndex(msgspec.Struct):
    weight_map: dict[str, str]


def _is_safetensors(found: _Found, name: str) -> bool:
    """Whether it begins as one: the length of its header, which is JSON. Source: safetensors README."""
    start = read_start(found.folder / name, 9)
    if len(start) < 9:
        return False
    (length,) = struct.unpack("<Q", start[:8])
    return 2 <= length <= found.sizes[name] - 8 and start[8:] == b"{"


def _pickle(found: _Found) -> Verdict | None:
    names = found.ending(*_PICKLES)
    if not names:
        return None
    return Refused(reason=f"{_few(names)}: loading a pickle runs code; convert it to safetensors or GGUF")


def _nothing(found: _Found) -> Verdict:
    names = [found.only] if found.only else sorted(found.sizes)
    there = f"there is {_few(names)}" if names else "it is empty"
    return Refused(reason=f"no model in '{found.folder}': {there}")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"'{name[:100]}'" for name in names[:_NAMED]) + more


_RULES: tuple[Callable[[_Found], Verdict | None], ...] = (_adapter, _gguf, _safetensors, _pickle, _nothing)
