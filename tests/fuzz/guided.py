"""`python -m tests.fuzz.guided NAME FOLDER OPTION…`: one target under atheris, until something is found.

FOLDER holds what is found on the way; the options are libFuzzer's. A process of its own, since atheris
follows only what is imported after it, and does not return.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

_FOLLOWED = ["balancer"]


def main() -> None:
    name, folder, *options = sys.argv[1:]
    with atheris.instrument_imports(include=_FOLLOWED):
        from tests.fuzz.targets import TARGETS
    logging.disable()
    target = TARGETS[name]
    words = Path(folder).with_suffix(".words")
    words.write_text("".join(f'"{_escaped(each)}"\n' for each in target.words))
    atheris.Setup([sys.argv[0], *options, f"-dict={words}", folder], target.examine)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(chr(each) if 0x30 <= each < 0x7B and each != 0x5C else f"\\x{each:02x}" for each in word)


if __name__ == "__main__":
    main()
