"""What the batch script does when its tasks have ended: requeue the job, or let it end, and put down why.

It runs in the batch shell after srun, so that it is there when a task or its node is not.
"""

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch import scontrol
from launch.snapshot import PATIENCE_S, Folder, write_json, write_patiently
from pipeline.errors import PipelineError, Stopped, TransientError
from pipeline.retry import retry
from pipeline.train import failure
from pipeline.train.rundir import CHECKPOINTS

_OUTCOME = "outcome.json"
_BACK = (Stopped.exit_code, TransientError.exit_code)
_CHECKPOINT = re.compile(r"step-(\d+)\.pt")
MEMBERS = "members.json"


def attempt(env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return which job this is, and how often it has been requeued."""
    return {"job": env.get("SLURM_JOB_ID", ""), "restart": int(env.get("SLURM_RESTART_COUNT", "0"))}


def own_id(env: Mapping[str, str] = os.environ) -> str:
    """Return the id by which SLURM's commands know this job, and no other member of its array.

    The last member of an array has the plain id of the whole.
    """
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID", "")


def note(folder: Folder, code: int, reason: str) -> None:
    """Leave word of how the training ended, for the batch script: exit codes of tasks would kill their neighbours.

    Trouble that may pass never goes over what another task has said, which may be its cause.

    Raises:
        PipelineError: if it can't be written.
    """
    if code == TransientError.exit_code and _word(folder):
        return
    write_json(folder.path / _OUTCOME, attempt() | {"code": code, "reason": reason}, PATIENCE_S)


def append(folder: Folder, reason: str, ended: int) -> None:
    """Put down in the run's record that the job comes back after its start number `ended`; failing costs a warning."""
    about = {"reason": reason, "nodes": os.environ.get("SLURM_JOB_NODELIST"), "ended": ended, "step": saved_step(folder)}
    line = json.dumps({"t": round(time.time(), 3)} | attempt() | about)
    try:
        before = retry(lambda: _lines(folder), PATIENCE_S)
        write_patiently(folder.requeues, "".join(f"{one}\n" for one in [*before, line]))
    except (PipelineError, OSError) as error:
        print(f"warning: {error}; the requeue goes on without a record", file=sys.stderr, flush=True)


def saved_step(folder: Folder) -> int:
    """Return the step of the newest checkpoint of a run, 0 without any."""
    found = (_CHECKPOINT.fullmatch(path.name) for path in (folder.run_dir / CHECKPOINTS).glob("*"))
    return max((int(one[1]) for one in found if one), default=0)


def limit(folder: Folder, ended: int) -> str:
    """Return why the job must not come back after its start number `ended`; empty if it may.

    A requeue that could not be put down counts as idle: it may be the full disk that brings the job back.

    Raises:
        PipelineError: if the submission can't be read.
    """
    submission = retry(folder.read, PATIENCE_S)
    most, most_idle = int(submission["max_requeues"]), int(submission["max_idle_requeues"])
    if ended >= most:
        return f"after {ended} requeues (launch.max_requeues={most})"
    job, step, idle = attempt()["job"], saved_step(folder), 0
    saved = {str(one.get("ended")): one.get("step") for one in history(folder) if one["job"] == job}
    while idle < ended and (not isinstance(known := saved.get(str(ended - idle - 1)), int) or known >= step):
        idle += 1
    if idle >= most_idle:
        return f"no step beyond {step} was saved in {idle} requeues (launch.max_idle_requeues={most_idle})"
    return ""


def history(folder: Folder) -> list[dict[str, Any]]:
    """Return the requeues of a run, oldest first; lines that a full disk or a dying host has broken are passed over."""
    lines: list[str] = []
    with suppress(OSError):
        lines = _lines(folder)
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict) and isinstance(one.get("reason"), str) and "job" in one]


def _lines(folder: Folder) -> list[str]:
    try:
        return folder.requeues.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _word(folder: Folder) -> dict[str, Any]:
    """Return the word that this start of the job has left of its end; nothing if there is none.

    Raises:
        OSError: if the disk fails for long.
    """
    try:
        found = json.loads(retry(lambda: (folder.path / _OUTCOME).read_text(encoding="utf-8"), PATIENCE_S))
        fits = isinstance(found["code"], int) and isinstance(found["reason"], str) and attempt().items() <= found.items()
        return found if fits else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def of_this_job(run_dir: Path, env: Mapping[str, str] = os.environ) -> Path:
    """Return the run directory of this member of an array, or `run_dir` itself."""
    members = run_dir / MEMBERS
    if not members.is_file():
        return run_dir
    index = int(env.get("SLURM_ARRAY_TASK_ID", "0"))  # an array of one is no array
    return Path(json.loads(retry(lambda: members.read_text(encoding="utf-8"), PATIENCE_S))[index])


def last_word(folder: Folder) -> str:
    """Return the reason that the newest job has left for its end, for people."""
    try:
        return str(json.loads((folder.path / _OUTCOME).read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def decide(folder: Folder, code: int) -> tuple[int, str]:
    """Return the exit code of the job, and why it is to be requeued; no reason: it is not.

    `code` is srun's. A stop that the training agreed on is 75, trouble that may pass 69; a task that something killed is
    above 128, and one that lost its node has the code of whatever srun met. A failure that would come again goes over all
    of them: the other tasks only lost the one that failed.
    """
    now = attempt()
    if broken := failure.for_good(folder.run_dir, f"{now['job']}-{now['restart']}"):
        return broken.code, ""
    try:
        found = _word(folder)
    except OSError as error:
        return code or TransientError.exit_code, f"{folder.path / _OUTCOME}: {error.strerror}"
    killed = f"a task was killed (srun ended with {code})" if code > 128 else ""
    if found.get("code") in _BACK:
        reason = found["reason"] or "stopped before the training began"
        trouble = killed and found["code"] == TransientError.exit_code  # which another task met because of that
        return found["code"], f"{killed}; {reason}" if trouble else reason
    if found:
        return code or found["code"], ""
    if code == TransientError.exit_code:
        return code, "a task met trouble that may pass; its log says which"
    return code, killed


def main(run_dir: Path, code: int) -> int:
    """Requeue this job if its training may go on and the limits allow it; return the job's exit code.

    Raises:
        PipelineError: if SLURM does not answer, or what has to be known or written can't be.
    """
    folder = Folder(of_this_job(run_dir))
    code, reason = decide(folder, code)
    now = attempt()
    if not reason:
        return code
    found = scontrol.insist(lambda: scontrol.job(own_id()))
    if found.cancelled(now["restart"]):  # its tasks may be in a container, from where they can't ask
        _mark_killed(folder)
    if found.state != "RUNNING":  # SLURM ends it, or requeues it by itself
        return code
    if why := limit(folder, now["restart"]):
        print(f"error: {reason}: {why}; {remedy(folder)}", file=sys.stderr)
        return 1
    append(folder, reason, now["restart"])
    print(f"requeue {now['restart'] + 1}: {reason}", file=sys.stderr, flush=True)
    scontrol.insist(lambda: scontrol.call("scontrol", "requeue", own_id()))
    return code


def remedy(folder: Folder) -> str:
    """Return what to do about a job that was given up."""
    return f"look for the cause in its log, then go on with python -m launch resubmit {folder.run_dir}"


def _mark_killed(folder: Folder) -> None:
    from launch.job import mark_killed  # which imports this module

    mark_killed(folder.run_dir)


def _command_line(arguments: Sequence[str]) -> int:
    try:
        return main(Path(arguments[0]), int(arguments[1]))
    except (PipelineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", TransientError.exit_code)


if __name__ == "__main__":
    sys.exit(_command_line(sys.argv[1:]))
