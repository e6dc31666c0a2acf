"""Who may enter: memory for bodies, peers that may change models, pages that may ask."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.admission.asked import read_asked
from balancer.admission.body_budget import BodyBudget
from balancer.admission.identity import identify, is_loopback, require_model_changes
from balancer.admission.origin import allowed_origin, check_host, require_asked_media_type
from balancer.core.ticket import Priority
from balancer.errors import BodyBudgetSpent, Forbidden, MalformedRequest, UnsupportedMediaType

LOOPBACK = [
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "::1%lo",
    "[::1]",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "localhost",
    "LocalHost",
]
ELSEWHERE = [
    None,
    "",
    "10.0.0.1",
    "::ffff:10.0.0.1",
    "192.168.0.1",
    "0.0.0.0",
    "::",
    "fe80::1",
    "localhost.evil.com",
    "127.0.0.1.evil.com",
    "evil",
    "127.0.0.256",
    "1270.0.1",
]


def test_bodies_share_one_budget() -> None:
    budget = BodyBudget(100)
    one, two = budget.hold(), budget.hold()
    one.grow(60)
    two.grow(40)

    with pytest.raises(BodyBudgetSpent) as caught:
        two.grow(1)

    assert (budget.held_bytes, caught.value.retry_after_seconds) == (100, 1.0)
    one.release()
    two.grow(60)
    assert budget.held_bytes == 100


def test_a_body_is_let_go_once_however_often_it_is_said() -> None:
    budget = BodyBudget(100)
    one, two = budget.hold(), budget.hold()
    one.grow(10)
    two.grow(20)

    one.release()
    one.release()

    assert budget.held_bytes == 20


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60))))
def test_the_budget_is_never_overdrawn_and_ends_empty(steps: list[tuple[int, int]]) -> None:
    budget = BodyBudget(100)
    held = [budget.hold() for _ in range(4)]
    for index, size in steps:
        try:
            held[index].grow(size)
        except BodyBudgetSpent:
            held[index].release()
        assert 0 <= budget.held_bytes <= 100
    for each in held:
        each.release()
    assert budget.held_bytes == 0


def test_a_client_is_its_address() -> None:
    assert (identify("10.0.0.1"), identify(None)) == ("10.0.0.1", "unknown")


@pytest.mark.parametrize("host", LOOPBACK)
def test_every_form_of_this_machine_is_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_no_other_host_is_loopback(host: str | None) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("peer", [each for each in LOOPBACK if each[0] in "1:"])
def test_a_peer_on_this_machine_may_change_models(peer: str) -> None:
    require_model_changes(peer, ["Host", "User-Agent"], allowed=False)


@pytest.mark.parametrize("peer", ELSEWHERE)
def test_no_other_peer_may_change_models_unless_it_is_allowed(peer: str | None) -> None:
    with pytest.raises(Forbidden, match="--allow-model-changes"):
        require_model_changes(peer, [], allowed=False)
    require_model_changes(peer, ["X-Forwarded-For"], allowed=True)


@pytest.mark.parametrize(
    "name", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host", "CF-Connecting-IP"]
)
def test_a_request_that_another_proxy_passed_on_may_not_change_models(name: str) -> None:
    with pytest.raises(Forbidden, match=name.casefold()):
        require_model_changes("127.0.0.1", ["Host", name], allowed=False)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "localhost",
        "localhost:11400",
        "LOCALHOST:1",
        "127.0.0.1",
        "127.0.0.1:80",
        "[::1]",
        "[::1]:80",
        "::1",
        "box",
        "BOX:80",
        "a.localhost",
        "box.local:1",
        "node.internal",
        "10.1.2.3",
        "172.16.0.1:1",
        "192.168.9.9",
        "[fd00::1]:1",
        "0.0.0.0:11400",
        "[::]",
    ],
)
def test_a_host_that_means_this_machine_or_its_network_passes(host: str | None) -> None:
    check_host(host, own_name="Box")


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "example.com:80",
        "192.0.2.1:80",
        "8.8.8.8",
        "172.32.0.1",
        "198.18.0.1",
        "240.0.0.1",
        "169.254.1.1",
        "[2001:db8::1]",
        "[fe80::1]:80",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "local",
        "internal",
        "boxer",
        "evil.localdomain",
        "a b",
    ],
)
def test_a_host_that_means_another_is_refused(host: str) -> None:
    with pytest.raises(Forbidden):
        check_host(host, own_name="Box")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:3000", "x"),
        ("https://127.0.0.1", "x"),
        ("http://[::1]:5173", None),
        ("http://gpu:11400", "gpu:11400"),
        ("http://gpu:3000", "GPU:11400"),
        ("https://[fd00::1]", "[fd00::1]:11400"),
        ("app://obsidian.md", "x"),
        ("file://", "x"),
        ("tauri://localhost", "x"),
        ("vscode-webview://abc", "x"),
    ],
)
def test_a_page_of_this_machine_may_ask_but_not_read(origin: str, host: str | None) -> None:
    assert allowed_origin(origin, host, cors_origins=()) is None


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com",
        "null",
        "",
        "http://localhost.example.com",
        "http://evil/gpu",
        "gpu",
        "chrome-extension://x",
        "http://[",
        "http://[::1",
        "http://a]b",
        "//gpu.example.com",
        "http://gpu.example.com",
    ],
)
@pytest.mark.parametrize("host", ["gpu:11400", "", None])
def test_any_other_page_is_refused(origin: str, host: str | None) -> None:
    with pytest.raises(Forbidden):
        allowed_origin(origin, host, cors_origins=("https://good.example",))


def test_a_page_that_the_operator_named_may_read() -> None:
    assert (
        allowed_origin("https://good.example", "x", cors_origins=("https://good.example",))
        == "https://good.example"
    )
    assert allowed_origin("https://any.example", "x", cors_origins=("*",)) == "https://any.example"
    assert allowed_origin(None, "x", cors_origins=("*",)) is None


@given(st.text(max_size=30), st.none() | st.text(max_size=30))
def test_no_origin_and_no_host_crash_the_guard(origin: str, host: str | None) -> None:
    for check in (
        lambda: allowed_origin(origin, host, cors_origins=()),
        lambda: check_host(host, own_name="box"),
    ):
        try:
            check()
        except Forbidden:
            continue


@pytest.mark.parametrize(
    ("asked", "priority"),
    [
        (None, Priority.NORMAL),
        ("normal", Priority.NORMAL),
        (" Batch ", Priority.BATCH),
        ("INTERACTIVE", Priority.INTERACTIVE),
    ],
)
def test_a_class_is_taken_in_any_case(asked: str | None, priority: Priority) -> None:
    assert priority is read_asked(priority=asked, session=None, timeout=None, limit_seconds=300).priority


@pytest.mark.parametrize("asked", ["", "urgent", "normal,batch"])
def test_a_class_that_there_is_not_names_those_that_there_are(asked: str) -> None:
    with pytest.raises(MalformedRequest, match="interactive, normal, batch"):
        read_asked(priority=asked, session=None, timeout=None, limit_seconds=300)


@pytest.mark.parametrize(
    ("asked", "seconds"), [(None, 300.0), ("5", 5.0), ("0.5", 0.5), ("1e2", 100.0), ("301", 300.0)]
)
def test_a_wait_is_taken_up_to_the_operators_limit(asked: str | None, seconds: float) -> None:
    assert (
        seconds == read_asked(priority=None, session=None, timeout=asked, limit_seconds=300.0).queue_seconds
    )


@pytest.mark.parametrize("asked", ["", "0", "-1", "nan", "inf", "-inf", "5s", "1e999", "0x10", "ten"])
def test_a_wait_that_is_no_number_above_zero_is_malformed(asked: str) -> None:
    with pytest.raises(MalformedRequest, match="X-Balancer-Timeout"):
        read_asked(priority=None, session=None, timeout=asked, limit_seconds=300.0)


@pytest.mark.parametrize(
    ("asked", "session"),
    [
        ("abc-1", "abc-1"),
        ("x" * 256, "x" * 256),
        ("x" * 257, None),
        ("", None),
        ("a b", None),
        ("a\nb", None),
        ("ü", None),
        (None, None),
    ],
)
def test_a_session_is_short_printable_text_or_none(asked: str | None, session: str | None) -> None:
    assert session == read_asked(priority=None, session=asked, timeout=None, limit_seconds=1).session


@pytest.mark.parametrize(
    "media_type", [None, "", "text/plain", "TEXT/PLAIN; charset=utf-8", "application/x-www-form-urlencoded"]
)
def test_a_page_cannot_send_what_its_browser_sends_unasked(media_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaType):
        require_asked_media_type("/api/chat", media_type)


def test_a_page_can_send_json_forms_of_audio_and_blobs() -> None:
    require_asked_media_type("/api/chat", "application/json")
    require_asked_media_type("/v1/audio/transcriptions", "multipart/form-data; boundary=x")
    require_asked_media_type("/api/blobs/sha256:1", None)
    with pytest.raises(UnsupportedMediaType):
        require_asked_media_type("/api/chat", "multipart/form-data; boundary=x")
