"""The routes that generate: /api/generate, /api/chat and their OpenAI and Anthropic forms.

Each reads its dialect's request into the common record and leaves the rest to
exchange.py. Source: Ollama v0.33 server/routes.go, middleware/.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from aiohttp import BodyPartReader, web

from balancer.simulator.answers import Part
from balancer.simulator.dialects import anthropic, openai, responses
from balancer.simulator.dialects.native import NativeAnswer
from balancer.simulator.dialects.wire import JSON_TYPE, SSE_TYPE, encode
from balancer.simulator.errors import Refusal
from balancer.simulator.inference import CLOUD_DISABLED
from balancer.simulator.names import is_cloud
from balancer.simulator.requests import Body, InferenceRequest, decode_json, native_request, text_field
from balancer.simulator.web.exchange import respond
from balancer.simulator.web.framing import inflated_body, native_error, whole_response
from balancer.simulator.web.gate import AnsweredEarly, strike_model
from balancer.simulator.web.parts import ServerParts

_UNBUFFERED = {"Cache-Control": "no-cache", "Connection": "keep-alive"}
_LARGEST_ID = 999_999
_INSTRUCTION = "Transcribe the audio exactly as spoken."


class InferenceRoutes:
    """Handlers of the generating routes."""

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/generate", self.generate),
            web.post("/api/chat", self.chat),
            web.post("/v1/chat/completions", self.chat_completions),
            web.post("/v1/completions", self.completions),
            web.post("/v1/responses", self.responses),
            web.post("/v1/messages", self.messages),
            web.post("/v1/audio/transcriptions", self.transcriptions),
        ]

    async def generate(self, request: web.Request) -> web.StreamResponse:
        return await self._native(request, is_chat=False)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._native(request, is_chat=True)

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await v1_body(self._parts, request, "ChatCompletionRequest")
            wanted = openai.chat_request(body)
            usage = openai.includes_usage(body)
        except Refusal as error:
            return openai_error(request, error)
        answer = openai.ChatAnswer(wanted.model, id=f"chatcmpl-{self._small_id()}", include_usage=usage)
        return await respond(self._parts, request, answer, wanted)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await v1_body(self._parts, request, "CompletionRequest")
            wanted = openai.completion_request(body)
            usage = openai.includes_usage(body)
        except Refusal as error:
            return openai_error(request, error)
        answer = openai.CompletionAnswer(wanted.model, id=f"cmpl-{self._small_id()}", include_usage=usage)
        return await respond(self._parts, request, answer, wanted)

    async def responses(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await v1_body(self._parts, request, "ResponsesRequest")
            wanted = responses.responses_request(body)
        except Refusal as error:
            return openai_error(request, error)
        number = self._parts.ids.randrange(_LARGEST_ID)
        answer = responses.ResponsesAnswer(wanted.model, number=number, body=body)
        return await respond(self._parts, request, answer, wanted, _UNBUFFERED if wanted.stream else {})

    async def messages(self, request: web.Request) -> web.StreamResponse:
        request_id = f"req_{self._parts.ids.randbytes(12).hex()}"
        try:
            body = await v1_body(self._parts, request, "MessagesRequest", "anthropic")
            wanted = anthropic.messages_request(body)
        except Refusal as error:
            body_bytes = anthropic.error_body(error.status, error.message, request_id)
            return whole_response(request, body_bytes, status=error.status)
        answer = anthropic.MessagesAnswer(
            wanted.model,
            id=f"msg_{self._parts.ids.randbytes(12).hex()}",
            request_id=request_id,
            estimated_input_tokens=anthropic.estimated_tokens(body),
        )
        return await respond(self._parts, request, answer, wanted, _UNBUFFERED if wanted.stream else {})

    async def transcriptions(self, request: web.Request) -> web.StreamResponse:
        try:
            fields = await _form_fields(request)
            wanted = _transcription_request(fields)
        except Refusal as error:
            return openai_error(request, error)
        strike_model(self._parts, request, wanted.model)
        plain = fields.get("response_format") == b"text"
        return await respond(self._parts, request, TranscriptionAnswer(plain=plain), wanted)

    async def _native(self, request: web.Request, *, is_chat: bool) -> web.StreamResponse:
        try:
            wanted = native_request(
                decode_json(await request.read(), "ChatRequest" if is_chat else "GenerateRequest"),
                is_chat=is_chat,
            )
        except Refusal as error:
            return native_error(request, error)
        strike_model(self._parts, request, wanted.model)
        return await respond(self._parts, request, NativeAnswer(wanted.model, is_chat=is_chat), wanted)

    def _small_id(self) -> int:
        return self._parts.ids.randrange(999)


async def v1_body(parts: ServerParts, request: web.Request, go_type: str, package: str = "openai") -> Body:
    """The object in the body of a /v1 request. Raises: Refusal 400, AnsweredEarly, FaultStruck."""
    raw = await inflated_body(request)
    if not raw.strip():
        raise Refusal(400, "EOF")
    body = decode_json(raw, go_type, package)
    model = text_field(body, "model")
    strike_model(parts, request, model)
    if is_cloud(model):
        # Raised before any dialect is at work: the one native error on /v1.
        raise AnsweredEarly(native_error(request, Refusal(403, CLOUD_DISABLED)))
    return body


def openai_error(request: web.Request, error: Refusal) -> web.Response:
    """An error that a /v1 route finds while it reads the request, before the native handler sees it."""
    return whole_response(request, openai.error_body(error.status, error.message), status=error.status)


class TranscriptionAnswer:
    """The answer to one transcription: always whole, JSON or plain text."""

    stream_type = SSE_TYPE

    def __init__(self, *, plain: bool) -> None:
        self._plain = plain

    @property
    def unary_type(self) -> str:
        return "text/plain" if self._plain else JSON_TYPE

    def chunks(self, part: Part) -> list[bytes]:
        return []

    def whole(self, part: Part) -> bytes:
        text = part.content.strip()
        return text.encode() if self._plain else encode({"text": text}) + b"\n"

    def broken(self, message: str) -> list[bytes]:
        return []

    def error(self, status: int, message: str) -> bytes:
        return openai.error_body(status, message) + b"\n"


async def _form_fields(request: web.Request) -> dict[str, bytes]:
    """The parts of a multipart form. Raises: Refusal 400."""
    if not request.content_type.startswith("multipart/"):
        problem = "failed to parse multipart form: request Content-Type isn't multipart/form-data"
        raise Refusal(400, problem)
    fields: dict[str, bytes] = {}
    reader = await request.multipart()
    while (part := await reader.next()) is not None:
        if isinstance(part, BodyPartReader) and part.name:
            fields[part.name] = bytes(await part.read())
    return fields


def _transcription_request(fields: Mapping[str, bytes]) -> InferenceRequest:
    model = fields.get("model", b"").decode("utf-8", "replace")
    if not model:
        raise Refusal(400, "model is required")
    if "file" not in fields:
        raise Refusal(400, "file is required: http: no such file")
    if not fields["file"]:
        raise Refusal(400, "audio file is empty")
    audio = base64.b64encode(fields["file"]).decode()
    question = {"role": "user", "content": "What exact words are spoken in this audio?", "images": [audio]}
    return InferenceRequest(
        is_chat=True,
        model=model,
        stream=False,
        messages=({"role": "system", "content": _INSTRUCTION}, question),
    )
