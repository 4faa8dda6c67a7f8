"""How many cores this process may use."""

import os


def available() -> int:
    """Return the number of cores that this process may run on: in a job or container often fewer than the machine has."""
    return len(os.sched_getaffinity(0))
