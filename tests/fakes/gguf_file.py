"""Makes small GGUF files, and stores of Ollama that hold them. Their tensors are zeros."""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

TEXT, LIST = 8, 9
_KINDS = {"u32": (4, "I"), "f32": (6, "f"), "bool": (7, "?")}


def gguf(
    values: Mapping[str, object], *, version: int = 3, tensors: int = 0, tail: bytes = bytes(64)
) -> bytes:
    """A file with these keys: int as u32, float, bool, str, and lists of one of these."""
    pairs = b"".join(text(key) + typed(value) for key, value in values.items())
    return b"GGUF" + struct.pack("<IQQ", version, tensors, len(values)) + pairs + tail


def sparse(path: Path, size: int) -> Path:
    """The file of a model of that size, at least that of its header; it takes no room on the disk."""
    path.write_bytes(gguf(llama(), tensors=1))
    with path.open("r+b") as file:
        file.truncate(max(size, path.stat().st_size))
    return path


def llama(changes: Mapping[str, object] = MappingProxyType({})) -> dict[str, object]:
    """Keys of a Llama with 4 layers and 8 heads of 64 elements, 2 of them for keys and values; a change to
    None takes a key out."""
    keys: dict[str, object] = {
        "general.architecture": "llama",
        "llama.block_count": 4,
        "llama.context_length": 8192,
        "llama.embedding_length": 512,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 2,
    }
    return {key: value for key, value in (keys | dict(changes)).items() if value is not None}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def typed(value: object) -> bytes:
    """A value behind its type."""
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + text(value)
    if isinstance(value, Sequence):
        if value and isinstance(value[0], str):
            return struct.pack("<IIQ", LIST, TEXT, len(value)) + b"".join(map(text, value))
        number, letter = _KINDS[_kind(value[0] if value else 0)]
        return struct.pack(f"<IIQ{len(value)}{letter}", LIST, number, len(value), *value)
    number, letter = _KINDS[_kind(value)]
    return struct.pack(f"<I{letter}", number, value)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    return "f32" if isinstance(value, float) else "u32"


def store(folder: Path, models: Mapping[str, bytes]) -> Path:
    """A store of Ollama with these models, named as in its manifests: HOST/NAMESPACE/MODEL/TAG."""
    for name, data in models.items():
        digest = hashlib.sha256(data).hexdigest()
        layers = [
            {
                "mediaType": "application/vnd.ollama.image.model",
                "digest": f"sha256:{digest}",
                "size": len(data),
            },
            {
                "mediaType": "application/vnd.ollama.image.license",
                "digest": f"sha256:{digest}",
                "size": 10**6,
            },
        ]
        manifest = folder / "manifests" / name
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
        blob = folder / "blobs" / f"sha256-{digest}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(data)
    return folder
