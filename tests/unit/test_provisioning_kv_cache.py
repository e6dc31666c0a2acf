"""What a model takes of a device, by its metadata: formulas against sizes worked out by hand."""

import pytest

from balancer.provisioning.gguf import GgufHeader, Value
from balancer.provisioning.kv_cache import CacheShape, cache_bytes, cache_shape, trained_context

KIB, MIB, GIB = 2**10, 2**20, 2**30


def header(architecture: str, **values: Value) -> GgufHeader:
    keys = {f"{architecture}.{key.replace('__', '.')}": value for key, value in values.items()}
    return GgufHeader(version=3, tensor_count=1, values={"general.architecture": architecture} | keys)


def llama_8b(**values: Value) -> GgufHeader:
    shape: dict[str, Value] = {
        "block_count": 32,
        "embedding_length": 4096,
        "context_length": 131072,
        "attention__head_count": 32,
        "attention__head_count_kv": 8,
    }
    return header("llama", **(shape | values))


def needed(found: CacheShape | None, context: int, slots: int = 1, cache_type: str = "f16") -> int:
    assert found is not None
    return cache_bytes(found, context=context, slots=slots, cache_type=cache_type)


def test_a_llama_of_8b_takes_128_kib_per_token() -> None:
    shape = cache_shape(llama_8b())

    assert needed(shape, 1024) == 128 * MIB
    assert needed(shape, 8192) == GIB
    assert needed(shape, 8192, slots=4) == 4 * GIB
    assert trained_context(llama_8b()) == 131072


@pytest.mark.parametrize(
    ("cache_type", "share"),
    [
        ("f32", 64),
        ("f16", 32),
        ("bf16", 32),
        ("q8_0", 17),
        ("q5_1", 12),
        ("q5_0", 11),
        ("q4_1", 10),
        ("q4_0", 9),
        ("iq4_nl", 9),
        (" Q8_0 ", 17),
        ("", 32),
        ("q3_0", 32),
    ],
)
def test_the_cache_type_scales_it(cache_type: str, share: int) -> None:
    assert needed(cache_shape(llama_8b()), 8192, cache_type=cache_type) == GIB * share // 32


def test_a_context_is_rounded_up_to_256_tokens() -> None:
    shape = cache_shape(llama_8b())

    assert needed(shape, 1) == needed(shape, 256) == 32 * MIB
    assert needed(shape, 257) == 64 * MIB


def test_key_and_value_lengths_go_before_the_embedding_by_heads() -> None:
    found = cache_shape(llama_8b(attention__key_length=192, attention__value_length=64))

    assert found == CacheShape(full_elements=32 * 8 * 256)


def test_without_kv_heads_every_head_has_its_own() -> None:
    values = {"block_count": 2, "embedding_length": 64, "attention__head_count": 4}

    assert cache_shape(header("gpt2", **values)) == CacheShape(full_elements=2 * 4 * 32)


def test_kv_heads_may_differ_by_layer_and_a_layer_without_keeps_a_state() -> None:
    values: dict[str, Value] = {
        "block_count": 3,
        "embedding_length": 64,
        "attention__head_count": 4,
        "attention__head_count_kv": (2, 0, 1),
        "ssm__inner_size": 10,
        "ssm__state_size": 4,
        "ssm__conv_kernel": 4,
        "ssm__group_count": 1,
    }

    state = (3 * (10 + 2 * 4) + 4 * 10) * 4
    assert cache_shape(header("jamba", **values)) == CacheShape(full_elements=3 * 32, state_bytes=state)
    assert needed(cache_shape(header("jamba", **values)), 256, slots=2) == 2 * (3 * 32 * 256 * 2 + state)


@pytest.mark.parametrize(
    "values", [{"full_attention_interval": 4}, {"attention__recurrent_layers": (True, True, True, False) * 2}]
)
def test_only_attention_layers_of_a_hybrid_have_a_cache(values: dict[str, Value]) -> None:
    shape: dict[str, Value] = {"block_count": 8, "embedding_length": 64, "attention__head_count": 4}

    assert cache_shape(header("qwen3next", **shape, **values)) == CacheShape(full_elements=2 * 4 * 32)


def test_sliding_layers_hold_their_window_and_a_batch() -> None:
    gemma = header(
        "gemma3",
        block_count=30,
        embedding_length=64,
        attention__head_count=4,
        attention__sliding_window=1024,
    )

    assert cache_shape(gemma) == CacheShape(
        full_elements=5 * 4 * 32, window_elements=25 * 4 * 32, window=1024
    )
    assert needed(cache_shape(gemma), 1024) == 30 * 4 * 32 * 1024 * 2
    assert needed(cache_shape(gemma), 2**17) == (5 * 2**17 + 25 * (1024 + 2048)) * 4 * 32 * 2


@pytest.mark.parametrize(
    ("architecture", "pattern", "windowed"),
    [
        ("gemma2", None, 3),
        ("gpt-oss", None, 3),
        ("gpt-oss", 3, 4),
        ("cohere2", None, 5),
        ("gemma4", (True, True, True, True, True, False), 5),
        ("gemma4", (True,), 1),
        ("llama", None, 0),
        ("gemma3", 1, 0),
        ("gemma3", 0, 0),
    ],
)
def test_which_layers_slide(architecture: str, pattern: Value | None, windowed: int) -> None:
    values: dict[str, Value] = {"block_count": 6, "embedding_length": 4, "attention__head_count": 1}
    values["attention__sliding_window"] = 128
    if pattern is not None:
        values["attention__sliding_window_pattern"] = pattern

    found = cache_shape(header(architecture, **values))

    assert found is not None
    assert (found.window_elements, found.full_elements) == (windowed * 8, (6 - windowed) * 8)


@pytest.mark.parametrize(
    "values",
    [
        {"block_count": 0},
        {"block_count": 2**40},
        {"block_count": True},
        {"block_count": "32"},
        {"attention__head_count": 0},
        {"attention__head_count": (8,), "attention__head_count_kv": (8,)},
        {"attention__head_count": (0,) * 32},
        {"embedding_length": 0},
        {"embedding_length": -4096},
        {"embedding_length": 2**60},
    ],
)
def test_absurd_metadata_has_no_shape(values: dict[str, Value]) -> None:
    assert cache_shape(llama_8b(**values)) is None


def test_metadata_of_another_architecture_does_not_count() -> None:
    other = GgufHeader(
        version=3, tensor_count=1, values=llama_8b().values | {"general.architecture": "qwen3"}
    )

    assert cache_shape(other) is None
    assert trained_context(other) is None


@pytest.mark.parametrize("tokens", [0, -1, 2**31 + 1, "8192", 8192.0])
def test_an_absurd_trained_context_is_not_known(tokens: Value) -> None:
    assert trained_context(llama_8b(context_length=tokens)) is None
