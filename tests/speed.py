"""Promises in seconds are made for one processor; on a slower one they are as much longer as it is slower."""

import json
import os
import time
from functools import cache

HANGS = 900.0
"""Seconds after which a process that a test waits for is taken to hang, however busy the machine. No promise."""

REFERENCE = 0.075
"""CPU seconds of ``_work`` on the core for which the promises are made."""


def here(seconds: float) -> float:
    """So many CPU seconds of the core that a promise is made for, on this one."""
    return seconds * max(1.0, _measured() / REFERENCE)


def wall(seconds: float) -> float:
    """The same by the clock, where other processes want the cores too."""
    return here(seconds) * (1 + os.getloadavg()[0] / (os.cpu_count() or 1))


@cache
def _measured() -> float:
    times = []
    for _ in range(5):
        began = time.process_time()
        _work()
        times.append(time.process_time() - began)
    return min(times)


def _work() -> None:
    """What commands spend their time on, without their imports: small objects, to text and back."""
    found = {}
    for number in range(20_000):
        text = json.dumps({"width": number, "names": [str(number), "x"], "share": number / 7})
        found[f"name-{number % 97}"] = json.loads(text)
