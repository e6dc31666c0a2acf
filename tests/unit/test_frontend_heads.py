"""Heads that the parser lets pass and we do not."""

import pytest
from aiohttp import HttpVersion, HttpVersion10, HttpVersion11

from balancer.errors import BrokenFraming, MethodNotAllowed, UnknownExpectation
from balancer.frontend.heads import fault_of

GOOD_HOSTS = ["", "localhost", "localhost:", "LOCALHOST:11400", "my_box.local", "[::1]", "[fe80::1%eth0]:80"]
BAD_HOSTS = [
    "a/b",
    "a?c",
    "a#c",
    "user@localhost",
    "a,b",
    "a b",
    "localhost:x",
    "a:1:2",
    "[::1",
    "[g]",
    "ü.example",
]


def fault(
    *, method: str = "POST", target: str = "/api/chat", version: HttpVersion = HttpVersion11, **fields: str
) -> object:
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return fault_of(method, target, version, named, 1 if "transfer_encoding" in fields else 0)


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_a_host_is_a_name_or_an_address_and_a_port(host: str) -> None:
    assert fault(host=host) is None


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_what_is_no_host_closes_the_connection(host: str) -> None:
    told = fault(host=host)

    assert isinstance(told, BrokenFraming)
    assert told.closes


@pytest.mark.parametrize("coding", ["chunked", "Chunked", " chunked "])
def test_chunked_is_the_one_coding_that_is_read(coding: str) -> None:
    assert fault(transfer_encoding=coding) is None


@pytest.mark.parametrize("coding", ["gzip, chunked", "identity", "xchunked", "chunked, chunked"])
def test_other_codings_are_not_guessed_at(coding: str) -> None:
    told = fault(transfer_encoding=coding)

    assert isinstance(told, BrokenFraming)
    assert told.closes


def test_codings_that_say_nothing_or_say_it_twice_or_to_the_wrong_version_are_broken() -> None:
    assert isinstance(fault(transfer_encoding=""), BrokenFraming)
    assert isinstance(fault(transfer_encoding="chunked", version=HttpVersion10), BrokenFraming)
    two = fault_of("POST", "/", HttpVersion11, {"transfer-encoding": "chunked"}, 2)
    assert isinstance(two, BrokenFraming)


@pytest.mark.parametrize(("major", "minor"), [(2, 0), (0, 9), (1, 2), (3, 0)])
def test_other_versions_are_not_spoken(major: int, minor: int) -> None:
    assert isinstance(fault(version=HttpVersion(major, minor)), BrokenFraming)


def test_only_one_expectation_is_met() -> None:
    assert fault(expect="100-Continue") is None
    told = fault(expect="x")
    assert isinstance(told, UnknownExpectation)
    assert (told.status, told.closes) == (417, True)


def test_there_is_no_tunnel() -> None:
    told = fault(method="CONNECT", target="localhost:80")

    assert isinstance(told, MethodNotAllowed)
    assert told.closes
    assert not MethodNotAllowed("", allow=()).closes


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://box/api/tags", "box"),
        ("http://BOX:80/api/tags", "box"),
        ("https://box/", "box:443"),
        ("http://box?x", "box"),
    ],
)
def test_a_target_may_name_the_host_again(target: str, host: str) -> None:
    assert fault(target=target, host=host) is None


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://evil.example/", "localhost"),
        ("http://localhost:81/", "localhost"),
        ("http://user@localhost/", "localhost"),
        ("http:///x", "localhost"),
    ],
)
def test_a_target_names_no_other_host(target: str, host: str) -> None:
    assert isinstance(fault(target=target, host=host), BrokenFraming)


def test_an_error_is_told_once_and_not_kept() -> None:
    told = fault(host="a b")

    assert fault(host="a b") is not told
