"""Model names: one canonical form, made once at the door, for everything that compares names.

Clients' own spelling is never changed on the wire; only our comparisons use this form.
"""

from typing import NewType

ModelName = NewType("ModelName", str)

_DEFAULT_HOST = "registry.ollama.ai/"
_DEFAULT_NAMESPACE = "library/"
_DEFAULT_TAG = "latest"


def canonical_name(name: str) -> ModelName:
    """The form under which all spellings of one model are equal: host and namespace that are the
    defaults dropped, tag always there, case folded, a `:local` source suffix dropped.

    Source: Ollama v0.33 types/model/name.go and internal/modelref; case is folded there against
    what is on disk.
    """
    text = name.strip().casefold()
    text = text.removeprefix("https://").removeprefix("http://")
    text = text.removesuffix(":local")
    text = text.removeprefix(_DEFAULT_HOST).removeprefix(_DEFAULT_NAMESPACE)
    if ":" not in text.rsplit("/", 1)[-1]:
        text = f"{text}:{_DEFAULT_TAG}"
    return ModelName(text)


def is_cloud_name(name: str) -> bool:
    """Whether Ollama forwards requests for this name to its cloud, so that any instance will do.

    Source: Ollama v0.33 internal/modelref: a `:cloud` suffix, or a tag that ends in `-cloud`.
    """
    tag = name.strip().casefold().rsplit("/", 1)[-1].partition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")


def namespace_of(name: str) -> str:
    """The namespace part of a name, `library` where none is given."""
    parts = canonical_name(name).rsplit("/", 1)
    return parts[0].rsplit("/", 1)[-1] if len(parts) > 1 else "library"
