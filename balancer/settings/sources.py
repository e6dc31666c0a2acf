"""Where settings come from, and which source wins: command line, environment, later file, earlier file,
default. Files hold YAML, the INI section [GPU_LoadBalancing], or both; mappings merge, lists are
replaced. `load` is the one entry: it gives a complete `Settings`, or names everything wrong with all
of the sources at once.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from types import MappingProxyType

from balancer.settings import environment
from balancer.settings.faults import Fault, SettingsError, unknown
from balancer.settings.ini_file import read_ini
from balancer.settings.layers import Layer, flatten, from_text, judged
from balancer.settings.rules import Origins, broken_rules
from balancer.settings.schema import Settings
from balancer.settings.synonyms import INI_KEYS, INI_SECTION, FileSettings, under_own_names
from balancer.settings.text_file import MISSING, read_text, source_of
from balancer.settings.tree import Entry, Path, group_of, leaves, nest
from balancer.settings.yaml_file import read_yaml

COMMAND_LINE = "command line"
OWN_SECTION = "balancer"
_INI_SUFFIXES = frozenset((".ini", ".conf", ".cfg"))
_SECTION = re.compile(r"\[[A-Za-z][A-Za-z0-9_. -]*\]\s*([#;].*)?\Z")
_YAML_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*:(\s|\Z)")


def load(
    files: Sequence[FilePath],
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] = MappingProxyType({}),
    dotenv: FilePath | None = None,
) -> Settings:
    """The configuration of all sources together.

    `overrides` are the command line's: nested like the YAML, or with dots in the keys; None means not
    given. A `dotenv` that does not exist is ignored. Reads the files and blocks while doing so.

    Raises:
        SettingsError: something is wrong; it names every fault of every source.
    """
    layers = [
        *(_file_layer(path) for path in files),
        *_environment_layers(environ, dotenv),
        judged(_command_line(overrides), Settings),
    ]
    entries, broken = _merged(layers)
    settings = Settings.model_validate(nest(entries.values()))
    faults = [fault for layer in layers for fault in layer.faults]
    faults += broken_rules(settings, Origins(entries, broken))
    if faults:
        raise SettingsError(list(dict.fromkeys(faults)))
    return settings


def _merged(layers: Sequence[Layer]) -> tuple[dict[Path, Entry], frozenset[Path]]:
    """The winning entry of each path, and the paths whose winning value was refused."""
    entries: dict[Path, Entry] = {}
    broken: set[Path] = set()
    for layer in layers:
        broken |= layer.broken
        for entry in layer.entries:
            entries[entry.path] = entry
            broken.discard(entry.path)
    return entries, frozenset(broken)


def _environment_layers(environ: Mapping[str, str], dotenv: FilePath | None) -> list[Layer]:
    """Own names over synonyms, and within each kind the real environment over the `.env` file."""
    written: dict[str, str] = {}
    faults: list[Fault] = []
    source = source_of(dotenv) if dotenv else ""
    text = "" if dotenv is None else read_text(dotenv, "YAML or INI")
    if isinstance(text, str):
        written, faults = environment.read_dotenv(text, source)
    elif text.problem != MISSING:
        faults.append(text)
    return [
        Layer(faults=tuple(faults)),
        environment.synonym_layer(written, source),
        environment.synonym_layer(environ, environment.ENVIRONMENT),
        environment.own_layer(written, source),
        environment.own_layer(environ, environment.ENVIRONMENT),
    ]


def _command_line(overrides: Mapping[str, object]) -> Iterator[Entry | Fault]:
    for key, value in overrides.items():
        if value is None:
            continue
        nested: object = value
        first, *rest = key.split(".")
        for part in reversed(rest):
            nested = {part: nested}
        yield from flatten({first: nested}, Settings, COMMAND_LINE)


def _file_layer(path: FilePath) -> Layer:
    source = source_of(path)
    text = read_text(path, "YAML or INI")
    if isinstance(text, Fault):
        return Layer(faults=(text,))
    ini, yaml = _dialects(text, starts_with_ini=path.suffix.lower() in _INI_SUFFIXES)
    data, faults = read_yaml(yaml, source)
    found = [*_ini_entries(ini, source), *faults, *flatten(data, FileSettings, source)]
    return under_own_names(judged(found, FileSettings))


def _dialects(text: str, *, starts_with_ini: bool) -> tuple[str, str]:
    """The INI and the YAML lines of a text, each with the other's lines blank, so that line numbers hold.

    A section header in the first column begins INI, a key with a colon there begins YAML.
    """
    ini_lines: list[str] = []
    yaml_lines: list[str] = []
    in_ini = starts_with_ini
    for line in text.split("\n"):
        if _SECTION.match(line):
            in_ini = True
        elif in_ini and _YAML_KEY.match(line):
            in_ini = False
        ini_lines.append(line if in_ini else "")
        yaml_lines.append("" if in_ini else line)
    return "\n".join(ini_lines), "\n".join(yaml_lines)


def _ini_entries(text: str, source: str) -> Iterator[Entry | Fault]:
    """The entries of INI sections: [GPU_LoadBalancing], [balancer] for top-level settings, groups by path."""
    assignments, faults = read_ini(text, source)
    yield from faults
    sections = _sections()
    for each in assignments:
        keys = sections.get(each.section.lower())
        label = f"{each.section}.{each.key}"
        if keys is None:
            yield Fault(source, label, *_unknown_section(each.section))
        elif (path := keys.get(each.key.lower())) is None:
            names = INI_KEYS if each.section.lower() == INI_SECTION.lower() else keys
            yield Fault(source, label, *unknown(each.key, names))
        elif not each.text:
            yield Fault(source, label, f"line {each.line}: has no value", "key = value")
        else:
            yield from from_text(each.text, Settings, path, source, label)


def _unknown_section(section: str) -> tuple[str, str]:
    names = [
        INI_SECTION,
        OWN_SECTION,
        *(name for name, field in Settings.model_fields.items() if group_of(field)),
    ]
    _, allowed = unknown(section, names)
    return f"unknown section [{section[:60]}]", allowed


def _sections() -> dict[str, dict[str, Path]]:
    """By section and key in lower case, the path of each setting that INI can hold."""
    sections: dict[str, dict[str, Path]] = {
        INI_SECTION.lower(): {key.lower(): path for key, path in INI_KEYS.items()}
    }
    for path, _ in leaves(Settings):
        section = ".".join(path[:-1]) or OWN_SECTION
        sections.setdefault(section, {})[path[-1]] = path
    return sections
