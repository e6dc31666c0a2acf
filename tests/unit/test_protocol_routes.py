"""The route table: which paths are served, how, and that no odd spelling slips past it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.core.operation import Dialect, Kind
from balancer.errors import MethodNotAllowed, UnknownPath
from balancer.protocol.routes import ROUTES, Treatment, dialect_of, find_route, upstream_path
from tests.unit.unit_support import recordings

DIGEST = "sha256:" + "0a" * 32

# Every route of Ollama v0.33, then the balancer's own.
SERVED = [
    ("GET HEAD", "/", "answered"),
    ("GET HEAD", "/api/version", "merged"),
    ("GET", "/api/status", "relayed"),
    ("GET HEAD", "/api/tags", "merged"),
    ("GET", "/api/ps", "merged"),
    ("POST", "/api/generate", "leased"),
    ("POST", "/api/chat", "leased"),
    ("POST", "/api/embed", "leased"),
    ("POST", "/api/embeddings", "leased"),
    ("POST", "/api/show", "relayed"),
    ("POST", "/api/pull", "every_store"),
    ("POST", "/api/push", "relayed"),
    ("POST", "/api/create", "every_store"),
    ("POST", "/api/copy", "every_store"),
    ("DELETE", "/api/delete", "every_store"),
    ("HEAD POST", f"/api/blobs/{DIGEST}", "every_store"),
    ("POST", "/api/me", "refused"),
    ("POST", "/api/signout", "refused"),
    ("DELETE", "/api/user/keys/abc", "refused"),
    ("POST", "/api/experimental/web_search", "refused"),
    ("POST", "/api/experimental/web_fetch", "refused"),
    ("GET", "/api/experimental/model-recommendations", "relayed"),
    ("POST", "/v1/chat/completions", "leased"),
    ("POST", "/v1/completions", "leased"),
    ("POST", "/v1/embeddings", "leased"),
    ("GET", "/v1/models", "merged"),
    ("GET", "/v1/models/qwen3", "merged"),
    ("POST", "/v1/responses", "leased"),
    ("POST", "/v1/audio/transcriptions", "leased"),
    ("POST", "/v1/messages", "leased"),
    ("POST", "/v1/messages/count_tokens", "answered"),
    ("POST", "/predict/qwen3", "leased"),
    ("GET HEAD", "/livez", "answered"),
    ("GET HEAD", "/readyz", "answered"),
    ("GET HEAD", "/health", "answered"),
]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "get", ""]


@pytest.mark.parametrize(("methods", "path", "treatment"), SERVED)
def test_a_route_is_served_for_its_methods_and_no_other(methods: str, path: str, treatment: str) -> None:
    for method in METHODS:
        if method in methods.split():
            assert treatment == find_route(method, path).route.treatment.value
        else:
            with pytest.raises(MethodNotAllowed) as caught:
                find_route(method, path)
            assert tuple(methods.split()) == caught.value.allow


def test_the_table_holds_nothing_beside_the_routes_named() -> None:
    assert len(SERVED) == len(ROUTES)
    assert {find_route(methods.split()[0], path).route for methods, path, _ in SERVED} == set(ROUTES)


@pytest.mark.parametrize(
    "path",
    [
        "//api/pull",
        "/api//pull",
        "/api/./pull",
        "/./api/pull",
        "/x/../api/pull",
        "/api/%70ull",
        "/api%2Fpull",
        "/%61pi/pull",
        "/API/PULL",
        "/api/Pull",
        "/api/pull/",
        "/api/pull;x",
        "/api/pull?x",
        "/api/pull#x",
        "/api/pull%00",
        "/api/pull ",
        "\\api\\pull",
        "api/pull",
        "http://host/api/pull",
        "/api/pull\u200b",
        "",
        "*",
        "/api",
        "/api/",
        "/v1",
        "/v1/images/generations",
        "/v1/models/",
        "/predict/",
        "/predict",
        "/favicon.ico",
        "/api/blobs/",
        "/api/user/keys/",
        "/livez/",
    ],
)
def test_an_odd_spelling_of_a_path_never_matches(path: str) -> None:
    with pytest.raises(UnknownPath):
        find_route("POST", path)


@given(
    st.text(max_size=40)
    | st.lists(
        st.sampled_from(
            ["/", "api", "pull", "..", ".", "%2e", "%2F", "v1", "blobs", "models", "predict", "x"]
        )
    ).map("".join)
)
def test_whatever_the_path_what_goes_upstream_is_a_row_of_the_table(path: str) -> None:
    try:
        match = find_route("POST", path)
    except (UnknownPath, MethodNotAllowed):
        return
    fixed = {route.path for route in ROUTES if "{" not in route.path}

    assert upstream_path(match) in fixed or match.route.treatment is Treatment.REFUSED


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "g" * 64,
        "sha512:" + "0" * 64,
        "sha256/" + "0" * 64,
        "0" * 64,
        "../../etc/passwd",
        DIGEST + "/..",
        DIGEST + "%0a",
        "sha256%253A" + "0" * 64,
    ],
)
def test_a_blob_is_reached_only_by_a_digest(digest: str) -> None:
    with pytest.raises(UnknownPath):
        find_route("POST", f"/api/blobs/{digest}")


@pytest.mark.parametrize(
    "digest",
    [DIGEST, DIGEST.replace(":", "-"), DIGEST.replace(":", "%3A"), DIGEST.upper().replace("SHA", "sha")],
)
def test_a_blob_keeps_its_digest_upstream(digest: str) -> None:
    match = find_route("HEAD", f"/api/blobs/{digest}")

    assert f"/api/blobs/{digest.replace('%3A', ':')}" == upstream_path(match)


@pytest.mark.parametrize(
    ("raw", "model"),
    [
        ("qwen3", "qwen3"),
        ("qwen3:8b", "qwen3:8b"),
        ("me/qwen3", "me/qwen3"),
        ("me%2Fqwen3%3A8b", "me/qwen3:8b"),
        ("me%252Fqwen3", "me%2Fqwen3"),
        ("a+b", "a+b"),
        ("..", ".."),
    ],
)
@pytest.mark.parametrize(("method", "prefix"), [("GET", "/v1/models/"), ("POST", "/predict/")])
def test_a_model_in_a_path_is_decoded_once(method: str, prefix: str, raw: str, model: str) -> None:
    assert model == find_route(method, prefix + raw).parameter


def test_predict_goes_upstream_as_generate() -> None:
    assert upstream_path(find_route("POST", "/predict/a/b")) == "/api/generate"


def test_only_paths_that_change_models_ask_for_a_peer_that_may() -> None:
    changing = {route.path for route in ROUTES if route.changes_models}

    assert {
        "/api/pull",
        "/api/push",
        "/api/create",
        "/api/copy",
        "/api/delete",
        "/api/blobs/{digest}",
    } == changing


def test_native_generation_and_progress_stream_by_default_and_nothing_else() -> None:
    streaming = {route.path for route in ROUTES if route.default_stream}

    assert {"/api/generate", "/api/chat", "/api/pull", "/api/push", "/api/create"} == streaming


def test_a_route_that_is_refused_says_why_and_no_other_does() -> None:
    assert [
        route.path for route in ROUTES if bool(route.why) is not (route.treatment is Treatment.REFUSED)
    ] == []


def test_every_leased_route_has_a_kind_that_runs_a_model() -> None:
    running = {Kind.GENERATE, Kind.CHAT, Kind.EMBED, Kind.RESPONSE, Kind.TRANSCRIBE}

    assert [
        route.path for route in ROUTES if (route.kind in running) is not (route.treatment is Treatment.LEASED)
    ] == []


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/api/chat", Dialect.OLLAMA),
        ("/nothing", Dialect.OLLAMA),
        ("/predict/x", Dialect.OLLAMA),
        ("/v1/chat/completions", Dialect.OPENAI),
        ("/v1/nothing", Dialect.OPENAI),
        ("/v1/messages", Dialect.ANTHROPIC),
        ("/v1/messages/count_tokens", Dialect.ANTHROPIC),
    ],
)
def test_errors_on_a_path_are_told_in_its_dialect_served_or_not(path: str, dialect: Dialect) -> None:
    assert dialect is dialect_of(path)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_a_route_has_the_dialect_that_its_errors_are_told_in(route: object) -> None:
    assert route.dialect is dialect_of(route.path)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("status", "error"), [(404, UnknownPath), (405, MethodNotAllowed)])
def test_what_ollama_does_not_route_is_not_routed_here(status: int, error: type[Exception]) -> None:
    ours = {"/v1/messages/count_tokens"}
    refused = [
        each
        for each in recordings()
        if each.status == status and each.content_type == "text/plain" and each.path not in ours
    ]
    assert len(refused) >= 5

    for each in refused:
        with pytest.raises(error):
            find_route(each.method, each.path)
