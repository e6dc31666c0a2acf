"""The header of a GGUF file, of whole, broken and hostile ones."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.provisioning.gguf import GgufError, GgufHeader, read_header
from balancer.provisioning.kv_cache import cache_shape
from tests.fakes.gguf_file import LIST, TEXT, gguf, llama, text, typed

VOCABULARY = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.bos_token_id": 1}


def header(folder: Path, data: bytes) -> GgufHeader:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return read_header(path)


def fault(folder: Path, data: bytes) -> str:
    with pytest.raises(GgufError) as raised:
        header(folder, data)
    return str(raised.value)


def raw(*pairs: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs)) + b"".join(pairs)


@pytest.mark.parametrize("version", [2, 3])
def test_values_of_every_kind_are_read(tmp_path: Path, version: int) -> None:
    values = {
        "general.architecture": "llama",
        "a": 7,
        "b": 0.5,
        "c": True,
        "d": "é",
        "e": [1, 2],
        "f": [False],
    }

    found = header(tmp_path, gguf(values, version=version, tensors=3))

    assert (version, 3, "llama") == (found.version, found.tensor_count, found.architecture)
    assert {**values, "e": (1, 2), "f": (False,)} == found.values


def test_integers_of_every_width_are_read(tmp_path: Path) -> None:
    kinds = [(0, "B"), (1, "b"), (2, "H"), (3, "h"), (4, "I"), (5, "i"), (10, "Q"), (11, "q"), (12, "d")]
    pairs = [text(f"k{kind}") + struct.pack(f"<I{letter}", kind, 9) for kind, letter in kinds]

    assert {f"k{kind}": 9 for kind, _ in kinds} == header(tmp_path, raw(*pairs)).values


def test_long_lists_and_texts_are_passed_over(tmp_path: Path) -> None:
    values = {"texts": ["x"] * 10, "numbers": [1] * 4097, "text": "y" * 65537, "kept": [1] * 4096, "last": 5}

    assert header(tmp_path, gguf(values)).values == {"kept": (1,) * 4096, "last": 5}


def test_reading_ends_at_the_vocabulary_once_the_shape_is_known(tmp_path: Path) -> None:
    before = header(tmp_path, gguf(llama() | VOCABULARY))
    after = header(tmp_path, gguf({"general.architecture": "llama"} | VOCABULARY | {"llama.block_count": 4}))

    assert "tokenizer.ggml.bos_token_id" not in before.values
    assert after.values["llama.block_count"] == 4


def test_the_tensors_are_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(llama()))
    os.truncate(path, 2**40)  # as sparse as large

    assert read_header(path).architecture == "llama"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "ends inside"),
        (b"GGML" + bytes(100), "does not begin with GGUF"),
        (raw(version=1), "version is 1"),
        (raw(version=4), "version is 4"),
        (raw(version=3 << 24), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), f"claims {2**63} keys"),
        (raw(struct.pack("<Q", 2**40)), "key of"),
        (raw(text("a") + typed(1), text("a") + typed(2)), "key 'a' twice"),
        (raw(text("a") + struct.pack("<I", 13)), "unknown type 13"),
        (raw(text("a") + struct.pack("<IIQ", LIST, LIST, 1)), "unknown type 9"),
        (raw(text("a") + struct.pack("<IIQ", LIST, 77, 2**60)), "unknown type 77"),
        (raw(text("a") + struct.pack("<IB", 7, 2)), "neither 0 nor 1"),
        (raw(text("a") + struct.pack("<IQ", TEXT, 2**63)), "ends inside"),
        (raw(text("a") + struct.pack("<IIQ", LIST, 4, 2**62)), "ends inside"),
        (raw(text("a") + struct.pack("<IIQ", LIST, TEXT, 2**62)), "ends inside"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, data: bytes, told: str) -> None:
    assert told in fault(tmp_path, data)


def test_a_list_without_end_is_given_up(tmp_path: Path) -> None:
    endless = raw(text("a") + struct.pack("<IIQ", LIST, TEXT, 2**62)) + bytes(9 * 2**20)

    assert "longer than 8 MiB" in fault(tmp_path, endless)


def test_a_file_cut_inside_its_header_is_refused_at_any_byte(tmp_path: Path) -> None:
    whole = gguf({"a": 1, "b": "text", "c": [1, 2], "d": ["x", "y"], "e": [True]}, tail=b"")

    header(tmp_path, whole)
    for length in range(len(whole)):
        assert "ends inside" in fault(tmp_path, whole[:length])


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_damage_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(gguf(llama() | VOCABULARY))
    for place, byte in flips:
        data[place % len(data)] = byte

    try:
        found = header(tmp_path_factory.mktemp("damaged"), bytes(data))
    except GgufError:
        return
    assert found.version in (2, 3)
    cache_shape(found)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError, match="not a regular file"):
        read_header(tmp_path / "pipe")
    with pytest.raises(OSError):
        read_header(tmp_path)
