"""What the batch script does when its tasks have ended: requeue the job, or let it end, and put down why.

It runs in the batch shell after srun, so that it is there when a task or its node is not.
Not here: training; it imports no torch.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import scontrol
from launch.snapshot import Folder, write_json
from pipeline.errors import PipelineError, Stopped

_OUTCOME = "outcome.json"
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

    Raises:
        UsageError: if it can't be written.
    """
    write_json(folder.path / _OUTCOME, attempt() | {"code": code, "reason": reason})


def append(folder: Folder, reason: str) -> None:
    """Put a requeue down in the run's record."""
    line = json.dumps(
        {"t": round(time.time(), 3)} | attempt() | {"reason": reason, "nodes": os.environ.get("SLURM_JOB_NODELIST")}
    )
    with folder.requeues.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def history(folder: Folder) -> list[dict[str, Any]]:
    """Return the requeues of a run, oldest first; lines that a full disk or a dying host has broken are passed over."""
    try:
        lines = folder.requeues.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [one for one in found if isinstance(one, dict) and isinstance(one.get("reason"), str)]


def of_this_job(run_dir: Path, env: Mapping[str, str] = os.environ) -> Path:
    """Return the run directory of this member of an array, or `run_dir` itself."""
    members = run_dir / MEMBERS
    if not members.is_file():
        return run_dir
    index = int(env.get("SLURM_ARRAY_TASK_ID", "0"))  # an array of one is no array
    return Path(json.loads(members.read_text(encoding="utf-8"))[index])


def decide(folder: Folder, code: int) -> tuple[int, str]:
    """Return the exit code of the job, and why it is to be requeued; no reason: it is not.

    `code` is srun's. A stop that the training agreed on is 75; a task that something killed is above 128, and one
    that lost its node has the code of whatever srun met.
    """
    try:
        found = json.loads((folder.path / _OUTCOME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if attempt().items() <= found.items():
        if found["code"] == Stopped.exit_code:
            return Stopped.exit_code, found["reason"] or "stopped before the training began"
        return code or found["code"], ""
    return code, f"a task was killed (srun ended with {code})" if code > 128 else ""


def main(run_dir: Path, code: int) -> int:
    """Requeue this job if its training was stopped or killed and the cap allows it; return the job's exit code.

    Raises:
        PipelineError: if SLURM does not answer, or what has to be known or written can't be.
    """
    folder = Folder(of_this_job(run_dir))
    code, reason = decide(folder, code)
    now = attempt()
    if not reason:
        return code
    found = scontrol.job(own_id())
    if found.cancelled(now["restart"]):  # its tasks may be in a container, from where they can't ask
        _mark_killed(folder)
    if found.state != "RUNNING":  # SLURM ends it, or requeues it by itself
        return code
    cap = int(folder.read()["max_requeues"])
    if now["restart"] >= cap:
        print(f"error: {reason}, after {now['restart']} requeues (launch.max_requeues={cap}); "
              f"go on with python -m launch resubmit {folder.run_dir}", file=sys.stderr)  # fmt: skip
        return 1
    append(folder, reason)
    print(f"requeue {now['restart'] + 1} of at most {cap}: {reason}", file=sys.stderr, flush=True)
    scontrol.call("scontrol", "requeue", own_id())
    return code


def _mark_killed(folder: Folder) -> None:
    from launch.job import mark_killed  # which imports this module

    mark_killed(folder.run_dir)


def _command_line(arguments: Sequence[str]) -> int:
    try:
        return main(Path(arguments[0]), int(arguments[1]))
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(_command_line(sys.argv[1:]))
