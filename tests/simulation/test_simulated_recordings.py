"""Recorded exchanges with a real server are answered alike: status, content type and framing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from simulation_support import fast

from balancer.simulator import Kind, ModelSpec, SimulatedOllama

RECORDINGS = Path(__file__).parent.parent / "recordings" / "exchanges.jsonl"
KINDS = {
    "t": Kind.CODE,
    "say": Kind.CODE,
    "plain": Kind.CHAT,
    "e": Kind.EMBEDDING,
    "tool": Kind.TOOLS,
    "think": Kind.THINKING,
}
BLOB = b"a scratch blob of the recorder\n"
# What the simulator does not imitate: templates, schema errors, debug output, the
# HTTP parser's own errors, and the recorded embedder's smaller context.
DIFFERENT = (
    "chat/rendered only",
    "embed/too long",
    "refused/schema",
    "refused/template",
    "malformed/",
)


def as_bytes(text: Any) -> bytes:
    return base64.b64decode(text["base64"]) if isinstance(text, dict) else text.encode()


def wire_request(request: dict[str, Any]) -> bytes:
    body = as_bytes(request["body"])
    if any(name.lower() == "transfer-encoding" for name, _ in request["headers"]):
        body = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    lines = [f"{request['method']} {request['path']} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request["headers"]]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def answered(server: SimulatedOllama, request: dict[str, Any]) -> tuple[int, str | None, str]:
    """The status, the content type and how the body's end is known."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 24)
    writer.write(wire_request(request))
    async with asyncio.timeout(20):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        if "transfer-encoding" in headers:
            await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    status = int(head[0].split()[1])
    framing = "chunked" if "transfer-encoding" in headers else "length"
    bodiless = request["method"] == "HEAD" or status == 204
    return status, headers.get("content-type"), "none" if bodiless else framing


@pytest.mark.skipif(not RECORDINGS.exists(), reason="no recordings of a real server at hand")
async def test_recorded_requests_are_answered_as_the_real_server_did() -> None:
    models = tuple(ModelSpec(name=name, size_bytes=5_000_000, kind=kind) for name, kind in KINDS.items())
    differing = []
    async with SimulatedOllama(fast(models=models, context_length=2048)).running() as server:
        server.store.add_blob(f"sha256:{hashlib.sha256(BLOB).hexdigest()}", len(BLOB), is_gguf=False)
        for line in RECORDINGS.read_bytes().splitlines():
            exchange = json.loads(line)
            if exchange["name"].startswith(DIFFERENT):
                continue
            real = exchange["response"]
            types = [value for name, value in real["headers"] if name.lower() == "content-type"]
            expected = (real["status"], types[0] if types else None, real["framing"])
            told = await answered(server, exchange["request"])
            if told != expected:
                differing.append((exchange["name"], told, expected))

    assert differing == [], differing
