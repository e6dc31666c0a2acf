"""The routes that only tell: version, status, tags, ps, show, /v1/models, and the cloud's offline answers.

Shapes and omitted fields as Ollama prints them. Nothing here changes a model
or loads one. Source: Ollama v0.33 server/routes.go, api/types.go.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from balancer.simulator.configuration import VERSION
from balancer.simulator.dialects.openai import error_body
from balancer.simulator.dialects.wire import JSON_TYPE, encode
from balancer.simulator.errors import Refusal
from balancer.simulator.inference import CLOUD_DISABLED
from balancer.simulator.models import Model
from balancer.simulator.names import is_cloud, parse_name
from balancer.simulator.requests import decode_json, text_field
from balancer.simulator.runner import Runner
from balancer.simulator.web.framing import json_response, native_error, whole_response
from balancer.simulator.web.parts import ServerParts
from balancer.simulator.web.shown import details, shown

# Source: Ollama v0.33 server/model_recommendations.go: what it tells until it has asked ollama.com.
_RECOMMENDATIONS = (
    {
        "model": "glm-5.1:cloud",
        "description": "Reasoning and code generation",
        "context_length": 202752,
        "max_output_tokens": 131072,
    },
    {
        "model": "qwen3.5:cloud",
        "description": "Reasoning, coding, and agentic tool use with vision",
        "context_length": 262144,
        "max_output_tokens": 32768,
    },
    {
        "model": "gemma4",
        "description": "Reasoning and code generation locally",
        "vram_bytes": 12_000_000_000,
    },
)
_SIGN_IN = "https://ollama.com/connect?name=simulated&key=simulated"


class CatalogueRoutes:
    """Handlers of the read-only routes."""

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts

    def routes(self) -> list[web.RouteDef]:
        return [
            *_with_head("/", self.root),
            *_with_head("/api/version", self.version),
            *_with_head("/api/tags", self.tags),
            web.get("/api/status", self.status, allow_head=False),
            web.get("/api/ps", self.ps, allow_head=False),
            web.post("/api/show", self.show),
            web.get("/v1/models", self.models, allow_head=False),
            web.get("/v1/models/{model}", self.model, allow_head=False),
            web.post("/api/me", self.me),
            web.post("/api/signout", self.signout),
            web.delete("/api/user/keys/{key}", self.signout),
            web.post("/api/experimental/web_search", self.web_search),
            web.post("/api/experimental/web_fetch", self.web_fetch),
            web.get("/api/experimental/model-recommendations", self.recommendations, allow_head=False),
        ]

    async def root(self, request: web.Request) -> web.Response:
        return whole_response(request, b"Ollama is running", content_type="text/plain; charset=utf-8")

    async def version(self, request: web.Request) -> web.Response:
        return json_response(request, {"version": VERSION})

    async def status(self, request: web.Request) -> web.Response:
        return json_response(request, {"cloud": {"disabled": True, "source": "env"}})

    async def tags(self, request: web.Request) -> web.Response:
        return json_response(request, {"models": [_tag(model) for model in self._parts.store.models()]})

    async def ps(self, request: web.Request) -> web.Response:
        """Resident runners, latest expiry first; one that is loading is not among them."""
        runners = sorted(
            self._parts.scheduler.runners, key=lambda runner: int(runner.expires_at.timestamp()), reverse=True
        )
        return json_response(request, {"models": [_process(runner) for runner in runners]})

    async def show(self, request: web.Request) -> web.Response:
        try:
            body = decode_json(await request.read(), "ShowRequest")
            name = text_field(body, "model") or text_field(body, "name")
            model = self._find(name)
            return json_response(request, shown(model, body))
        except Refusal as error:
            return native_error(request, error)

    async def models(self, request: web.Request) -> web.Response:
        data = [_openai_model(model, model.name.display()) for model in self._parts.store.models()]
        body = encode({"object": "list", "data": data or None}) + b"\n"
        return whole_response(request, body, content_type=JSON_TYPE)

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        try:
            body = encode(_openai_model(self._find(name), name)) + b"\n"
        except Refusal as error:
            body = error_body(error.status, error.message) + b"\n"
            return whole_response(request, body, status=error.status, content_type=JSON_TYPE)
        return whole_response(request, body, content_type=JSON_TYPE)

    async def me(self, request: web.Request) -> web.Response:
        return json_response(request, {"error": "unauthorized", "signin_url": _SIGN_IN}, status=401)

    async def signout(self, request: web.Request) -> web.Response:
        return json_response(request, {"error": "you are not currently signed in"}, status=401)

    async def web_search(self, request: web.Request) -> web.Response:
        message = "ollama cloud is disabled: web search is unavailable"
        return json_response(request, {"error": message}, status=403)

    async def web_fetch(self, request: web.Request) -> web.Response:
        message = "ollama cloud is disabled: web fetch is unavailable"
        return json_response(request, {"error": message}, status=403)

    async def recommendations(self, request: web.Request) -> web.Response:
        return json_response(request, {"recommendations": list(_RECOMMENDATIONS)})

    def _find(self, name: str) -> Model:
        if not name:
            raise Refusal(400, "model is required")
        if is_cloud(name):
            raise Refusal(403, CLOUD_DISABLED.replace("model is", "model details are"))
        parsed = parse_name(name)
        if not parsed.is_valid:
            raise Refusal(400, "invalid model name")
        model = self._parts.store.find(name)
        if model is None:
            raise Refusal(404, f"model '{parsed.display()}' not found")
        return model


def _with_head(path: str, handler: Any) -> list[web.RouteDef]:
    return [web.get(path, handler, allow_head=False), web.head(path, handler)]


def _tag(model: Model) -> dict[str, Any]:
    name, weights = model.name.display(), model.weights
    lengths = {"context_length": weights.trained_context, "embedding_length": weights.embedding_length}
    return {
        "name": name,
        "model": name,
        "modified_at": model.modified_at.astimezone().isoformat(),
        "size": sum(layer.size_bytes for layer in model.layers),
        "digest": model.digest,
        "details": {**details(model), **lengths},
        "capabilities": list(weights.capabilities),
    }


def _process(runner: Runner) -> dict[str, Any]:
    name = runner.model.name.display()
    return {
        "name": name,
        "model": name,
        "size": runner.size.total_bytes,
        "digest": runner.model.digest,
        "details": details(runner.model),
        "expires_at": runner.expires_at.isoformat(),
        "size_vram": runner.size.device_bytes,
        "context_length": runner.options.num_ctx,
    }


def _openai_model(model: Model, id: str) -> dict[str, Any]:
    created = int(model.modified_at.timestamp())
    return {"id": id, "object": "model", "created": created, "owned_by": parse_name(id).namespace}
