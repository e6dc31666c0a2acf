"""Model names: one canonical form, made once at the door, for everything that compares names.

Clients' own spelling is never changed on the wire; only our comparisons use this form.
"""

import re
from functools import lru_cache
from typing import NewType

ModelName = NewType("ModelName", str)

_NAMES_KEPT = 1024
"""Every request asks several times for the forms of a few names."""
_DEFAULT_HOST = "registry.ollama.ai"
_DEFAULT_NAMESPACE = "library"
_DEFAULT_TAG = "latest"
_SCHEMES = re.compile(r"\A(?:https?://)+")
_LOCAL_SUFFIXES = re.compile(r"(?::local)+\Z")


@lru_cache(maxsize=_NAMES_KEPT)
def canonical_name(name: str) -> ModelName:
    """The form under which all spellings of one model are equal: the default host dropped, and the
    default namespace where no other host stands before it, tag always there, case folded, a `:local`
    source suffix dropped. A canonical form is its own.

    Source: Ollama v0.33 types/model/name.go and internal/modelref; case is folded there against
    what is on disk.
    """
    text = _LOCAL_SUFFIXES.sub("", _SCHEMES.sub("", name.strip().casefold()))
    place, _, model = text.rpartition("/")
    if ":" not in model:
        model = f"{model}:{_DEFAULT_TAG}"
    host, _, namespace = place.rpartition("/")
    if host == _DEFAULT_HOST:
        place = namespace
    return ModelName(model if place in {"", _DEFAULT_NAMESPACE} else f"{place}/{model}")


@lru_cache(maxsize=_NAMES_KEPT)
def is_cloud_name(name: str) -> bool:
    """Whether Ollama forwards requests for this name to its cloud, so that any instance will do.

    Source: Ollama v0.33 internal/modelref: a `:cloud` suffix, or a tag that ends in `-cloud`.
    """
    tag = name.strip().casefold().rsplit("/", 1)[-1].partition(":")[2]
    return tag.rpartition(":")[2] == "cloud" or tag.endswith("-cloud")


def namespace_of(name: str) -> str:
    """The namespace part of a name as it is spelled, `library` where none is given."""
    return name.rpartition("/")[0].rpartition("/")[2] or _DEFAULT_NAMESPACE
