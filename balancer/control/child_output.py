"""What managed instances write, as events of the log: lines that tell of an error as warnings, all others
at debug level. How many there may be a second is the keeper's business."""

import re
from collections.abc import Sequence

from balancer.core.ticket import InstanceId
from balancer.telemetry.logs import Logger

_ERROR = re.compile(
    r"level=(?:ERROR|WARN)|\b(?:error|panic|fatal|out of memory)\b|GGML_ASSERT", re.IGNORECASE
)
"""Source: Ollama v0.33 llm/status.go, and the levels of its log."""


def log_output(log: Logger, instance: InstanceId, lines: Sequence[str], lost: int) -> None:
    """Log what an instance wrote, and how much more it wrote that cannot be told."""
    for line in lines:
        tell = log.warning if _ERROR.search(line) else log.debug
        tell("instance_output", instance=instance, text=line)
    if lost:
        log.debug("instance_output_lost", instance=instance, lines=lost)
