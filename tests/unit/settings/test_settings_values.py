"""The value types: what each takes, the form it is brought to, and what it refuses."""

import pytest
from pydantic_core import PydanticCustomError

from balancer.core.plan import Runtime
from balancer.settings.values import (
    Address,
    RuntimeName,
    Strategy,
    parse_address,
    parse_model,
    parse_name,
    parse_origin,
    parse_size,
    parse_strategy,
    parse_url,
    shown,
)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:11400", "127.0.0.1", 11400),
        ("localhost:0", "localhost", 0),
        ("[::1]:80", "::1", 80),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
        (" box_1.lan:9 ", "box_1.lan", 9),
    ],
)
def test_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert Address(host, port) == parse_address(text)


def test_address_writes_itself_as_it_is_read() -> None:
    for text in ("127.0.0.1:1", "[::1]:2", "name:3"):
        assert text == str(parse_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "127.0.0.1",
        "host:",
        "host:x",
        "host:70000",
        "host:-1",
        "::1:80",
        "[::1:80",
        "[a]:1",
        "a b:1",
        "256.1.1.1:80",
        "1:2",
        "http://a:1",
        "host:²",
        "[127.0.0.1]:80",
        80,
        None,
        ["a:1"],
    ],
)
def test_what_is_no_address_is_refused(text: object) -> None:
    with pytest.raises(PydanticCustomError):
        parse_address(text)


def test_only_loopback_counts_as_loopback() -> None:
    assert all(
        parse_address(f"{host}:1").loopback for host in ("127.0.0.1", "127.9.9.9", "localhost", "[::1]")
    )
    assert not any(parse_address(f"{host}:1").loopback for host in ("0.0.0.0", "[::]", "10.0.0.1", "box"))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://a:11434", "http://a:11434"),
        ("HTTP://GPU.Lan:1/", "http://gpu.lan:1"),
        ("http://a", "http://a:80"),
        ("https://a", "https://a:443"),
        ("http://[::1]:5", "http://[::1]:5"),
        ("http://[0:0::1]:5", "http://[::1]:5"),
        ("http://10.0.0.1:5", "http://10.0.0.1:5"),
    ],
)
def test_url_is_brought_to_one_form(text: str, url: str) -> None:
    assert url == parse_url(text)
    assert url == parse_url(url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a:11434",
        "ftp://a",
        "unix:///x",
        "file:///etc/passwd",
        "http://",
        "http:///x",
        "http://a/x",
        "http://a//",
        "http://a?x",
        "http://a#x",
        "http://a/?",
        "http://u:p@a",
        "http://a:0",
        "http://a:65536",
        "http://a:x",
        "http://a:",
        "http://a b",
        "http://a\n",
        "http://a\\b",
        "http://ä",
        "http://[::1",
        "http://%61",
        "http://169.254.169.254",
        "http://[fe80::1]:1",
        "http://[fd00:ec2::254]",
        "http://[::ffff:169.254.1.1]",
        "http://2852039166",
        "http://0xA9FEA9FE",
        "http://0251.0376.0251.0376",
        "http://169.254.43518",
        "http://224.0.0.1",
        "http://1.2.3.4.",
        "http://-a",
        7,
        None,
        {"a": 1},
    ],
)
def test_dangerous_or_broken_url_is_refused(text: object) -> None:
    with pytest.raises(PydanticCustomError):
        parse_url(text)


def test_refused_url_never_shows_its_password() -> None:
    with pytest.raises(PydanticCustomError) as caught:
        parse_url("ftp://user:hunter2@a/path?x")
    assert "hunter2" not in caught.value.message()


def test_origin_is_what_a_browser_sends() -> None:
    assert parse_origin("HTTPS://A.example:443") == "https://a.example"
    assert parse_origin("http://localhost:3000") == "http://localhost:3000"
    assert parse_origin("app://obsidian.md") == "app://obsidian.md"
    for text in ("*", "null", "https://a/", "a.example", "https://u@a"):
        with pytest.raises(PydanticCustomError):
            parse_origin(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (5, 5),
        ("5", 5),
        ("7GB", 7 * 10**9),
        ("7 gb", 7 * 10**9),
        ("7GiB", 7 * 2**30),
        ("1.5GiB", 3 * 2**29),
        ("0.1kB", 100),
        ("64 MiB", 64 * 2**20),
        ("2TB", 2 * 10**12),
        ("12B", 12),
    ],
)
def test_size_knows_powers_of_1000_and_of_1024(text: object, size: int) -> None:
    assert size == parse_size(text)


@pytest.mark.parametrize("text", ["", "GB", "7XB", "7.5", "-1GB", "1e9", "7G B", True, 1.5, None, "9" * 50])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(PydanticCustomError):
        parse_size(text)


@pytest.mark.parametrize(
    "text", ["weighted_round_robin", "WeightedRoundRobin", "weighted-round-robin", "WEIGHTEDROUNDROBIN"]
)
def test_strategy_is_taken_in_either_spelling(text: str) -> None:
    assert Strategy.WEIGHTED_ROUND_ROBIN is parse_strategy(text)


def test_unknown_strategy_is_answered_with_all_known_ones() -> None:
    with pytest.raises(PydanticCustomError) as caught:
        parse_strategy("clairvoyant")
    assert all(name in caught.value.message() for name in Strategy)


def test_name_fits_a_header_and_a_path() -> None:
    for name in ("RTX 3060 Ti", "a", "gpu0:11434", "x" * 64):
        assert name == parse_name(name)
    assert parse_name(0) == "0"
    for bad in ("", " a", "a ", "a/b", "ä", "a\n", "x" * 65, True, None):
        with pytest.raises(PydanticCustomError):
            parse_name(bad)


def test_model_name_holds_no_blanks() -> None:
    assert parse_model("hf.co/a/b:Q4_K_M") == "hf.co/a/b:Q4_K_M"
    for bad in ("", "a b", "a\0", "x" * 513, 3, None):
        with pytest.raises(PydanticCustomError):
            parse_model(bad)


def test_quoted_values_stay_on_one_short_line() -> None:
    for value in ("a\nb", "x" * 1000, "\ud800", "\x1b[31m", {"a": 1}, [1], None, True, 1.5):
        assert shown(value).isprintable()
        assert len(shown(value)) < 400


def test_every_runtime_can_be_named_and_no_other() -> None:
    assert [each.value for each in Runtime] == [each.value for each in RuntimeName]
