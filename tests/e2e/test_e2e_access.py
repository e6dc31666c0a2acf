"""Who may reach the balancer, and who may change models through it."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest
from harness import CHAT, balancer, fleet, http, quick

FORWARDED = {"X-Forwarded-For": "203.0.113.7"}
BLOB = b"GGUF" + bytes(64)
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()
CHANGES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/api/pull", {"json": {"model": CHAT}}),
    ("POST", "/api/push", {"json": {"model": CHAT}}),
    ("POST", "/api/create", {"json": {"model": "own", "from": CHAT}}),
    ("POST", "/api/copy", {"json": {"source": CHAT, "destination": "twin"}}),
    ("DELETE", "/api/delete", {"json": {"model": "gemma3:4b"}}),
    ("HEAD", f"/api/blobs/{DIGEST}", {}),
    ("POST", f"/api/blobs/{DIGEST}", {"content": BLOB}),
]


async def ask_for_changes(client: httpx.AsyncClient) -> list[httpx.Response]:
    return [
        await client.request(method, path, headers=FORWARDED, **fields) for method, path, fields in CHANGES
    ]


@pytest.mark.parametrize("command", ["serve", "demo"])
@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_listening_beyond_loopback_without_keys_is_refused(command: str, address: str) -> None:
    asked = balancer(command, "--listen", address, "--admin-listen", "127.0.0.1:0")

    assert (asked.returncode, asked.stdout) == (2, "")
    assert "allow_anonymous" in asked.stderr


def test_admin_listener_stays_on_loopback_whatever_is_allowed() -> None:
    arguments = ("--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0", "--allow-anonymous")
    asked = balancer("demo", *arguments)

    assert asked.returncode == 2
    assert "admin_listen" in asked.stderr


async def test_listening_beyond_loopback_is_possible_when_meant() -> None:
    async with fleet(quick(), listen="0.0.0.0:0", allow_anonymous=True) as stack:
        port = httpx.URL(stack.url).port
        async with http(f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/api/tags")).status_code == 200


async def test_changes_passed_on_by_another_proxy_are_refused() -> None:
    async with fleet(quick(), quick()) as stack, http(stack.url) as client:
        refused = await ask_for_changes(client)
        listed = await client.get("/api/tags", headers=FORWARDED)
        chat = {"model": CHAT, "messages": [], "stream": False}
        served = await client.post("/api/chat", json=chat, headers=FORWARDED)

        assert [403] * len(CHANGES) == [each.status_code for each in refused]
        for answer in refused:
            if answer.request.method != "HEAD":
                assert "--allow-model-changes" in answer.json()["error"]
        assert [[0, 0]] * len(CHANGES) == [stack.asked(path) for _, path, _ in CHANGES]
        assert [listed.status_code, served.status_code] == [200, 200]


async def test_changes_passed_on_are_served_once_allowed() -> None:
    async with fleet(quick(), quick(), allow_model_changes=True) as stack, http(stack.url) as client:
        served = await ask_for_changes(client)

    assert [each.status_code for each in served] == [200, 200, 200, 200, 200, 404, 201]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/me"), ("POST", "/api/signout"), ("POST", "/api/experimental/web_search")],
)
async def test_account_of_an_instance_is_not_served(method: str, path: str) -> None:
    async with fleet(quick()) as stack, http(stack.url) as client:
        refused = await client.request(method, path, json={})

        assert refused.status_code == 403
        assert refused.json()["error"].startswith("not served here")
        assert stack.asked(path) == [0]


async def test_credentials_of_a_client_never_reach_an_instance() -> None:
    secret = {"Authorization": "Bearer s3cret", "Cookie": "s3cret=1", "X-Api-Key": "s3cret"}
    async with fleet(quick()) as stack, http(stack.url) as client:
        body = {"model": CHAT, "messages": [{"role": "user", "content": "Hello"}], "stream": False}
        await client.post("/api/chat", json=body, headers=secret)
        await client.post("/v1/chat/completions", json=body, headers=secret)
        await client.post("/api/pull", json={"model": CHAT}, headers=secret)
        seen = [each.headers for each in stack.servers[0].seen.recent]

    assert len(seen) >= 3
    assert not any("s3cret" in value for headers in seen for _, value in headers)


@pytest.mark.parametrize("path", ["/api/tags", "/api/chat", "/v1/models", "/v1/messages"])
async def test_page_of_elsewhere_is_refused_in_the_dialect(path: str) -> None:
    async with fleet(quick()) as stack, http(stack.url) as client:
        foreign = await client.get(path, headers={"Origin": "https://elsewhere.example"})
        rebound = await client.get(path, headers={"Host": "elsewhere.example"})

    for answer in (foreign, rebound):
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert isinstance(error, str) == path.startswith("/api/")
