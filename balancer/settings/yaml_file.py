"""YAML as data, for configuration: mappings, lists, texts, numbers, true, false and null. Stricter than
YAML at large, so that nothing surprising gets in: a key given twice is a fault, tags are, and times and
base-60 numbers stay text (`listen: 10:30` is not 630). Aliases and merge keys work, within bounds on
depth and size that keep a small file from growing into a huge one. Faults name the line.
"""

import re

import yaml

from balancer.settings.faults import WHOLE_FILE, Fault

_DEPTH = 32
_VALUES = 50_000
_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map"))
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,29})\Z")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)\Z")


def read_yaml(text: str, source: str) -> tuple[dict[str, object], list[Fault]]:
    """The top-level mapping of a YAML text, and everything wrong with its form.

    An empty text is an empty mapping. After a syntax error nothing is returned but that fault.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        return {}, [_syntax_fault(error, source)]
    if node is None or (isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULL):
        return {}, []
    if not isinstance(node, yaml.MappingNode):
        problem = f"line {node.start_mark.line + 1}: holds {_noun(node)} at the top"
        return {}, [
            Fault(source, WHOLE_FILE, problem, "a mapping of settings, such as 'listen: 127.0.0.1:11400'")
        ]
    conversion = _Conversion(source)
    try:
        data = conversion.mapping(node, "", 0)
    except _TooLarge as error:
        return {}, [Fault(source, WHOLE_FILE, str(error), f"at most {_VALUES} values, {_DEPTH} levels deep")]
    return data, conversion.faults


class _Loader(yaml.SafeLoader):
    """Composes plain scalars as text, so that their meaning is decided in one place, below."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - overrides the base class's table as PyYAML reads it

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {_DEPTH} levels", problem_mark=self.get_mark()
            )
        node: yaml.Node | None = super().compose_node(parent, index)  # type: ignore[arg-type]
        self._depth -= 1
        return node


class _TooLarge(Exception):
    """Aliases blow the file up, or it refers to itself."""


class _Conversion:
    """Nodes into data, with the faults met on the way."""

    def __init__(self, source: str) -> None:
        self.faults: list[Fault] = []
        self._source = source
        self._count = 0

    def mapping(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, object]:
        """A mapping's data; of a key given twice the first value counts."""
        data: dict[str, object] = {}
        merged: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault(key or WHOLE_FILE, f"line {line}: a key is {_noun(key_node)}", "text as key")
                continue
            name = key_node.value
            path = f"{key}.{name}" if key else name
            value = self._value(value_node, path, depth + 1)
            if name == "<<" and key_node.style is None:
                self._merge(merged, value, line, key or WHOLE_FILE)
            elif name in data:
                self._fault(
                    path, f"line {line}: given a second time (first on line {lines[name]})", "each key once"
                )
            else:
                data[name] = value
                lines[name] = line
        return merged | data

    def _merge(self, merged: dict[str, object], value: object, line: int, key: str) -> None:
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if not isinstance(part, dict):
                self._fault(
                    key, f"line {line}: '<<' names something else than a mapping", "an alias of a mapping"
                )
                return
            for name, each in part.items():
                merged.setdefault(name, each)

    def _value(self, node: yaml.Node, key: str, depth: int) -> object:
        self._count += 1
        if self._count > _VALUES:
            raise _TooLarge(f"holds more than {_VALUES} values, those behind aliases counted each time")
        if depth > _DEPTH:
            raise _TooLarge("refers to itself, or is too deep by its aliases")
        if node.tag not in _TAGS:
            line = node.start_mark.line + 1
            self._fault(
                key, f"line {line}: the tag {node.tag[:60]!r} is not understood", "plain YAML without tags"
            )
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(each, f"{key}[{i}]", depth + 1) for i, each in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return node.value if node.style is not None else plain_value(node.value)

    def _fault(self, key: str, problem: str, allowed: str) -> None:
        self.faults.append(Fault(self._source, key, problem, allowed))


def plain_value(text: str) -> object:
    """What an unquoted YAML scalar means here."""
    if text in _NULL:
        return None
    if text.lower() in _SWITCH:
        return _SWITCH[text.lower()]
    if _WHOLE.match(text):
        return int(text)
    if special := _SPECIAL.match(text):
        return float(special[1] + special[2].lower())
    if _DECIMAL.match(text) and len(text) <= 30 and ("." in text or "e" in text.lower()):
        return float(text)
    return text


def _syntax_fault(error: yaml.YAMLError, source: str) -> Fault:
    allowed = "well-formed YAML"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        problem = (error.problem or error.context or "cannot be understood").replace("\n", " ")
        if "\\t" in problem:
            allowed = "spaces for indentation"
        elif "single document" in (error.context or ""):
            problem, allowed = "a second document begins", "one YAML document in a file"
        return Fault(source, WHOLE_FILE, where + problem, allowed)
    if isinstance(error, yaml.reader.ReaderError):
        problem = f"holds the character U+{error.character:04X} at position {error.position}"
        return Fault(source, WHOLE_FILE, problem, "printable text")
    return Fault(source, WHOLE_FILE, "cannot be understood", allowed)


def _noun(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
