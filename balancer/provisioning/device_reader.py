"""The child process that asks the driver: `python -m balancer.provisioning.device_reader`.

It answers each line on its standard input, `detect` or `read`, with one `Answer` as a line of JSON on its
standard output, and writes nothing else there. It ends when its input does, even in the middle of a
call. `provisioning.devices` starts and ends it.
"""

import os
import sys
from queue import SimpleQueue
from threading import Thread

import msgspec

from balancer.core.detection import Detection
from balancer.provisioning import nvml
from balancer.provisioning.cuda_visible import ORDER, VISIBLE
from balancer.provisioning.device_answer import DETECT, Answer
from balancer.provisioning.other_gpus import other_gpus


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the library may print is no answer
    asked: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(asked,), daemon=True).start()
    readings: nvml.Readings | None = None
    while True:
        if asked.get() == DETECT:
            answer = Answer(detection=_detect())
        else:
            try:
                readings = readings or nvml.Readings(nvml.LIBRARY)
                answer = Answer(readings=readings.read())
            except nvml.LIBRARY.NVMLError as error:
                answer = Answer(problem=f"the NVIDIA driver answers: {error}")
        answers.write(msgspec.json.encode(answer) + b"\n")


def _listen(asked: SimpleQueue[bytes]) -> None:
    """Beside the calls, one of which may never come back."""
    for line in sys.stdin.buffer:
        asked.put(line.strip())
    os._exit(0)


def _detect() -> Detection:
    detection = nvml.detect(nvml.LIBRARY, told=os.environ.get(VISIBLE), order=os.environ.get(ORDER))
    others = other_gpus(nvidia_found=detection.driver is not None)
    return msgspec.structs.replace(detection, notes=detection.notes + others)


if __name__ == "__main__":
    main()
