"""Which headers pass, each way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.protocol.headers import HOP_BY_HOP, downstream_headers, header, upstream_headers

BOTH_WAYS = [upstream_headers, downstream_headers]


@pytest.mark.parametrize("passing", BOTH_WAYS)
@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_a_hop_by_hop_header_ends_here(passing: object, name: str) -> None:
    assert passing([(name.title(), "x")]) == ()  # type: ignore[operator]


def test_every_hop_by_hop_header_of_the_standard_is_known() -> None:
    named = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}

    assert named <= HOP_BY_HOP


@pytest.mark.parametrize("passing", BOTH_WAYS)
def test_a_header_that_connection_names_ends_here(passing: object) -> None:
    headers = [
        ("Connection", "close, X-Secret"),
        ("x-secret", "1"),
        ("connection", " x-other "),
        ("X-Other", "2"),
        ("X-Kept", "3"),
    ]

    assert passing(headers) == (("X-Kept", "3"),)  # type: ignore[operator]


@pytest.mark.parametrize("passing", BOTH_WAYS)
@pytest.mark.parametrize("name", ["X-Balancer-Priority", "x-balancer-instance", "X-BALANCER-anything"])
def test_our_own_headers_pass_neither_way(passing: object, name: str) -> None:
    assert passing([(name, "x")]) == ()  # type: ignore[operator]


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "Content-Length",
        "Expect",
        "Origin",
        "Authorization",
        "Cookie",
        "X-Api-Key",
        "Api-Key",
        "X-Request-ID",
    ],
)
def test_what_identifies_a_caller_never_goes_upstream(name: str) -> None:
    assert upstream_headers([(name, "x")]) == ()


@pytest.mark.parametrize(
    "name",
    ["Forwarded", "Via", "X-Forwarded-For", "X-FORWARDED-HOST", "X-Real-IP", "Proxy-Connection", "Proxy-X"],
)
def test_what_another_proxy_says_never_goes_upstream(name: str) -> None:
    assert upstream_headers([(name, "x")]) == ()


@pytest.mark.parametrize("passing", BOTH_WAYS)
@pytest.mark.parametrize("name", ["Transfer_Encoding", "content_length", "X_Balancer_Instance"])
def test_a_name_with_underscores_ends_where_that_with_dashes_does(passing: object, name: str) -> None:
    assert passing([(name, "x")]) == ()  # type: ignore[operator]
    assert passing([("Connection", "x-secret"), ("X_Secret", "x")]) == ()  # type: ignore[operator]
    assert passing([("X_Kept", "x")]) == (("X_Kept", "x"),)  # type: ignore[operator]


@pytest.mark.parametrize(
    "name", ["Content-Type", "Content-Encoding", "Accept", "User-Agent", "Anthropic-Version"]
)
def test_what_describes_a_request_goes_upstream_as_it_came(name: str) -> None:
    assert ((name, " a,b "),) == upstream_headers([(name, " a,b ")])


def test_an_answers_headers_keep_order_spelling_and_repetition() -> None:
    headers = [
        ("Content-Type", "a"),
        ("set-cookie", "b"),
        ("Date", "c"),
        ("Set-Cookie", "d"),
        ("content-length", "5"),
    ]

    assert tuple(headers[:4]) == downstream_headers(headers)


def test_headers_may_come_as_an_iterator() -> None:
    assert upstream_headers(iter([("A", "1"), ("Connection", "b"), ("B", "2")])) == (("A", "1"),)


def test_the_first_of_several_values_is_read_in_any_case() -> None:
    headers = [("Accept", "a"), ("X-REQUEST-id", "1"), ("x-request-id", "2")]

    assert header(headers, "x-request-id") == "1"
    assert header(headers, "host") is None


TOKENS = st.sampled_from(
    ["X-A", "x-a", "X-B", "Host", "Origin", "Cookie", "TE", "Upgrade", "X-Balancer-A", "Accept"]
)
PAIRS = st.lists(
    st.tuples(TOKENS, st.just("v"))
    | st.tuples(
        st.sampled_from(["Connection", "connection", "CONNECTION"]),
        st.lists(TOKENS | st.sampled_from(["", "close", "keep-alive"]), max_size=4).map(" ,\t".join),
    ),
    max_size=12,
)


@pytest.mark.parametrize("passing", BOTH_WAYS)
@given(headers=PAIRS)
def test_what_passes_is_in_no_list_and_named_by_no_connection(
    passing: object, headers: list[tuple[str, str]]
) -> None:
    """Wherever those Connections stand, and however the names are spelled."""
    values = [value for name, value in headers if name.casefold() == "connection"]
    named = {token.strip().casefold() for value in values for token in value.split(",")}
    alone = [pair for pair in headers if passing([pair]) == (pair,)]  # type: ignore[operator]

    expected = tuple(pair for pair in alone if pair[0].casefold() not in named)
    assert expected == passing(headers)  # type: ignore[operator]


@pytest.mark.parametrize("passing", BOTH_WAYS)
def test_more_names_than_are_kept_in_mind_change_nothing(passing: object) -> None:
    kept = [(f"X-{number}", "v") for number in range(3000)]
    ended = [(f"X-Balancer-{number}", "v") for number in range(3000)]

    for _ in range(2):
        assert tuple(kept) == passing([*kept, *ended, ("Keep-Alive", "v")])  # type: ignore[operator]
