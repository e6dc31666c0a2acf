"""The kept inputs: for each target one file with an input a line, written as Python writes bytes.

They are small inputs that reach what others do not, and every input that once broke a promise.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
LIMIT_BYTES = 24_000
"""Of the file of one target, in what atheris found; inputs that broke a promise are kept beyond it."""


def kept(name: str) -> list[bytes]:
    """The inputs kept for a target."""
    file = FOLDER / f"{name}.txt"
    return [ast.literal_eval(line) for line in file.read_text().split("\n") if line] if file.exists() else []


def add(name: str, inputs: Iterable[bytes]) -> None:
    """Keep further inputs."""
    _write(name, [*kept(name), *inputs])


def fill(name: str, found: Iterable[bytes]) -> None:
    """Keep of what was found as much as there is room for, the smallest first."""
    inputs = kept(name)
    size = sum(len(ascii(each)) + 1 for each in inputs)
    for each in sorted(set(found) - set(inputs), key=lambda each: (len(ascii(each)), each)):
        size += len(ascii(each)) + 1
        if size > LIMIT_BYTES:
            break
        inputs.append(each)
    _write(name, inputs)


def _write(name: str, inputs: Iterable[bytes]) -> None:
    lines = [ascii(each) for each in dict.fromkeys(inputs)]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
