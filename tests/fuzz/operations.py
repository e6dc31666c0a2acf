"""Fuzz targets of the request parser: what it accepts, Ollama would understand in the same way."""

from __future__ import annotations

import json
from collections.abc import Sequence

import zstandard
from hypothesis import strategies as st

from balancer.core.operation import Kind
from balancer.errors import BodyTooLarge, MalformedRequest, MethodNotAllowed, UnknownPath
from balancer.protocol.errors import error_body
from balancer.protocol.parse import Parsed, estimate_prompt_tokens, parse_request
from balancer.protocol.routes import ROUTES, Match, Treatment, dialect_of, find_route, upstream_path
from tests.fuzz import go_forms, go_json
from tests.fuzz.recorded import exchanges
from tests.fuzz.target import Target, byte_at, one_line

_FORMS = (
    "multipart/form-data; boundary=bnd",
    'multipart/form-data; boundary="bnd"',
    "Multipart/Form-Data;Boundary=bnd; charset=utf-8",
    "multipart/form-data; xboundary=x; boundary=bnd",
    "multipart/form-data; boundary=bnd; boundary=b",
    'multipart/form-data; boundary="b nd"',
    "multipart/form-data; boundary=bnd; x",
)
_BODIES = [
    route for route in ROUTES if "POST" in route.methods or "DELETE" in route.methods
    if route.treatment is not Treatment.REFUSED and "{digest}" not in route.path
]  # fmt: skip
_PATHS = [route.path.replace("{model}", "llama3.2%3A1b") for route in _BODIES]
_TRANSCRIBE = _PATHS.index("/v1/audio/transcriptions")


def examine_body(data: bytes) -> None:
    """The first byte chooses the route, the second how the body is wrapped; the rest is the body."""
    path, wrapping, body = _PATHS[byte_at(data, 0) % len(_PATHS)], byte_at(data, 1), data[2:]
    match = find_route("DELETE" if path == "/api/delete" else "POST", path)
    form = _FORMS[wrapping // 4 % len(_FORMS)] if wrapping % 4 == 2 else ""
    compressed = wrapping % 4 == 1 and path.startswith("/v1/")
    try:
        if path == "/v1/messages/count_tokens":
            assert estimate_prompt_tokens(body) >= 1
            return
        parsed = parse_request(
            match,
            zstandard.ZstdCompressor().compress(body) if compressed else body,
            content_type=form or "application/json",
            content_encoding="zstd" if compressed else "",
        )
    except (MalformedRequest, BodyTooLarge) as error:
        told = str(error)
    else:
        _examine_parsed(match, parsed, body, form)
        return
    assert one_line(told), told
    error_body(dialect_of(path), 400, told, "id")


def _examine_parsed(match: Match, parsed: Parsed, body: bytes, form: str) -> None:
    """What was accepted against what an instance makes of the bytes that it is sent."""
    operation = parsed.operation
    assert operation.model, operation
    assert parsed.body is None or operation.upstream_path == "/api/generate"
    try:
        if match.route.kind is Kind.TRANSCRIBE and form:
            wanted, streams = go_forms.read_field(body, form, "model") or "", False
        else:
            sent = body if parsed.body is None else parsed.body
            members = go_json.read_object(sent)
            wanted = go_json.model_of(operation.upstream_path, members)
            streams = go_json.stream_of(operation.upstream_path, members, match.route.default_stream)
    except go_json.NoReading:
        return
    if not wanted.strip():
        return  # the instance refuses it, in its own words
    assert operation.model == wanted.strip(), (operation.model, wanted)
    if operation.kind in {Kind.GENERATE, Kind.CHAT, Kind.RESPONSE, Kind.MANAGE}:
        assert operation.stream == streams, (operation.stream, streams)


def examine_path(data: bytes) -> None:
    """A method and a path, parted by a blank, as the listener gives them."""
    method, _, raw = data.partition(b" ")
    path = raw.decode("utf-8", "surrogateescape")
    try:
        match = find_route(method.decode("latin-1"), path)
    except (UnknownPath, MethodNotAllowed) as error:
        told = json.loads(error_body(dialect_of(path), error.status, str(error), "id"))
        assert told["error"]
        return
    upstream = upstream_path(match)
    fixed = match.route.path.partition("{")[0]
    assert upstream == "/api/generate" or upstream.startswith(fixed)
    if match.route.treatment in {Treatment.LEASED, Treatment.RELAYED, Treatment.EVERY_STORE}:
        assert upstream.isascii()
        assert upstream.isprintable()
        assert not set(upstream) & set(' ?#%\\"')


def _wrapped(route: int, wrapping: int, body: bytes) -> bytes:
    return bytes((route, wrapping)) + body


_KEYS = ["model", "name", "source", "stream", "options", "shift", "keep_alive", "prompt", "messages"]
_spelled = st.sampled_from(_KEYS).flatmap(
    lambda key: st.sampled_from(
        [key, key.upper(), key.title(), key.replace("s", "\u017f"), key.replace("k", "\u212a"), key + "\x00",
         key.replace("ss", "\u00df"), key.replace("st", "\ufb06"), key[:1].upper() + key[1:]]
    )
)  # fmt: skip
_names = st.sampled_from(["a", "b", "llama3.2:1b", " a", "a ", "", "x/y/z:w", "\ud83d\ude00", "é", "a\tb"])
_values = st.one_of(
    _names, st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just([]), st.just({}),
    st.dictionaries(st.sampled_from(["num_ctx", "use_mmap", "num_gpu", "model"]), st.integers() | st.none()),
    st.lists(st.dictionaries(st.sampled_from(["role", "content", "model"]), st.text(max_size=5)), max_size=2),
)  # fmt: skip
_members = st.one_of(
    st.tuples(st.sampled_from(["model", "model", "Model", "name", "source"]), _names | st.none()),
    st.tuples(st.sampled_from(["stream", "STREAM", "shift"]), st.booleans() | st.none()),
    st.tuples(_spelled | st.text(max_size=4), _values),
)
_blank = st.sampled_from(["", "", "", " ", "\n", "\t "])


@st.composite
def _objects(draw: st.DrawFn) -> bytes:
    """Objects with keys that come twice, in several spellings, and with halves of characters."""
    pairs = draw(st.lists(_members, max_size=6))
    plain = draw(st.booleans())
    members = []
    for key, value in pairs:
        name = json.dumps(key, ensure_ascii=plain)
        members.append(f"{draw(_blank)}{name}:{draw(_blank)}{json.dumps(value, ensure_ascii=plain)}")
    text = "{" + ",".join(members) + "}" + draw(st.sampled_from(["", "", "", "\n", "{}", "\x00"]))
    half = draw(st.sampled_from(["", "", '"model":"\\ud800"', '"prompt":"\\udc00x"', '"\\ud83d":1']))
    if half:
        text = text.replace("{", "{" + half + ("," if members else ""), 1)
    return text.encode("utf-8", "surrogatepass")


_DISPOSITIONS = [
    'form-data; name="model"', "form-data; name=model", 'form-data; name="file"; filename="model"',
    'form-data; filename="x"; name="model"', 'form-data; name="other"', 'attachment; name="model"',
    'form-data; name="model"; filename=""', 'form-data; name*=utf-8\'\'model', 'form-data; name="mo\\del"',
    'FORM-DATA; NAME="model"', 'form-data;name="model";x', 'form-data; name="a"; name="model"',
]  # fmt: skip


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    """Forms of which some are faulty: line ends, heads, boundaries."""
    end = draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"]))
    body = draw(st.sampled_from(["", "", "preamble" + end, "--bndx" + end]))
    for _ in range(draw(st.integers(0, 4))):
        body += "--bnd" + draw(st.sampled_from(["", "", "", " ", "x", "-"])) + end
        for _ in range(draw(st.integers(0, 2))):
            body += draw(st.sampled_from(
                ["Content-Type: text/plain", "content-transfer-encoding: quoted-printable", "x", " folded",
                 "X-A: b\rContent-Disposition: form-data; name=model", "Content-Disposition: x"]
            )) + end  # fmt: skip
        body += "Content-Disposition: " + draw(st.sampled_from(_DISPOSITIONS)) + end + end
        body += draw(st.sampled_from(["a", "b", "", "--bnd", "a\nb", "--bnd--", "a=3Db"])) + end
    return (body + draw(st.sampled_from(["--bnd--" + end, "--bnd--", "", "--bnd-- ", "--bnd"]))).encode()


def _body_seeds() -> Sequence[bytes]:
    seeds = []
    for each in exchanges():
        if each.path in _PATHS and 0 < len(each.body) < 2000:
            seeds.append(_wrapped(_PATHS.index(each.path), 0, each.body))
            if each.content_type.startswith("multipart/"):
                boundary = each.content_type.partition("boundary=")[2].strip('"').encode()
                seeds.append(_wrapped(_TRANSCRIBE, 2, each.body.replace(boundary, b"bnd")))
    return seeds


BODIES = Target(
    name="bodies",
    words=(
        b'"model":',
        b'"MODEL":null',
        b'"name":',
        b'"source":',
        b'"stream":',
        b"\\ud83d\\ude00",
        b"--bnd\r\n",
        b'form-data; name="model"',
    ),
    examine=examine_body,
    inputs=st.one_of(
        st.builds(_wrapped, st.integers(0, len(_PATHS) - 1), st.sampled_from([0, 1]), _objects()),
        st.builds(_wrapped, st.just(_TRANSCRIBE), st.sampled_from([2, 2, 6, 10, 14, 18, 22, 26]), forms()),
        st.binary(max_size=60),
    ),
    seeds=_body_seeds,
)
PATHS = Target(
    name="paths",
    words=(b"/api/blobs/sha256:", b"/predict/", b"/v1/models/", b"%2F", b"%00", b"GET ", b"POST "),
    examine=examine_path,
    inputs=st.builds(
        lambda method, path, more: method + b" " + path + more,
        st.sampled_from([b"GET", b"POST", b"HEAD", b"DELETE", b"get", b""]),
        st.sampled_from([route.path.partition("{")[0].encode() for route in ROUTES]),
        st.binary(max_size=12) | st.just(b"sha256:" + b"0a" * 32) | st.just(b"%2e%2e%2fapi%2fdelete"),
    ),
    seeds=lambda: [f"{each.method} {each.path}".encode() for each in exchanges()],
)
OPERATION_TARGETS = (BODIES, PATHS)
