"""`balancer check`: is this configuration valid? Starts nothing."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from balancer.commands.exit_codes import BAD_USAGE, DONE
from balancer.settings import SettingsError, load


def check(files: Sequence[Path], *, as_json: bool) -> int:
    """Name every fault, one a line: `file: key: what is wrong, what is allowed`."""
    try:
        settings = load(files, environ=os.environ, dotenv=Path(".env"))
    except SettingsError as error:
        if as_json:
            faults = [
                {"source": each.source, "key": each.key, "problem": each.problem, "allowed": each.allowed}
                for each in error.faults
            ]
            print(json.dumps({"valid": False, "faults": faults}))
        else:
            print(error)
        return BAD_USAGE
    if as_json:
        print(json.dumps({"valid": True, "faults": []}))
    else:
        print(f"valid: {len(settings.all_instances)} instances, strategy {settings.strategy.value}")
    return DONE
