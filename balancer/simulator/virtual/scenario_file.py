"""Scenarios by name or file. Faults are told as those of the configuration are, with the same machinery."""

from importlib.resources import files
from pathlib import Path

import msgspec

from balancer.settings.faults import WHOLE_FILE, Fault, SettingsError
from balancer.settings.layers import flatten, judged, missing
from balancer.settings.scenario import Scenario
from balancer.settings.text_file import MISSING, read_text, source_of
from balancer.settings.tree import nest
from balancer.settings.yaml_file import read_yaml
from balancer.simulator.virtual.scenario_rules import broken_rules

_FOLDER = Path(str(files("balancer.simulator") / "scenarios"))


class Seeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The seeds of the standard table: those to tune by, and those held out for what is published."""

    tuning: tuple[int, ...]
    held_out: tuple[int, ...]


def standard_scenarios() -> tuple[str, ...]:
    """The names of the scenarios that come with the balancer."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def standard_seeds() -> Seeds:
    """The seeds that come with them."""
    return msgspec.json.decode((_FOLDER / "seeds.json").read_bytes(), type=Seeds)


def load_scenario(what: str | Path) -> Scenario:
    """The standard scenario of that name, else that of a YAML file. Blocks while it reads.

    Raises:
        SettingsError: it cannot be used; it names every fault of single settings, or where those are sound
            every rule between settings that is broken.
    """
    path = _FOLDER / f"{what}.yaml" if str(what) in standard_scenarios() else Path(what)
    source = str(what) if path != Path(what) else source_of(path)
    text = read_text(path, "YAML")
    if isinstance(text, Fault):
        raise SettingsError([_with_names(text)])
    data, broken = read_yaml(text, source)
    layer = judged([*broken, *flatten(data, Scenario, source)], Scenario)
    faults = list(layer.faults)
    if not any(fault.key == WHOLE_FILE for fault in faults):
        faults += missing(layer, Scenario, source)
    if faults:
        raise SettingsError(list(dict.fromkeys(faults)))
    return checked(Scenario.model_validate(nest(layer.entries)), source)


def checked(scenario: Scenario, source: str) -> Scenario:
    """The scenario, where no rule between its settings is broken. For one that was changed after it was read;
    `source` is who changed it, as a fault names it.

    Raises:
        SettingsError: it names every broken rule.
    """
    faults = [Fault(source, *broken) for broken in broken_rules(scenario)]
    if faults:
        raise SettingsError(faults)
    return scenario


def _with_names(fault: Fault) -> Fault:
    """What is allowed instead of a file that is not there includes the standard scenarios."""
    if fault.problem != MISSING:
        return fault
    allowed = f"{fault.allowed}, or one of {', '.join(standard_scenarios())}"
    return Fault(fault.source, fault.key, fault.problem, allowed)
