"""What a run was computed with, in full: packages, processor, GPUs, driver, and the code's uncommitted changes.

No secrets here: never environment variables, and no credentials in a diff's addresses.
"""

import os
import platform
import socket
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.redact import redact
from pipeline.track.identity import device_name, git_output, git_state

_LONGEST_DIFF = 5_000_000  # characters


def describe() -> dict[str, Any]:
    """Return the environment as plain values for JSON; memory in bytes."""
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": {
            "model": device_name(torch.device("cpu")),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)),
            "memory": psutil.virtual_memory().total,
        },
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())],
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "packages": dict(sorted({d.name.lower(): d.version for d in distributions() if d.name}.items())),
    }


def _gpu(index: int) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(index)
    return {"name": found.name, "memory": found.total_memory, "capability": f"{found.major}.{found.minor}"}


def driver() -> str | None:
    """Return the version of NVIDIA's driver, None without one."""
    with suppress(OSError):
        for word in Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split():
            if word[:1].isdigit() and "." in word:
                return word
    return None


def diff(code: Path) -> str | None:
    """Return what separates the code in directory `code` from its commit (as `git diff HEAD`), None if nothing does."""
    if git_state(code).get("git.dirty") != "true":
        return None
    found = git_output(code, "diff", "HEAD", "--no-color", "--no-ext-diff")
    untracked = git_output(code, "ls-files", "--others", "--exclude-standard", "--full-name", ":/")
    text = redact(found or "") + "".join(f"untracked: {name}\n" for name in (untracked or "").splitlines())
    return text[:_LONGEST_DIFF] or None
