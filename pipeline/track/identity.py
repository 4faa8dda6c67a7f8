"""What a run was: the commit, the machine and the versions it was made with, as tags.

No secrets here: never a dump of the environment, and no credentials in what is kept of the command line.
"""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.redact import redact

if TYPE_CHECKING:
    import torch

    from pipeline.world import World

__all__ = ["TAGS", "device_name", "git_output", "git_state", "launched", "new_uid", "redact", "tags", "typed", "versions"]
_CODE = Path(__file__).resolve().parents[1]
_GIT_TIMEOUT_S = 10
TAGS = "PIPELINE_TAGS"
"""Variable with a JSON object of tags that launchers hand down."""


def new_uid() -> str:
    """Return 32 hexadecimal digits that no other run has."""
    return uuid.uuid4().hex


def tags(world: "World", config_digest: str, command: Sequence[str] | None = None) -> dict[str, str]:
    """Return the tags of a run; `command` is the command line (default: this process's)."""
    return {
        **git_state(_CODE),
        **versions(),
        "host": socket.gethostname(),
        "device": device_name(world.device),
        "world_size": str(world.size),
        "config.digest": config_digest,
        "command": redact(shlex.join(typed(sys.argv if command is None else command))),
        **launched(),
    }


def typed(argv: Sequence[str]) -> list[str]:
    """Return a command line as it was typed: what Python calls `.../pipeline/__main__.py` was `python -m pipeline`."""
    program = Path(argv[0])
    return ["python", "-m", program.parent.name, *argv[1:]] if program.name == "__main__.py" else list(argv)


def launched(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the tags that a launcher gave its processes: the job, why it was requeued, the sweep it belongs to."""
    return {str(k): redact(str(v)) for k, v in json.loads(env.get(TAGS, "{}")).items()}


def git_state(directory: Path) -> dict[str, str]:
    """Return `git.commit`, `git.branch` and `git.dirty` of the repository that holds `directory`.

    Nothing outside a repository, in one without a commit, and where the repository ignores the
    directory (code installed into a project's virtual environment is not that project's).
    """
    if git_output(directory, "check-ignore", "--quiet", ".") is not None:
        return {}
    found = git_output(directory, "status", "--porcelain=v2", "--branch")
    head = dict(line[2:].split(" ", 1) for line in (found or "").splitlines() if line.startswith("# branch."))
    if found is None or head.get("branch.oid", "(initial)") == "(initial)":
        return {}
    dirty = any(not line.startswith("#") for line in found.splitlines())
    return {"git.commit": head["branch.oid"], "git.branch": head["branch.head"], "git.dirty": str(dirty).lower()}


def git_output(directory: Path, *arguments: str) -> str | None:
    """Return what git prints, or None if it fails or there is no git."""
    # Optional locks off: asking must not get in the way of a git command that somebody runs at the same time.
    env = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, env=env, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "mlflow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    for package in distributions():
        if package.name.startswith("nvidia-dali-"):
            found["dali"] = package.version
    return found


def device_name(device: "torch.device") -> str:
    """Return the name of the GPU, or of the processor."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        described = ""
    names = [line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
