"""Model names as Ollama reads and prints them. Pure; called by the store and the web layer."""

from __future__ import annotations

import re
from dataclasses import dataclass

_DEFAULT_HOST, _DEFAULT_NAMESPACE, _DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,79}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:\-]{0,349}")


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    """A full model name; equality is exact, `folded` compares as lookups do.

    Source: Ollama v0.33 types/model/name.go.
    """

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def folded(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}".lower()

    @property
    def is_valid(self) -> bool:
        return bool(
            _HOST.fullmatch(self.host)
            and _NAMESPACE.fullmatch(self.namespace)
            and _PART.fullmatch(self.model)
            and _PART.fullmatch(self.tag)
        )

    def display(self) -> str:
        """The short form: default host and namespace dropped, the tag always kept."""
        short = f"{self.model}:{self.tag}"
        if (self.host, self.namespace) == (_DEFAULT_HOST, _DEFAULT_NAMESPACE):
            return short
        if self.host == _DEFAULT_HOST:
            return f"{self.namespace}/{short}"
        return f"{self.host}/{self.namespace}/{short}"


def parse_name(text: str) -> ModelName:
    """Read `[host/][namespace/]model[:tag]`; check `is_valid` before use."""
    rest = text.split("://", 1)[-1]
    head, slash, last = rest.rpartition("/")
    model, colon, tag = last.partition(":")
    host, between, namespace = head.rpartition("/")
    return ModelName(
        host=host if between else _DEFAULT_HOST,
        namespace=namespace if slash else _DEFAULT_NAMESPACE,
        model=model,
        tag=tag if colon else _DEFAULT_TAG,
    )


def is_cloud(text: str) -> bool:
    """Whether a name asks for a model that ollama.com runs, not this server."""
    tag = text.rpartition("/")[2].partition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")
