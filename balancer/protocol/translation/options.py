"""Ollama's `options` as parameters of another runtime, one table for each.

Sources: Ollama v0.33 api/types.go, Options; vLLM v0.11 and later, vllm/entrypoints/openai,
ChatCompletionRequest; llama.cpp b11669 tools/server/README.md, tried against that build.
"""

from collections.abc import Mapping

from balancer.core.plan import Runtime
from balancer.errors import Unserved
from balancer.protocol.translation.served import Served

_COMMON = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "num_predict": "max_tokens",
}
COUNTERPARTS: Mapping[Runtime, Mapping[str, str]] = {
    Runtime.VLLM: {**_COMMON, "repeat_penalty": "repetition_penalty"},
    Runtime.LLAMA_SERVER: {
        **_COMMON,
        "repeat_penalty": "repeat_penalty",
        "repeat_last_n": "repeat_last_n",
        "typical_p": "typical_p",
    },
}
_NEGATIVE_IS_DEFAULT = frozenset({"seed", "num_predict"})
"""A negative seed is any, a negative count is without bound: what a runtime does when it is not told."""


def parameters(options: object, served: Served) -> dict[str, object]:
    """The parameters that options stand for; those that are null count as absent.

    Raises:
        Unserved: an option has no counterpart, or a value that it cannot have.
    """
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise Unserved("'options' must be an object")
    found: dict[str, object] = {}
    for option, value in options.items():
        if value is None:
            continue
        if option == "num_ctx":
            _check_context(value, served)
        elif option == "stop":
            found.update(_stop(value))
        else:
            found.update(_parameter(option, value, served))
    return found


def _parameter(option: str, value: object, served: Served) -> dict[str, object]:
    name = COUNTERPARTS[served.runtime].get(option)
    if name is None:
        raise Unserved(f"option '{option[:64]}' has no counterpart in {served.runtime.value}")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Unserved(f"option '{option}' must be a number")
    if option in _NEGATIVE_IS_DEFAULT and value < 0:
        return {}
    if option == "top_k" and value <= 0 and served.runtime is Runtime.VLLM:
        return {name: -1}  # all tokens, in every version
    if option == "repeat_last_n" and value < 0:
        if served.context_length is None:
            raise Unserved("option 'repeat_last_n' is -1, and the context length is not known")
        return {name: served.context_length}
    return {name: value}


def _check_context(value: object, served: Served) -> None:
    """What is served is fixed at the runtime's start; a request that needs no more is served as it is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Unserved("option 'num_ctx' must be a number")
    if served.context_length is None or value > served.context_length:
        is_served = (
            "an unknown length" if served.context_length is None else f"{served.context_length} tokens"
        )
        raise Unserved(f"option 'num_ctx' is {value:g}, and {served.runtime.value} serves {is_served}")


def _stop(value: object) -> dict[str, object]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise Unserved("option 'stop' must be a list of strings")
    kept = [each for each in texts if each]
    return {"stop": kept} if kept else {}
