"""INI as data: sections of `key = value` lines with `#` and `;` comments, also behind a value. Own and
small rather than the standard library's, which stops at the first fault, joins indented lines to the
value above and gives `%` a meaning. Section and key names are compared without regard to case.
"""

import re
from dataclasses import dataclass

from balancer.settings.faults import WHOLE_FILE, Fault
from balancer.settings.values import shown

_COMMENT = re.compile(r"\s[#;].*\Z")


@dataclass(frozen=True, slots=True)
class Assignment:
    """One `key = value` line of a section."""

    section: str
    key: str
    text: str
    line: int


def read_ini(text: str, source: str) -> tuple[list[Assignment], list[Fault]]:
    """All assignments of an INI text in order, and everything wrong with its form."""
    assignments: list[Assignment] = []
    faults: list[Fault] = []
    lines: dict[tuple[str, str], int] = {}
    section: str | None = None
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            name, bracket, rest = line[1:].partition("]")
            section = name.strip()
            if not bracket or not section or unquoted(rest):
                problem = f"line {number}: {shown(line)} is not a section"
                faults.append(
                    Fault(source, WHOLE_FILE, problem, "a name in brackets, such as [GPU_LoadBalancing]")
                )
            continue
        key, equals, value = line.partition("=")
        key = key.strip()
        if not equals or not key:
            faults.append(
                Fault(source, WHOLE_FILE, f"line {number}: {shown(line)} is no setting", "key = value")
            )
        elif section is None:
            problem = f"line {number}: stands outside of a section"
            faults.append(Fault(source, key, problem, "a section above it, such as [GPU_LoadBalancing]"))
        elif first := lines.get((section.lower(), key.lower())):
            problem = f"line {number}: given a second time (first on line {first})"
            faults.append(Fault(source, f"{section}.{key}", problem, "each key once"))
        else:
            lines[section.lower(), key.lower()] = number
            assignments.append(Assignment(section, key, unquoted(value), number))
    return assignments, faults


def unquoted(text: str) -> str:
    """A value as meant: without the comment behind it, and without quotes around it."""
    text = text.strip()
    if text[:1] in ("'", '"'):
        end = text.find(text[0], 1)
        if end > 0 and re.match(r"\s*([#;].*)?\Z", text[end + 1 :]):
            return text[1:end]
    if text.startswith(("#", ";")):
        return ""
    return _COMMENT.sub("", text)
