"""The npm client of Ollama gets through the balancer what it gets from an instance directly.

Its packages are installed by `npm ci` in the folder `npm` beside this file.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from client_talks import Cast, plain
from harness import CHAT, EMBEDDER, THINKER, fleet, quick, talkative, until

FOLDER = Path(__file__).parent / "npm"
CAST = Cast(chat=CHAT, tools=CHAT, thinker=THINKER, embedder=EMBEDDER)
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.npm,
    pytest.mark.skipif(NODE is None, reason="node is not on PATH"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules" / "ollama").is_dir(), reason="run `npm ci` in tests/e2e/npm first"
    ),
]


async def talk_npm(url: str, *wanted: str) -> dict[str, Any]:
    """The answers of the script that talks."""
    assert NODE is not None
    arguments = (str(FOLDER / "talk.mjs"), url, json.dumps(asdict(CAST)), *wanted)
    script = await asyncio.create_subprocess_exec(NODE, *arguments, stdout=PIPE, stderr=PIPE)
    out, err = await script.communicate()
    assert script.returncode == 0, err.decode()
    answers: dict[str, Any] = json.loads(out)
    return answers


async def test_answers_are_those_of_an_instance() -> None:
    async with fleet(quick(), quick(), shared=True) as stack:
        direct = plain(await talk_npm(stack.servers[0].url))
        balanced = plain(await talk_npm(stack.url))

    assert direct["chat"]["message"]["content"].startswith("[simulated")
    assert direct["unknown"]["status"] == 404
    for operation, answer in direct.items():
        assert (operation, answer) == (operation, balanced[operation])


async def test_client_that_aborts_cancels_its_request_at_the_instance() -> None:
    async with fleet(talkative(), talkative()) as stack:
        answers = await talk_npm(stack.url, "leave")
        await until(lambda: sum(each.seen.cancelled for each in stack.servers) == 1)

        assert answers == {"left": {"failure": "AbortError"}}
        await until(lambda: [each["outcome"] for each in stack.finished()] == ["cancelled"])
