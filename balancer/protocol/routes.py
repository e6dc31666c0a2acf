"""The route table: every path that is served, how it is treated, and what it says of a request.

The path that goes upstream always comes from here, never from the request line, so no spelling of
a path reaches an instance that this table does not know. Source of the paths: Ollama v0.33
server/routes.go, GenerateRoutes.
"""

import re
from enum import StrEnum
from urllib.parse import unquote

import msgspec

from balancer.core.operation import Dialect, Kind
from balancer.errors import MethodNotAllowed, UnknownPath


class Treatment(StrEnum):
    """What the balancer does with a request for a route."""

    LEASED = "leased"
    """To one instance that has the model, once it has a slot free; byte for byte."""
    RELAYED = "relayed"
    """To one usable instance, that has the model if one is named, without a slot; byte for byte."""
    MERGED = "merged"
    """Answered from what all instances list."""
    ANSWERED = "answered"
    """Answered by the balancer alone."""
    EVERY_STORE = "every_store"
    """To one instance of each model store, with one merged answer."""
    REFUSED = "refused"
    """Not served, with a reason."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One row: the methods that it has, and its treatment. `changes_models` asks for a peer that may
    do so; `default_stream` is whether an answer streams when the body does not say."""

    path: str
    methods: tuple[str, ...]
    treatment: Treatment
    kind: Kind
    dialect: Dialect = Dialect.OLLAMA
    default_stream: bool = False
    changes_models: bool = False
    why: str = ""


class Match(msgspec.Struct, frozen=True):
    """A route with what its path said: `parameter` is the decoded last part of a path that has one."""

    route: Route
    parameter: str | None = None


def _route(
    methods: str,
    path: str,
    treatment: Treatment,
    kind: Kind,
    *,
    dialect: Dialect = Dialect.OLLAMA,
    default_stream: bool = False,
    changes_models: bool = False,
    why: str = "",
) -> Route:
    return Route(
        path=path,
        methods=tuple(methods.split()),
        treatment=treatment,
        kind=kind,
        dialect=dialect,
        default_stream=default_stream,
        changes_models=changes_models,
        why=why,
    )


_T, _K, _D = Treatment, Kind, Dialect
_ACCOUNT = "the account belongs to one instance, not to the fleet; ask the instance itself"
_WEB = "it would act with the account of whichever instance answered; ask the instance itself"

ROUTES: tuple[Route, ...] = (
    _route("GET HEAD", "/", _T.ANSWERED, _K.INFO),
    _route("GET HEAD", "/livez", _T.ANSWERED, _K.INFO),
    _route("GET HEAD", "/readyz", _T.ANSWERED, _K.INFO),
    _route("GET HEAD", "/health", _T.ANSWERED, _K.INFO),
    _route("GET HEAD", "/api/version", _T.MERGED, _K.INFO),
    _route("GET HEAD", "/api/tags", _T.MERGED, _K.LIST),
    _route("GET", "/api/ps", _T.MERGED, _K.LIST),
    _route("GET", "/v1/models", _T.MERGED, _K.LIST, dialect=_D.OPENAI),
    _route("GET", "/v1/models/{model}", _T.MERGED, _K.LIST, dialect=_D.OPENAI),
    _route("POST", "/api/generate", _T.LEASED, _K.GENERATE, default_stream=True),
    _route("POST", "/api/chat", _T.LEASED, _K.CHAT, default_stream=True),
    _route("POST", "/api/embed", _T.LEASED, _K.EMBED),
    _route("POST", "/api/embeddings", _T.LEASED, _K.EMBED),
    _route("POST", "/predict/{model}", _T.LEASED, _K.GENERATE),
    _route("POST", "/v1/chat/completions", _T.LEASED, _K.CHAT, dialect=_D.OPENAI),
    _route("POST", "/v1/completions", _T.LEASED, _K.GENERATE, dialect=_D.OPENAI),
    _route("POST", "/v1/embeddings", _T.LEASED, _K.EMBED, dialect=_D.OPENAI),
    _route("POST", "/v1/responses", _T.LEASED, _K.RESPONSE, dialect=_D.OPENAI),
    _route("POST", "/v1/audio/transcriptions", _T.LEASED, _K.TRANSCRIBE, dialect=_D.OPENAI),
    _route("POST", "/v1/messages", _T.LEASED, _K.CHAT, dialect=_D.ANTHROPIC),
    _route("POST", "/v1/messages/count_tokens", _T.ANSWERED, _K.INFO, dialect=_D.ANTHROPIC),
    _route("POST", "/api/show", _T.RELAYED, _K.SHOW),
    _route("GET", "/api/status", _T.RELAYED, _K.INFO),
    _route("GET", "/api/experimental/model-recommendations", _T.RELAYED, _K.INFO),
    _route("POST", "/api/pull", _T.EVERY_STORE, _K.MANAGE, default_stream=True, changes_models=True),
    _route("POST", "/api/push", _T.RELAYED, _K.MANAGE, default_stream=True, changes_models=True),
    _route("POST", "/api/create", _T.EVERY_STORE, _K.MANAGE, default_stream=True, changes_models=True),
    _route("POST", "/api/copy", _T.EVERY_STORE, _K.MANAGE, changes_models=True),
    _route("DELETE", "/api/delete", _T.EVERY_STORE, _K.MANAGE, changes_models=True),
    _route("HEAD POST", "/api/blobs/{digest}", _T.EVERY_STORE, _K.MANAGE, changes_models=True),
    _route("POST", "/api/me", _T.REFUSED, _K.MANAGE, why=_ACCOUNT),
    _route("POST", "/api/signout", _T.REFUSED, _K.MANAGE, why=_ACCOUNT),
    _route("DELETE", "/api/user/keys/{key}", _T.REFUSED, _K.MANAGE, why=_ACCOUNT),
    _route("POST", "/api/experimental/web_search", _T.REFUSED, _K.MANAGE, why=_WEB),
    _route("POST", "/api/experimental/web_fetch", _T.REFUSED, _K.MANAGE, why=_WEB),
)


def _index() -> tuple[dict[str, Route], list[tuple[str, Route]]]:
    fixed: dict[str, Route] = {}
    prefixed: list[tuple[str, Route]] = []
    for route in ROUTES:
        prefix, brace, _ = route.path.partition("{")
        if brace:
            prefixed.append((prefix, route))
        else:
            fixed[route.path] = route
    return fixed, prefixed


_BY_PATH, _BY_PREFIX = _index()
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")


def find_route(method: str, raw_path: str) -> Match:
    """The route of a path as it stands in the request line, without its query.

    Fixed paths match to the letter, undecoded. A parameter is percent-decoded once.

    Raises:
        UnknownPath: the path is not in the table.
        MethodNotAllowed: it is, for other methods.
    """
    match = _match(raw_path)
    if match is None:
        raise UnknownPath("404 page not found")
    if method not in match.route.methods:
        raise MethodNotAllowed(
            f"405 method not allowed; {raw_path} takes {' and '.join(match.route.methods)}",
            allow=match.route.methods,
        )
    return match


def dialect_of(raw_path: str) -> Dialect:
    """The dialect that errors on a path are told in, served or not."""
    if raw_path.startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if raw_path.startswith("/v1/") else Dialect.OLLAMA


def upstream_path(match: Match) -> str:
    """The path that the request has at an instance."""
    if match.route.path == "/predict/{model}":
        return "/api/generate"
    if match.parameter is None:
        return match.route.path
    return match.route.path.partition("{")[0] + match.parameter


def _match(raw_path: str) -> Match | None:
    route = _BY_PATH.get(raw_path)
    if route is not None:
        return Match(route)
    for prefix, route in _BY_PREFIX:
        if raw_path.startswith(prefix) and len(raw_path) > len(prefix):
            parameter = unquote(raw_path.removeprefix(prefix))
            if route.path.endswith("{digest}") and _DIGEST.fullmatch(parameter) is None:
                continue
            return Match(route, parameter)
    return None
