"""The admin listener as an OpenAPI document, kept by hand; a test holds it against the router.

It names every path, what it is for and what it answers; the rows of the reports are described where
they are made, in `report`, and not a second time here.
"""

from collections.abc import Mapping

from balancer import __version__

_JSON = "application/json"


def _answer(about: str, kind: str = _JSON) -> dict[str, object]:
    schema = {"type": "object"} if kind == _JSON else {"type": "string"}
    return {"description": about, "content": {kind: {"schema": schema}}}


def _read(summary: str, *, kind: str = _JSON, **others: str) -> dict[str, object]:
    """A GET; `others` are further answers, as `_404="…"`."""
    answers = {status.strip("_"): _answer(about, kind) for status, about in others.items()}
    return {"get": {"summary": summary, "responses": {"200": _answer(summary, kind), **answers}}}


def _change(summary: str, answer: str, **others: str) -> dict[str, object]:
    """A POST without arguments; `others` are further refusals."""
    refusals = {
        "_400": "the body is neither {} nor empty, or cannot be read",
        "_403": "Host or Origin names another machine or page",
        "_408": "the body did not come in time",
        "_413": "the body is larger than 64 KiB",
        "_415": "the content type is not application/json",
        **others,
    }
    told = {status.strip("_"): _answer(f"`error`: {about}") for status, about in sorted(refusals.items())}
    body = {"content": {_JSON: {"schema": {"type": "object", "maxProperties": 0}}}}
    return {
        "post": {"summary": summary, "requestBody": body, "responses": {"200": _answer(answer), **told}},
    }


def _of(parameter: str, item: dict[str, object]) -> dict[str, object]:
    """A path with `{id}` in it, percent-encoded where a URL asks for it."""
    told = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": parameter,
        "schema": {"type": "string"},
    }
    return {"parameters": [told], **item}


_NO_INSTANCE = "no such instance; names those that there are"
_ROW = "the instance's row as `/admin/v1/instances` has it"
_UNAVAILABLE = "the same, where no instance is usable"

DOCUMENT: Mapping[str, object] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Ollama Balancer, admin API",
        "version": __version__,
        "description": 'For this machine: the Host header must say so. Errors are `{"error": "…"}`.',
    },
    "paths": {
        "/metrics": _read("Prometheus metrics", kind="text/plain"),
        "/livez": _read("whether the process serves", kind="text/plain"),
        "/readyz": _read("whether an instance is usable", kind="text/plain", _503="no instance is usable"),
        "/health": _read("health in full, with instances and the configuration's id", _503=_UNAVAILABLE),
        "/admin/v1/openapi.json": _read("this document"),
        "/admin/v1/config": _read("id and age of the configuration in force, and what was refused last"),
        "/admin/v1/instances": _read("every instance: state, health, models, runners, slots, rates, store"),
        "/admin/v1/devices": _read("every GPU watched: state, health, newest reading and its age"),
        "/admin/v1/queue": _read("the requests that wait, with position, expected wait and time left"),
        "/admin/v1/requests": _read("requests under way, and those that ended lately"),
        "/admin/v1/requests/{id}/decision": _of(
            "`X-Balancer-Request` of an answer",
            _read("who was left out and why, and the scores", _404="nothing is remembered of it"),
        ),
        "/admin/v1/instances/{id}/drain": _of(
            "the instance", _change("give it no new requests", _ROW, _404=_NO_INSTANCE)
        ),
        "/admin/v1/instances/{id}/undrain": _of(
            "the instance", _change("give it requests again", _ROW, _404=_NO_INSTANCE)
        ),
        "/admin/v1/instances/{id}/restart": _of(
            "the instance",
            _change(
                "begin to drain it, end its process and start it anew; also ends a quarantine",
                _ROW,
                _404=_NO_INSTANCE,
                _409="the instance was not started by this balancer",
            ),
        ),
        "/admin/v1/restart": _change(
            "begin to restart all that this balancer has started, each once the one before is up",
            "`instances` as `/admin/v1/instances` has it",
        ),
        "/admin/v1/reload": _change(
            "load the configuration anew, whole or not at all",
            "`config`, its id, and `changed`",
            _400="the configuration is refused (`faults` names why), or the body is not {} or empty",
        ),
    },
}
