"""Embeddings of the simulated embedding model: deterministic, and alike for texts that share words.

Pure functions. Called by the embedding routes.
"""

from __future__ import annotations

import base64
import hashlib
import math
import random
import struct
from collections.abc import Sequence

_FEATURES_PER_WORD = 8
_NOISE = 0.05


def raw_vector(model: str, text: str, length: int) -> list[float]:
    """An unnormalised vector: a little noise, and each word adds to a few places of its own."""
    noise = random.Random(f"{model}\x1f{text}")
    vector = [noise.uniform(-_NOISE, _NOISE) for _ in range(length)]
    for word in text.lower().split() or [""]:
        digest = hashlib.blake2b(f"{model}\x1f{word}".encode("utf-8", "replace"), digest_size=32).digest()
        for place in range(_FEATURES_PER_WORD):
            index, sign = divmod(int.from_bytes(digest[4 * place : 4 * place + 4], "big"), 2)
            vector[index % length] += 1.0 if sign else -1.0
    return vector


def normalised(vector: Sequence[float]) -> list[float]:
    """The vector at length 1, rounded to what a 32-bit float can hold."""
    norm = max(math.sqrt(sum(value * value for value in vector)), 1e-12)
    return [_as_float32(value / norm) for value in vector]


def embedding(model: str, text: str, length: int, dimensions: int) -> list[float]:
    """The vector of one input; `dimensions` above 0 cuts it and normalises again.

    Source: Ollama v0.33 server/routes.go EmbedHandler.
    """
    vector = normalised(raw_vector(model, text, length))
    return normalised(vector[:dimensions]) if 0 < dimensions < length else vector


def as_base64(vector: Sequence[float]) -> str:
    """Little-endian 32-bit floats, as /v1/embeddings encodes them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _as_float32(value: float) -> float:
    exact: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return float(f"{exact:.8g}")
