"""All fuzz targets, by their names."""

from __future__ import annotations

from tests.fuzz.answers import ANSWER_TARGETS
from tests.fuzz.configurations import SETTINGS_TARGETS
from tests.fuzz.connections import CONNECTIONS
from tests.fuzz.operations import OPERATION_TARGETS
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    each.name: each for each in (*OPERATION_TARGETS, *ANSWER_TARGETS, CONNECTIONS, *SETTINGS_TARGETS)
}
