"""What the simulated model reads and says: tokens of a prompt, words of an answer.

Everything here is a pure function of its arguments, so equal requests get equal
answers on every server with the same seed. The text says that it is simulated.
It knows no timing (service_model.py) and no dialect. Called by generation.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

_PIECE = re.compile(r"\s*[^\s]{1,6}|\s+")
_VOCABULARY_SIZE = 128_000
_IMAGE_TOKENS = 256
_DEEPEST_SCHEMA = 6
# A token nearly certain is told as certain, as real models often are.
_CERTAIN = -0.1
_SPEECH = (
    "the of and to in a is that for it as was with be by on not he this are or his from at which but "
    "have an they you one we all were would there their will when who more if no out so said what up "
    "its about into than them can only other new some could time these two may then do first any my "
    "now such like our over man me even most made after also did many before must through back years"
)
_WORDS = tuple(_SPEECH.split())


def pieces(text: str) -> list[str]:
    """The text cut into tokens; joined, they are the text again."""
    return _PIECE.findall(text)


def token_id(piece: str) -> int:
    return zlib.crc32(piece.encode("utf-8", "replace")) % _VOCABULARY_SIZE


def encode(text: str) -> list[int]:
    """The token ids of a text."""
    return [token_id(piece) for piece in pieces(text)]


def render_message(message: Mapping[str, Any]) -> list[int]:
    """The tokens of one chat message, images included, as a template would render it."""
    tokens = [token_id(f"<|{message.get('role', '')}|>")]
    tokens += encode(str(message.get("content") or ""))
    if calls := message.get("tool_calls"):
        tokens += encode(json.dumps(calls, sort_keys=True, default=str))
    for image in message.get("images") or ():
        tokens += image_tokens(str(image))
    tokens.append(token_id("<|end|>"))
    return tokens


def image_tokens(image: str) -> list[int]:
    """The tokens that an image adds to a prompt: a fixed number, distinct per image."""
    return [token_id(image[:64] + str(len(image)))] * _IMAGE_TOKENS


ASSISTANT_TURN = token_id("<|assistant|>")


def seeded(*parts: object) -> random.Random:
    """A random source fixed by its parts, the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8", "replace"), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


def answer_text(source: random.Random, model: str, tokens: int) -> str:
    """About so many tokens of words, opening with a plain statement that they are simulated."""
    words = [f"[simulated {model}]"]
    length = len(pieces(words[0]))
    while length < tokens:
        word = source.choice(_WORDS)
        words.append(word)
        length += len(pieces(word))
    return "".join(pieces(" ".join(words))[: max(tokens, 1)])


def thinking_text(source: random.Random, tokens: int) -> str:
    """The reasoning of a thinking model, as plainly simulated as its answer."""
    return "".join(pieces("[simulated thinking] " + " ".join(source.choices(_WORDS, k=tokens)))[:tokens])


def formatted_text(source: random.Random, model: str, wanted: Any) -> str:
    """A JSON answer: an instance of the schema given, else an object that says it is simulated."""
    if isinstance(wanted, Mapping):
        return json.dumps(instance_of(wanted, source), separators=(",", ":"))
    return json.dumps({"simulated": True, "model": model, "answer": " ".join(source.choices(_WORDS, k=5))})


def instance_of(schema: Mapping[str, Any], source: random.Random, depth: int = 0) -> Any:
    """A small value that satisfies the common part of a JSON schema."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return source.choice(list(schema["enum"]))
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    match kind:
        case "object":
            properties: Mapping[str, Any] = schema.get("properties") or {}
            if depth >= _DEEPEST_SCHEMA:
                return {}
            return {name: instance_of(part, source, depth + 1) for name, part in properties.items()}
        case "array":
            return (
                [instance_of(schema.get("items") or {}, source, depth + 1)] if depth < _DEEPEST_SCHEMA else []
            )
        case "integer" | "number":
            return source.randint(int(schema.get("minimum", 1)), int(schema.get("maximum", 100)))
        case "boolean":
            return source.random() < 0.5
        case "null":
            return None
        case _:
            return f"simulated {source.choice(_WORDS)}"


def cut_at_stop(text: str, stops: Iterable[str]) -> str:
    """The text up to the first stop sequence."""
    positions = [found for stop in stops if stop and (found := text.find(stop)) >= 0]
    return text[: min(positions)] if positions else text


def log_probabilities(piece: str, source: random.Random, top: int) -> dict[str, Any]:
    """One item of `logprobs`: the token said and, when asked for, its rivals."""

    def item(token: str, probability: float) -> dict[str, Any]:
        return {"token": token, "logprob": probability, "bytes": list(token.encode())}

    chosen = round(-source.random(), 6)
    if chosen > _CERTAIN:
        chosen = 0.0
    rivals = [
        item(f" {word}", round(chosen - rank - 0.5, 6)) for rank, word in enumerate(_WORDS[: max(top - 1, 0)])
    ]
    entry = item(piece, chosen)
    if top > 0:
        entry["top_logprobs"] = [item(piece, chosen), *rivals]
    return entry
