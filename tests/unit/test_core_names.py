"""Model names: one canonical form for everything that compares names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.core.names import canonical_name, is_cloud_name, namespace_of

PIECES = st.lists(
    st.sampled_from(
        [
            "registry.ollama.ai",
            "library",
            "latest",
            ":local",
            ":",
            "/",
            "//",
            "http:",
            "https://",
            "A",
            "ß",
            "x",
            "cloud",
        ]
    )
    | st.text(st.characters(exclude_categories=["Z", "C"]), max_size=3),
    max_size=8,
).map("".join)


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("qwen3", "qwen3:latest"),
        ("qwen3:latest", "qwen3:latest"),
        ("qwen3:8b", "qwen3:8b"),
        ("QWEN3:8B-Q4_K_M", "qwen3:8b-q4_k_m"),
        ("library/qwen3", "qwen3:latest"),
        ("registry.ollama.ai/library/qwen3:8b", "qwen3:8b"),
        ("Registry.Ollama.AI/Library/qwen3", "qwen3:latest"),
        ("https://registry.ollama.ai/library/qwen3", "qwen3:latest"),
        ("http://registry.ollama.ai/me/qwen3", "me/qwen3:latest"),
        ("registry.ollama.ai/me/qwen3", "me/qwen3:latest"),
        ("me/qwen3:8b", "me/qwen3:8b"),
        ("hf.co/unsloth/Qwen3-8B-GGUF:Q4_K_M", "hf.co/unsloth/qwen3-8b-gguf:q4_k_m"),
        ("localhost:5000/library/qwen3", "localhost:5000/library/qwen3:latest"),
        ("localhost:5000/me/qwen3", "localhost:5000/me/qwen3:latest"),
        ("library/library/qwen3", "library/library/qwen3:latest"),
        ("qwen3:local", "qwen3:latest"),
        ("qwen3:8b:local", "qwen3:8b"),
        ("qwen3:8B:LOCAL", "qwen3:8b"),
        ("  qwen3  ", "qwen3:latest"),
        ("gpt-oss:120b-cloud", "gpt-oss:120b-cloud"),
    ],
)
def test_spellings_of_one_model_have_one_canonical_form(spelling: str, canonical: str) -> None:
    assert canonical == canonical_name(spelling)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("qwen3", "qwen3:8b"),
        ("me/qwen3", "qwen3"),
        ("hf.co/me/qwen3", "me/qwen3"),
        ("library/library/x", "library/x"),
    ],
)
def test_different_models_stay_different(one: str, other: str) -> None:
    assert canonical_name(one) != canonical_name(other)


@given(PIECES)
def test_a_canonical_form_is_its_own_canonical_form(name: str) -> None:
    once = canonical_name(name)

    assert once == canonical_name(once)


@given(PIECES)
def test_a_canonical_form_always_has_a_tag(name: str) -> None:
    assert ":" in canonical_name(name).rsplit("/", 1)[-1]


@given(st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=20))
def test_case_and_surrounding_space_never_matter(name: str) -> None:
    assert canonical_name(name) == canonical_name(f" {name.upper()}\t")


@pytest.mark.parametrize(
    ("name", "cloud"),
    [
        ("gpt-oss:cloud", True),
        ("gpt-oss:120b-cloud", True),
        ("GPT-OSS:120B-CLOUD ", True),
        ("gpt-oss:120b:cloud", True),
        ("me/gpt-oss:cloud", True),
        ("gpt-oss", False),
        ("gpt-oss-cloud", False),
        ("cloud", False),
        ("cloud/gpt-oss", False),
        ("host-cloud:80/me/gpt-oss", False),
        ("gpt-oss:cloudy", False),
        ("gpt-oss:mycloud", False),
    ],
)
def test_only_a_cloud_tag_makes_a_cloud_name(name: str, cloud: bool) -> None:
    assert cloud is is_cloud_name(name)


@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("x", "library"),
        ("x:8b", "library"),
        ("library/x", "library"),
        ("Me/x:8b", "Me"),
        ("hf.co/Org/x", "Org"),
    ],
)
def test_a_namespace_is_told_as_it_is_spelled(name: str, namespace: str) -> None:
    assert namespace == namespace_of(name)


@pytest.mark.parametrize("ask", [canonical_name, is_cloud_name])
def test_no_more_names_are_kept_in_mind_than_are_worth_it(ask: object) -> None:
    """Clients choose them."""
    for number in range(3000):
        ask(f"model-{number}")  # type: ignore[operator]

    assert ask.cache_info().currsize <= 1024  # type: ignore[attr-defined]
    assert canonical_name("model-0") == "model-0:latest"
    assert not is_cloud_name("model-0")
