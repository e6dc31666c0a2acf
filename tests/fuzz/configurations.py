"""Fuzz targets of the settings: whatever stands in a file or in the environment, the configuration is
either usable or refused with faults that name their place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, cast

import yaml
from hypothesis import strategies as st

from balancer.settings import Settings, SettingsError, load
from balancer.settings.environment import variable
from balancer.settings.synonyms import INI_KEYS, VARIABLES
from balancer.settings.tree import leaves
from tests.fuzz.target import Target, byte_at, one_line

_CONFIG = Path(__file__).parents[2] / "config"
_SUFFIXES = (".yaml", ".ini", ".env")


class _Text:
    """A file that is not on any disk."""

    def __init__(self, name: str, content: bytes) -> None:
        self._name, self._content = name, content
        self.suffix = PurePosixPath(name).suffix

    def __str__(self) -> str:
        return self._name

    def is_dir(self) -> bool:
        return False

    def open(self, _mode: str) -> BytesIO:
        return BytesIO(self._content)


def examine_file(data: bytes) -> None:
    """Byte 0 chooses the kind of file; the rest is its content."""
    suffix = _SUFFIXES[byte_at(data, 0) % len(_SUFFIXES)]
    file = cast("Path", _Text("balancer" + suffix, data[1:]))
    if suffix == ".env":
        _examine([], {}, file)
    else:
        _examine([file], {}, None)


def examine_environment(data: bytes) -> None:
    """Variables, parted by zero bytes as the kernel has them."""
    pairs = (each.decode("utf-8", "surrogateescape").partition("=") for each in data.split(b"\0"))
    _examine([], {name: value for name, equals, value in pairs if name and equals}, None)


def _examine(files: Sequence[Path], environ: Mapping[str, str], dotenv: Path | None) -> None:
    try:
        settings = load(files, environ=environ, dotenv=dotenv)
    except SettingsError as error:
        faults = error.faults
    else:
        _examine_again(settings)
        return
    assert faults
    for fault in faults:
        assert fault.source in {"environment", *(str(each) for each in (*files, dotenv) if each)}, fault
        assert all((fault.key, fault.problem, fault.allowed)), fault
        assert one_line(str(fault)), fault
        str(fault).encode()


def _examine_again(settings: Settings) -> None:
    """What was understood can be written down, and is understood in the same way."""
    told = yaml.safe_dump(settings.model_dump(mode="json"))
    again = load([cast("Path", _Text("again.yaml", told.encode()))], environ={})
    assert again == settings


# -- inputs

_paths = [path for path, _ in leaves(Settings)]
_keys = st.sampled_from([path[0] for path in _paths]) | st.sampled_from(
    ["keys", "vllm", "x", "<<", "metrics", "orchestration"]
)
_words = st.sampled_from([
    "true", "off", "null", "~", "7GB", "64 MiB", "1e9", "-1", "0", "0x10", "1_000", "10:30", "127.0.0.1:1",
    "[::1]:80", "http://a:1", "https://[::1]", "http://u:p@h", "http://169.254.169.254", "random",
    "WeightedRoundRobin", ".nan", ".inf",
    "\"", "'", "#", "a # b", "[", "{", "[]", "{}", "[1]", '["http://a"]', '{"url": "http://a:1"}',
    '[{"url": 1}]', "é",
    "9" * 40, "1" * 5000, "\u2028", "\x85", "*a", "&a b", "!!int 1", "!x y", "? a", "|",
    ">-", "${HOME}", "\\", "%s",
])  # fmt: skip
_values = _words | st.text(max_size=8) | st.integers().map(str)
_data: st.SearchStrategy[Any] = st.recursive(
    _values | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        _keys
        | st.sampled_from([part for path in _paths for part in path])
        | st.sampled_from(["name", "url", "gpu_id", "port", "models"]),
        inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@st.composite
def _yaml(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return json.dumps(draw(st.dictionaries(_keys, _data, max_size=5))).encode("utf-8", "replace")
    lines = []
    for path in draw(st.lists(st.sampled_from(_paths), max_size=6)):
        for depth, part in enumerate(path[:-1]):
            lines.append("  " * depth + part + ":")
        lines.append(
            "  " * (len(path) - 1) + path[-1] + ":" + draw(st.sampled_from([" ", "", "  "])) + draw(_values)
        )
        lines.extend(
            draw(
                st.lists(st.sampled_from(["- a: 1", "  - b", "", "[balancer]", "---", "<<: *a"]), max_size=1)
            )
        )
    return "\n".join(lines).encode("utf-8", "replace")


@st.composite
def _ini(draw: st.DrawFn) -> bytes:
    lines = [draw(st.sampled_from(["[GPU_LoadBalancing]", "[balancer]", "[limits]", "", "[x]"]))]
    keys = st.sampled_from([*INI_KEYS, "[limits]", "[ a", "listen", "instances", ""])
    signs = st.sampled_from([" = ", "=", ":", " "])
    lines += draw(st.lists(st.builds(lambda *parts: "".join(parts), keys, signs, _values), max_size=6))
    return draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines).encode("utf-8", "replace")


_names = st.sampled_from([variable(path) for path in _paths]) | st.sampled_from(
    [*VARIABLES, "BALANCER_X", "BALANCER_", "BALANCER_PORT", "balancer_listen", "PATH", "BALANCER_LIMITS"]
)
_variables = st.lists(st.tuples(_names, _values | _data.map(json.dumps)), max_size=5)


def _file_seeds() -> Sequence[bytes]:
    kinds = {".yaml": b"\0", ".ini": b"\1", ".example": b"\2"}
    found = [
        each for each in sorted(_CONFIG.iterdir()) if each.suffix in kinds and each.stat().st_size < 4000
    ]
    parts = (_CONFIG / "balancer.yaml").read_text().split("\n\n")
    return [kinds[each.suffix] + each.read_bytes() for each in found] + [
        b"\0" + part.encode() for part in parts
    ]


FILES = Target(
    name="files",
    words=(
        b"[GPU_LoadBalancing]\n",
        b"instances:\n",
        b"- url: http://a:1\n",
        b"<<: *a",
        b"&a ",
        b"limits:\n  ",
    ),
    examine=examine_file,
    inputs=st.one_of(
        _yaml().map(lambda text: b"\0" + text),
        _ini().map(lambda text: b"\1" + text),
        _variables.map(
            lambda pairs: b"\2" + "\n".join("=".join(each) for each in pairs).encode("utf-8", "replace")
        ),
    ),
    seeds=_file_seeds,
)
ENVIRONMENT = Target(
    name="environment",
    words=(b"BALANCER_LISTEN=", b"BALANCER_INSTANCES=[", b"BALANCER_LIMITS__", b"GPU_BATCH_SIZE=", b"\0"),
    examine=examine_environment,
    inputs=_variables.map(
        lambda pairs: "\0".join("=".join(each) for each in pairs).encode("utf-8", "surrogatepass")
    ),
    seeds=lambda: [
        line.lstrip("# ").encode()
        for line in (_CONFIG / ".env.example").read_text().splitlines()
        if "=" in line
    ],
)
SETTINGS_TARGETS = (FILES, ENVIRONMENT)
