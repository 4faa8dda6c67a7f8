"""What a job runs, frozen at submission in the run directory: code, configuration, plan, environment, command.

The job imports the copy, so that editing the checkout changes no queued job.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from pipeline.config import Config, to_yaml
from pipeline.errors import TransientError, UsageError
from pipeline.files import write_atomically
from pipeline.redact import redact
from pipeline.retry import may_pass, retry
from pipeline.track.identity import git_state

PATIENCE_S = 60.0
"""Seconds that a job waits for its disk: what it could not write or read would cost a requeue."""
CODE_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("pipeline", "launch")
_KEPT_VARIABLES = ("CUDA_", "NCCL_", "GLOO_", "OMP_", "DALI_", "TORCH_", "SLURM_CONF", "PATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Folder:
    """The folder `launch` in a run directory."""

    run_dir: Path

    @property
    def path(self) -> Path:
        """The folder."""
        return self.run_dir / "launch"

    @property
    def code(self) -> Path:
        """The copy of the code, to stand first on the import path."""
        return self.path / "code"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def jobs(self) -> Path:
        """Logs and what submitit keeps."""
        return self.path / "jobs"

    @property
    def ranks(self) -> Path:
        """Logs of each rank."""
        return self.path / "ranks"

    @property
    def requeues(self) -> Path:
        """One JSON line for each requeue."""
        return self.path / "requeues.jsonl"

    @property
    def submission(self) -> Path:
        """The options and the newest job's id."""
        return self.path / "submission.json"

    def read(self) -> dict[str, Any]:
        """Return the submission.

        Raises:
            UsageError: if there is none that can be read.
            TransientError: if the disk fails for a reason that may pass.
        """
        try:
            found = json.loads(self.submission.read_text(encoding="utf-8"))
            if isinstance(found, dict) and isinstance(found.get("job"), str):
                return found
        except FileNotFoundError as error:
            raise UsageError(f"{self.run_dir}: not a run that was submitted to SLURM; give its run directory") from error
        except (OSError, ValueError) as error:
            kind = TransientError if may_pass(error) else UsageError
            raise kind(f"{self.submission}: can't be read ({error}); restore it, or submit the run anew") from error
        raise UsageError(f"{self.submission}: names no job; restore it, or submit the run anew")

    def write(self, submission: Mapping[str, Any]) -> None:
        """Write the submission, whole or not at all."""
        write_json(self.submission, submission)


def write_json(path: Path, value: Any, wait_s: float = 0.0) -> None:
    """Write a value as JSON, whole or not at all; a disk that fails for a while is tried again for `wait_s`.

    Raises:
        UsageError: if the file can't be written.
        TransientError: if it could not for `wait_s`, for a reason that may pass.
    """
    write_patiently(path, json.dumps(value, indent=2) + "\n", wait_s)


def write_patiently(path: Path, text: str, wait_s: float = PATIENCE_S) -> None:
    """Write a file, whole or not at all, as `write_json` does.

    Raises:
        PipelineError: as `write_json` does.
    """
    try:
        retry(lambda: write_atomically(path, lambda p: p.write_text(text, encoding="utf-8")), wait_s, say=_warn)
    except UsageError as error:
        if wait_s and may_pass(error):
            raise TransientError(str(error)) from error
        raise


def _warn(error: Exception) -> None:
    print(f"warning: {error}; trying again", file=sys.stderr, flush=True)


def take(cfg: Config, run_dir: Path, plan: Mapping[str, Any] | None, command: Sequence[str]) -> Folder:
    """Write the snapshot of a run, in place of an earlier one.

    Raises:
        UsageError: if it can't be written.
    """
    folder = Folder(run_dir)
    try:
        copy_code(folder)
        folder.config.write_text(to_yaml(cfg), encoding="utf-8")
        write_json(folder.path / "plan.json", plan)
        write_json(folder.path / "environment.json", environment())
        (folder.path / "command.txt").write_text(redact(shlex.join(command)) + "\n", encoding="utf-8")
        (folder.path / "code.diff").write_text(_diff(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder.path}: can't write the snapshot: {error.strerror}; choose another run.dir") from error
    return folder


def copy_code(folder: Folder) -> None:
    """Copy the packages as they are now, in place of an earlier copy.

    Raises:
        OSError: if they can't be written.
    """
    shutil.rmtree(folder.code, ignore_errors=True)
    for package in _PACKAGES:
        shutil.copytree(CODE_ROOT / package, folder.code / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def environment() -> dict[str, Any]:
    """Return interpreter, package versions and the variables that decide how processes talk; no secrets."""
    kept = {k: redact(v) for k, v in sorted(os.environ.items()) if k.startswith(_KEPT_VARIABLES)}
    return {
        "time": time.time(),
        "python": sys.executable,
        "version": sys.version.split()[0],
        "packages": {d.name: d.version for d in sorted(distributions(), key=lambda d: d.name.lower())},
        "variables": kept,
        **git_state(CODE_ROOT),
    }


def tags() -> dict[str, str]:
    """Return the tags of the code that a snapshot can't tell by itself: it is no repository."""
    return git_state(CODE_ROOT)


def _diff() -> str:
    """Return what the copied code has over the commit, for people; empty outside a repository."""
    command = ["git", "-C", str(CODE_ROOT), "diff", "HEAD", "--", *_PACKAGES]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
