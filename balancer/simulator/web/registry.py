"""The routes that change the disk: pull, push, create, copy, delete and blobs.

The registry is simulated and in memory; downloads take simulated time and load
nothing. Source: Ollama v0.33 server/routes.go, server/create.go, server/images.go.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from balancer.simulator.dialects.native import error_body
from balancer.simulator.dialects.wire import JSON_TYPE, NDJSON_TYPE, encode
from balancer.simulator.errors import Refusal
from balancer.simulator.models import Kind, Model, ModelSpec, weights_of
from balancer.simulator.names import parse_name
from balancer.simulator.requests import decode_json, flag_field, list_field, map_field, text_field
from balancer.simulator.web.framing import ChunkedStream, native_error, whole_response
from balancer.simulator.web.parts import ServerParts

_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_PROGRESS_LINES = 5
_NO_MANIFEST = "pull model manifest: file does not exist"

Progress = AsyncIterator[Mapping[str, Any]]


class RegistryRoutes:
    """Handlers of the routes that change models and blobs."""

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/pull", self.pull),
            web.post("/api/push", self.push),
            web.post("/api/create", self.create),
            web.post("/api/copy", self.copy),
            web.delete("/api/delete", self.delete),
            web.head("/api/blobs/{digest}", self.has_blob),
            web.post("/api/blobs/{digest}", self.add_blob),
        ]

    async def pull(self, request: web.Request) -> web.StreamResponse:
        try:
            body = decode_json(await request.read(), "PullRequest")
            name = _valid_name(_either_name(body))
        except Refusal as error:
            return native_error(request, error)
        return await self._report(request, body, self._pull(name))

    async def push(self, request: web.Request) -> web.StreamResponse:
        try:
            body = decode_json(await request.read(), "PushRequest")
            name = _either_name(body)
            if not name:
                raise Refusal(400, "model is required")
        except Refusal as error:
            return native_error(request, error)
        return await self._report(request, body, self._push(name))

    async def create(self, request: web.Request) -> web.StreamResponse:
        try:
            body = decode_json(await request.read(), "CreateRequest")
            name = _valid_name(_either_name(body))
            _check_files(map_field(body, "files"))
        except Refusal as error:
            return native_error(request, error)
        return await self._report(request, body, self._create(name, body))

    async def copy(self, request: web.Request) -> web.StreamResponse:
        try:
            body = decode_json(await request.read(), "CopyRequest")
            source, destination = text_field(body, "source"), text_field(body, "destination")
            for role, name in (("source", source), ("destination", destination)):
                if not parse_name(name).is_valid:
                    raise Refusal(400, f'{role} "{name}" is invalid')
            model = self._parts.store.find(source)
            if model is None:
                raise Refusal(404, f'model "{source}" not found')
        except Refusal as error:
            return native_error(request, error)
        self._parts.store.copy(model, parse_name(destination))
        return web.Response()

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Remove a name. A runner of it stays loaded until its keep_alive ends."""
        try:
            name = _either_name(decode_json(await request.read(), "DeleteRequest"))
            if not name:
                raise Refusal(400, "model is required")
            if not parse_name(name).is_valid:
                raise Refusal(400, f'name "{name}" is invalid')
            model = self._parts.store.find(name)
            if model is None:
                raise Refusal(404, f"model '{name}' not found")
        except Refusal as error:
            return native_error(request, error)
        self._parts.store.delete(model)
        return web.Response()

    async def has_blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        if not _DIGEST.fullmatch(digest):
            return native_error(request, Refusal(400, "invalid digest format"))
        if not self._parts.store.has_blob(digest.replace("-", ":")):
            return native_error(request, Refusal(404, f'blob "{digest}" not found'))
        return web.Response()

    async def add_blob(self, request: web.Request) -> web.StreamResponse:
        """Store a blob; one that is there already is not read at all."""
        digest = request.match_info["digest"]
        if not _DIGEST.fullmatch(digest):
            return native_error(request, Refusal(400, "invalid digest format"))
        if self._parts.store.has_blob(digest):
            return web.Response()
        found, size, start = hashlib.sha256(), 0, b""
        async for data in request.content.iter_chunked(1 << 20):
            found.update(data)
            size += len(data)
            start = start or data[:4]
        actual = f"sha256:{found.hexdigest()}"
        if actual != digest:
            problem = f'digest mismatch, expected "{digest}", got "{actual}"'
            return native_error(request, Refusal(400, problem))
        self._parts.store.add_blob(digest, size, is_gguf=start == b"GGUF")
        return web.Response(status=201)

    async def _report(
        self, request: web.Request, body: Mapping[str, Any], progress: Progress
    ) -> web.StreamResponse:
        """Stream progress line by line, or give the last one; an error after a line is a line."""
        stream = flag_field(body, "stream") is not False
        lines = ChunkedStream(request, NDJSON_TYPE, seen=self._parts.seen)
        latest: Mapping[str, Any] = {}
        try:
            async for latest in progress:
                if stream:
                    await lines.write(encode(latest) + b"\n")
        except Refusal as error:
            if lines.response is None:
                told = error_body(error.message)
                return whole_response(
                    request, told, status=error.status, content_type=JSON_TYPE, chunked=stream
                )
            await lines.write(error_body(error.message) + b"\n")
        if stream:
            return await lines.end()
        return whole_response(request, encode(latest), content_type=JSON_TYPE)

    async def _pull(self, name: str) -> Progress:
        yield {"status": "pulling manifest"}
        spec = self._parts.store.pullable(name)
        if spec is None:
            raise Refusal(500, _NO_MANIFEST)
        digest = weights_of(spec).digest
        async for line in self._transfer("pulling", digest, spec.size_bytes):
            yield line
        yield {"status": "verifying sha256 digest"}
        yield {"status": "writing manifest"}
        self._parts.store.install(replace(spec, name=name) if spec.name == name else spec)
        yield {"status": "success"}

    async def _push(self, name: str) -> Progress:
        yield {"status": "retrieving manifest"}
        model = self._parts.store.find(name)
        if model is None:
            yield {"status": "couldn't retrieve manifest"}
            raise Refusal(500, f"open {_manifest_path(name)}: no such file or directory")
        async for line in self._transfer("pushing", model.weights.digest, model.weights.size_bytes):
            yield line
        yield {"status": "pushing manifest"}
        yield {"status": "success"}

    async def _transfer(self, verb: str, digest: str, total: int) -> Progress:
        """Lines of a transfer that takes its simulated time; nothing moves when it is there."""
        status = f"{verb} {digest.removeprefix('sha256:')[:12]}"
        clock = self._parts.clock
        started_at = clock.now()
        seconds = total / self._parts.config.download_bytes_per_second
        if verb == "pulling" and self._parts.store.has_blob(digest):
            seconds = 0.0
        yield {"status": status, "digest": digest, "total": total}
        for line in range(1, _PROGRESS_LINES + 1):
            share = line / _PROGRESS_LINES
            await clock.sleep_until(started_at + seconds * share)
            yield {"status": status, "digest": digest, "total": total, "completed": int(total * share)}

    async def _create(self, name: str, body: Mapping[str, Any]) -> Progress:
        origin, files = text_field(body, "from"), map_field(body, "files")
        if origin:
            _valid_name(origin)
            async for line in self._pull_if_missing(origin):
                yield line
            base = self._parts.store.find(origin)
            if base is None:
                raise Refusal(500, _NO_MANIFEST)
        elif body.get("files") is not None:
            if not any(self._may_be_gguf(file, str(digest)) for file, digest in files.items()):
                raise Refusal(400, "unknown type")
            yield {"status": "parsing GGUF"}
            base = self._model_of_files(name, files)
        else:
            raise Refusal(400, "neither 'from' or 'files' was specified")
        model = _derived(base, name, body)
        replaced = _replaced_kinds(model, body)
        kept = [layer for layer in base.layers if layer.kind not in replaced]
        digests = {layer.digest for layer in kept}
        for layer in kept:
            yield {"status": f"using existing layer {layer.digest}"}
        for layer in model.layers:
            if layer.digest not in digests:
                known = self._parts.store.has_blob(layer.digest)
                yield {"status": f"{'using existing' if known else 'creating new'} layer {layer.digest}"}
        yield {"status": "writing manifest"}
        self._parts.store.put(model)
        yield {"status": "success"}

    async def _pull_if_missing(self, name: str) -> Progress:
        if self._parts.store.find(name) is None:
            async for line in self._pull(name):
                yield line

    def _may_be_gguf(self, file: str, digest: str) -> bool:
        """Whether a file is read as GGUF: by its name, else by how it begins."""
        return file.endswith(".gguf") or self._parts.store.is_gguf(digest)

    def _model_of_files(self, name: str, files: Mapping[str, Any]) -> Model:
        """A new model from uploaded blobs; its weights are written anew, so their digest differs."""
        digest = str(next(iter(files.values())))
        _checked_digest(digest)
        if not self._parts.store.has_blob(digest):
            path = f"/simulated/blobs/{digest.replace(':', '-')}"
            raise Refusal(500, f"open {path}: no such file or directory")
        if not self._parts.store.is_gguf(digest):
            raise Refusal(400, "supplied file was not in GGUF format")
        embeds = any("embed" in str(file).lower() for file in (*files, name))
        spec = ModelSpec(
            name=f"converted from {digest}",
            size_bytes=max(self._parts.store.blob_size(digest), 1),
            kind=Kind.EMBEDDING if embeds else Kind.TOOLS,
        )
        return Model(name=parse_name(name), weights=weights_of(spec), modified_at=datetime.now(UTC))


def _derived(base: Model, name: str, body: Mapping[str, Any]) -> Model:
    given = body.get("license")
    licenses = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    return replace(
        base,
        name=parse_name(name),
        modified_at=datetime.now(UTC),
        parent=base.name.display() if body.get("from") else "",
        parameters={**base.parameters, **map_field(body, "parameters")},
        system=text_field(body, "system") or base.system,
        template=text_field(body, "template") or base.template,
        licenses=(*base.licenses, *(str(text) for text in licenses if text)),
        messages=tuple(list_field(body, "messages")) or base.messages,
    )


def _replaced_kinds(model: Model, body: Mapping[str, Any]) -> set[str]:
    """The kinds of layers that a create writes anew; parameters are always merged and written."""
    fields = {"template": "template", "system": "system", "messages": "messages"}
    kinds = {kind for name, kind in fields.items() if body.get(name)}
    return kinds | ({"params"} if model.parameters else set())


def _check_files(files: Mapping[str, Any]) -> None:
    """Raises: Refusal 400 for what is refused before any line is told."""
    for file, digest in files.items():
        if file.startswith("/") or ".." in file.split("/"):
            raise Refusal(400, "file path must be relative")
        if not digest:
            raise Refusal(400, "invalid digest format")


def _either_name(body: Mapping[str, Any]) -> str:
    return text_field(body, "model") or text_field(body, "name")


def _valid_name(name: str) -> str:
    if not parse_name(name).is_valid:
        raise Refusal(400, "invalid model name")
    return name


def _manifest_path(name: str) -> str:
    parsed = parse_name(name)
    return f"/simulated/manifests/{parsed.host}/{parsed.namespace}/{parsed.model}/{parsed.tag}"


def _checked_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise Refusal(400, "invalid digest format")
