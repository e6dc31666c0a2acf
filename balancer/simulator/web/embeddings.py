"""The routes that embed: /api/embed, /api/embeddings and /v1/embeddings.

Inputs of one call are worked on one after the other, and all of them stand in
the runner's line before a later call does. Source: Ollama v0.33
server/routes.go; the order was observed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from balancer.simulator import text, vectors
from balancer.simulator.dialects.openai import error_body
from balancer.simulator.dialects.wire import JSON_TYPE, encode
from balancer.simulator.errors import EMBEDDING_DIED, INPUT_TOO_LONG, NO_EMBEDDINGS, Refusal, RunnerDied
from balancer.simulator.faults import FaultKind
from balancer.simulator.inference import CLOUD_DISABLED
from balancer.simulator.models import Model
from balancer.simulator.names import is_cloud, parse_name
from balancer.simulator.requests import (
    InferenceRequest,
    decode_json,
    flag_field,
    int_field,
    keep_alive_field,
    map_field,
    text_field,
)
from balancer.simulator.runner import Runner
from balancer.simulator.service_model import nanoseconds
from balancer.simulator.web.framing import json_response, native_error, whole_response
from balancer.simulator.web.gate import strike_model
from balancer.simulator.web.inference import openai_error, v1_body
from balancer.simulator.web.parts import ServerParts

# Begin and end markers that the tokeniser of an embedding model adds.
_MARKER_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """What a client wants embedded, whichever route it came by."""

    model: str
    inputs: tuple[str, ...]
    truncate: bool = True
    dimensions: int = 0
    keep_alive: float | None = None
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The vectors in the order of the inputs, and what they cost."""

    texts: tuple[str, ...]
    tokens: int
    total_seconds: float
    load_seconds: float


class EmbeddingRoutes:
    """Handlers of the embedding routes."""

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/embed", self.embed),
            web.post("/api/embeddings", self.embeddings),
            web.post("/v1/embeddings", self.openai_embeddings),
        ]

    async def embed(self, request: web.Request) -> web.StreamResponse:
        try:
            wanted = _native_request(decode_json(await request.read(), "EmbedRequest"))
            strike_model(self._parts, request, wanted.model)
            model = self._find(wanted.model, missing="model '' not found")
            done = await self._run(wanted, model)
        except Refusal as error:
            return native_error(request, error)
        record: dict[str, Any] = {"model": wanted.model, "embeddings": _vectors(wanted, model, done)}
        if done.texts:
            record["total_duration"] = nanoseconds(done.total_seconds)
            record["load_duration"] = nanoseconds(done.load_seconds)
            record["prompt_eval_count"] = done.tokens
        return json_response(request, record)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """The older route: one prompt, no truncation, the vector as it comes."""
        try:
            body = decode_json(await request.read(), "EmbeddingRequest")
            prompt = text_field(body, "prompt")
            wanted = EmbedRequest(
                model=text_field(body, "model"),
                inputs=(prompt,) if prompt else (),
                truncate=False,
                keep_alive=keep_alive_field(body),
                options=map_field(body, "options"),
            )
            strike_model(self._parts, request, wanted.model)
            model = self._find(wanted.model, missing="model is required")
        except Refusal as error:
            return native_error(request, error)
        try:
            done = await self._run(wanted, model)
        except Refusal as error:
            # Only a full queue keeps its status here.
            return native_error(request, error if error.status == 503 else Refusal(500, error.message))
        length = model.weights.embedding_length
        vector = vectors.raw_vector(model.weights.digest, done.texts[0], length) if done.texts else []
        return json_response(request, {"embedding": vector})

    async def openai_embeddings(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await v1_body(self._parts, request, "EmbedRequest")
            encoding = text_field(body, "encoding_format").lower()
            if encoding not in {"", "float", "base64"}:
                given = body["encoding_format"]
                supported = "Supported values: ['float', 'base64']."
                raise Refusal(400, f"Invalid value for 'encoding_format' = {given}. {supported}")
            if body.get("input") in (None, []):
                raise Refusal(400, "invalid input")
        except Refusal as error:
            return openai_error(request, error)
        try:
            wanted = _openai_request(body)
            model = self._find(wanted.model, missing="model '' not found")
            done = await self._run(wanted, model)
        except Refusal as error:
            told = error_body(error.status, error.message) + b"\n"
            return whole_response(request, told, status=error.status, content_type=JSON_TYPE)
        data = [
            {
                "object": "embedding",
                "embedding": vectors.as_base64(vector) if encoding == "base64" else vector,
                "index": index,
            }
            for index, vector in enumerate(_vectors(wanted, model, done))
        ]
        usage = {"prompt_tokens": done.tokens, "total_tokens": done.tokens}
        answer = {"object": "list", "data": data, "model": wanted.model, "usage": usage}
        return whole_response(request, encode(answer) + b"\n", content_type=JSON_TYPE)

    def _find(self, name: str, *, missing: str) -> Model:
        if not name:
            raise Refusal(404 if "not found" in missing else 400, missing)
        if is_cloud(name):
            raise Refusal(403, CLOUD_DISABLED)
        if not parse_name(name).is_valid:
            raise Refusal(400, "invalid model name")
        model = self._parts.store.find(name)
        if model is None:
            raise Refusal(404, f'model "{name}" not found, try pulling it first')
        return model

    async def _run(self, wanted: EmbedRequest, model: Model) -> Embedded:
        demand = self._parts.core.demand(
            InferenceRequest(
                is_chat=False,
                model=wanted.model,
                stream=False,
                options=wanted.options,
                keep_alive=wanted.keep_alive,
            ),
            model,
        )
        started_at = self._parts.clock.now()
        try:
            grant = await self._parts.scheduler.acquire(demand)
            try:
                texts, tokens, worked = await self._work(wanted, grant.runner)
            finally:
                self._parts.scheduler.release(grant.runner)
        except asyncio.CancelledError:
            self._parts.seen.cancelled += 1
            raise
        self._parts.seen.completed += bool(texts)
        elapsed = self._parts.clock.now() - started_at
        total = max(elapsed, grant.load_seconds + worked)
        return Embedded(texts=texts, tokens=tokens, total_seconds=total, load_seconds=grant.load_seconds)

    async def _work(self, wanted: EmbedRequest, runner: Runner) -> tuple[tuple[str, ...], int, float]:
        """Embed every input; a bad one fails the call, but only after all have been worked on."""
        if not wanted.inputs:
            return (), 0, 0.0
        if not runner.model.weights.is_embedding:
            raise Refusal(501, NO_EMBEDDINGS)
        limit = runner.options.num_ctx - _MARKER_TOKENS
        fault = self._parts.faults.take(FaultKind.RUNNER_DIES, model=wanted.model)
        async with asyncio.TaskGroup() as group:
            # Tasks start in order, so the whole call stands in line before any later call.
            tasks = [
                group.create_task(_embed_one(runner, one, limit, wanted.truncate)) for one in wanted.inputs
            ]
            if fault is not None:
                asyncio.get_running_loop().call_soon(runner.crash)
                self._parts.seen.runner_crashes += 1
        results = [task.result() for task in tasks]
        for result in results:
            if isinstance(result, Refusal):
                raise result
        done = [result for result in results if not isinstance(result, Refusal)]
        return (
            tuple(embedded for embedded, _, _ in done),
            sum(tokens for _, tokens, _ in done),
            math.fsum(seconds for _, _, seconds in done),
        )


async def _embed_one(
    runner: Runner, given: str, limit: int, truncate: bool
) -> tuple[str, int, float] | Refusal:
    """The text as embedded, its tokens and seconds; or why it cannot be, told not raised."""
    pieces = text.pieces(given)
    if len(pieces) > limit and not truncate:
        return Refusal(400, INPUT_TOO_LONG)
    kept = pieces[:limit]
    tokens = [text.token_id(piece) for piece in kept] + [0] * _MARKER_TOKENS
    try:
        async with runner.slot() as lease:
            await lease.prefill(tokens)
            return "".join(kept), len(tokens), lease.prompt_eval_seconds
    except Refusal as error:
        return Refusal(400, error.message.rstrip())
    except RunnerDied:
        return Refusal(400, EMBEDDING_DIED)


def _vectors(wanted: EmbedRequest, model: Model, done: Embedded) -> list[list[float]]:
    length = model.weights.embedding_length
    return [vectors.embedding(model.weights.digest, one, length, wanted.dimensions) for one in done.texts]


def _native_request(body: Mapping[str, Any]) -> EmbedRequest:
    given = body.get("input")
    inputs = [given] if isinstance(given, str) and given else given if isinstance(given, list) else []
    if not all(isinstance(one, str) for one in inputs) or not isinstance(given, str | list | None):
        raise Refusal(400, "invalid input type")
    return EmbedRequest(
        model=text_field(body, "model"),
        inputs=tuple(inputs),
        truncate=flag_field(body, "truncate") is not False,
        dimensions=int_field(body, "dimensions") or 0,
        keep_alive=keep_alive_field(body),
        options=map_field(body, "options"),
    )


def _openai_request(body: Mapping[str, Any]) -> EmbedRequest:
    given = body.get("input")
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not all(isinstance(one, str) for one in inputs):
        raise Refusal(400, "invalid input type")
    return EmbedRequest(
        model=text_field(body, "model"),
        inputs=tuple(inputs),
        dimensions=int_field(body, "dimensions") or 0,
        options={},
    )
