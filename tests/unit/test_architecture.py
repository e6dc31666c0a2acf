"""What holds of the house as a whole: its floors, its locks, its modules."""

import ast
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import aiohttp.http_parser
import aiohttp.http_writer
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import balancer

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECLARED = [Requirement(each) for each in PROJECT["project"]["dependencies"]]
DEVELOPMENT = [Requirement(each) for each in PROJECT["dependency-groups"]["dev"]]
MODULES = sorted(Path(balancer.__path__[0]).rglob("*.py"))
FUZZING = [Requirement(each) for each in PROJECT["dependency-groups"]["fuzz"]]
LOCKS = ["requirements.lock", "requirements-dev.lock", "requirements-fuzz.lock"]
SECURITY_FLOOR = Version("3.14.3")


def locked(name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Every requirement of a lock with its hashes."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        assert not line.startswith("-"), f"{name}: an option among the requirements: {line[:60]}"
        requirement = Requirement(re.sub(r"--hash=\S+|\s#.*", "", line).strip())
        found[canonicalize_name(requirement.name)] = (requirement, re.findall(r"--hash=(\S+)", line))
    return found


def pinned(name: str, package: str) -> Version:
    requirement, _ = locked(name)[canonicalize_name(package)]
    (pin,) = requirement.specifier
    assert pin.operator == "=="
    return Version(pin.version)


def test_aiohttp_is_declared_installed_and_locked_at_or_above_its_security_floor() -> None:
    (declared,) = [each for each in DECLARED if each.name == "aiohttp"]
    below = [
        f"3.{minor}.{patch}"
        for minor in range(15)
        for patch in range(30)
        if Version(f"3.{minor}.{patch}") < SECURITY_FLOOR
    ]

    assert [each for each in below if each in declared.specifier] == []
    assert Version(version("aiohttp")) >= SECURITY_FLOOR
    assert all(pinned(lock, "aiohttp") >= SECURITY_FLOOR for lock in LOCKS)


def test_the_parser_of_aiohttp_is_the_compiled_one() -> None:
    assert aiohttp.http_parser.HttpRequestParser is not aiohttp.http_parser.HttpRequestParserPy
    assert "_http_parser" in aiohttp.http_parser.HttpRequestParser.__module__


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_requirement_has_a_pin_and_hashes_and_no_address(lock: str) -> None:
    assert len(locked(lock)) > 20
    assert "://" not in (ROOT / lock).read_text()
    for requirement, hashes in locked(lock).values():
        assert [each.operator for each in requirement.specifier] == ["=="], requirement
        assert requirement.url is None
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes)


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        ("requirements.lock", DECLARED),
        ("requirements-dev.lock", [*DECLARED, *DEVELOPMENT]),
        ("requirements-fuzz.lock", [*DECLARED, *FUZZING]),
    ],
)
def test_what_is_locked_satisfies_what_is_declared(lock: str, requirements: list[Requirement]) -> None:
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate():
            assert pinned(lock, requirement.name) in requirement.specifier, requirement


@pytest.mark.parametrize("lock", LOCKS[1:])
def test_all_locks_pin_the_same_versions(lock: str) -> None:
    other = locked(lock)

    assert {
        name: requirement
        for name, (requirement, _) in locked("requirements.lock").items()
        if str(other[name][0].specifier) != str(requirement.specifier)
    } == {}


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda each: each.name)
def test_what_is_installed_satisfies_what_is_declared(requirement: Requirement) -> None:
    if requirement.marker is None or requirement.marker.evaluate():
        assert version(requirement.name) in requirement.specifier


def test_the_version_told_is_the_version_packaged() -> None:
    assert PROJECT["project"]["version"] == balancer.__version__


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_lives_there(path: Path) -> None:
    told = ast.get_docstring(ast.parse(path.read_text()))

    assert told
    assert len(told.split()) >= 3


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_too_long_to_be_read_at_once(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_every_folder_of_the_house_is_a_package() -> None:
    assert [
        str(each) for each in {path.parent for path in MODULES} if not (each / "__init__.py").exists()
    ] == []
