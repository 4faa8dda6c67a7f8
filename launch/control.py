"""Runs that were submitted: found by name, watched, cancelled, resubmitted."""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import preflight, requeue, scontrol, slurm, worker
from launch.job import last_words, mark_killed
from launch.options import Options, changed
from launch.snapshot import Folder
from pipeline.config import load
from pipeline.errors import ConfigError, UsageError
from pipeline.track.journal import JOURNAL
from pipeline.track.lock import in_use
from pipeline.track.runs import read_run
from pipeline.train import failure

_POLL_S = 1.0
_ASK_S = 10.0
"""Pause between two questions to the controller: it serves the whole cluster."""


def find(wanted: Sequence[str], root: Path) -> list[Folder]:
    """Return the submitted runs: directories, names in `root`, or all in `root` where none is named.

    Raises:
        UsageError: for a name that none or several have.
    """
    if not wanted:
        return _listed(root)
    return [_find(name, root) for name in wanted]


def _find(name: str, root: Path) -> Folder:
    if Folder(Path(name)).submission.is_file():
        return Folder(Path(name).absolute())
    every = _listed(root.absolute())
    same = [one for one in every if name in (one.run_dir.name, _name(one), one.read()["job"])]
    if len(same) != 1:
        what = f"{len(same)} submitted runs have this name" if same else "no submitted run of this name"
        some = ", ".join(str(slurm.shown(one.run_dir)) for one in (same or every)[-4:]) or "nothing was submitted there"
        raise UsageError(f"{name}: {what} in {root}; give a directory ({some})")
    return same[0]


def _listed(root: Path) -> list[Folder]:
    """Return the submitted runs below a folder; one that can't be read doesn't keep the others from being seen."""
    found = []
    for path in sorted(root.glob("**/launch/submission.json")):
        folder = Folder(path.parents[1])
        try:
            folder.read()
        except UsageError as error:
            print(f"warning: {error}", file=sys.stderr)
        else:
            found.append(folder)
    return found


def _name(folder: Folder) -> str:
    """Return a run's name, or none if its configuration is gone: job id and directory find it still."""
    try:
        return load(folder.config, strict=False).run.name
    except ConfigError:
        return ""


def states(found: Sequence[Folder]) -> list[dict[str, Any]]:
    """Return job and run of each: SLURM's state, the training's status and reason, step and total steps, requeues."""
    ids = [folder.read()["job"] for folder in found]
    jobs = scontrol.jobs(ids)
    return [_state(folder, jobs[job_id]) for folder, job_id in zip(found, ids, strict=True)]


def _state(folder: Folder, job: scontrol.Job) -> dict[str, Any]:
    run = read_run(folder.run_dir) if (folder.run_dir / JOURNAL).is_file() else None
    return {
        "run_dir": str(folder.run_dir),
        "job": job.job_id,
        "state": job.state,
        "why": job.reason,
        "nodes": job.nodes,
        "requeues": requeue.history(folder),
        "status": run.status if run else "-",
        "reason": _reason(folder) if not job.alive else "",
        "step": run.step if run else 0,
        "total_steps": run.total_steps if run else None,
    }


def _reason(folder: Folder) -> str:
    """Return why a run that is not finished has ended: what failed first, else the last words of its journal or job."""
    status, said = last_words(folder.run_dir)
    failed = failure.read(folder.run_dir)
    if status == "FINISHED":
        return ""
    return failed.error if failed and failed.launch is not None else said or requeue.last_word(folder)


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return states for people."""
    table = [("job", "state", "nodes", "run", "step", "requeues", "directory")]
    for row in rows:
        why = f" ({row['why']})" if row["state"] == "PENDING" and row["why"] else ""
        step = f"{row['step']}/{row['total_steps'] or '?'}"
        table.append(
            (row["job"] or "-", row["state"] + why, row["nodes"] or "-", row["status"], step, str(len(row["requeues"])),
             str(slurm.shown(Path(row["run_dir"]))))
        )  # fmt: skip
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join(shown + [f"{row['job'] or '-'}: {row['reason']}" for row in rows if row["reason"]])


def logs(folder: Folder, follow: bool, rank: int | None, show: Callable[[str], None]) -> None:
    """Show what a run's newest job has printed, and with `follow` what it still prints until it ends.

    Several files, each under a line with its path as `tail` does it: the first task's, and that of the node which has
    rank 0, if that is another one; the rendezvous decides which.

    Raises:
        UsageError: if there is no such log.
    """
    submission = folder.read()
    seen: dict[Path, int] = {}
    last: Path | None = None
    alive, asked = follow, -math.inf
    while True:
        if follow and time.monotonic() >= asked + _ASK_S:  # before the look: what it prints before its end is shown
            alive = scontrol.insist(lambda: scontrol.job(submission["job"])).alive
            asked = time.monotonic()
        paths = _logs(folder, submission, rank)
        for path in paths:
            with path.open("rb") as file:
                file.seek(seen.get(path, 0))
                text = file.read()
            if text and path != last and (last is not None or len(paths) > 1):
                show(f"==> {slurm.shown(path)} <==\n")
            if text:
                seen[path], last = seen.get(path, 0) + len(text), path
                show(text.decode(errors="replace"))
        if not paths and not alive:
            what = f"of rank {rank} " if rank is not None else ""
            job = f"job {submission['job']}" if submission["job"] else "no job: sbatch refused it"
            raise UsageError(f"{folder.run_dir}: no log {what}yet ({job}); see python -m launch status")
        if not alive:
            return
        time.sleep(_POLL_S)


def _logs(folder: Folder, submission: Mapping[str, Any], rank: int | None) -> list[Path]:
    job = submission["job"]
    if Options.model_validate(submission["options"]).task_per == "gpu":
        found = [folder.jobs / f"{job}_{rank or 0}_log.out"]
    elif rank is not None:
        mark = _newest_mark(folder, job, rank)
        found = [mark.with_name("stdout.log")] if mark else []
    else:
        mark = _newest_mark(folder, job, 0)
        node = mark.relative_to(folder.ranks).parts[1].removeprefix("node") if mark else "0"
        found = [Path(submission["log"]), *([folder.jobs / f"{job}_{node}_log.out"] if node != "0" else [])]
    return [path for path in found if path.is_file()]


def _newest_mark(folder: Folder, job: str, rank: int) -> Path | None:
    """Return the mark that lies beside the newest log of a rank."""
    marks = folder.ranks.glob(f"{job}-*/node*/*/attempt_*/*/{worker.rank_mark(rank)}")
    return max(marks, key=lambda path: path.stat().st_mtime, default=None)


def cancel(folder: Folder) -> str:
    """End a run's job for good; return what was done.

    Raises:
        UsageError: if there is no job to end.
    """
    job = scontrol.job(folder.read()["job"])
    if not job.job_id:
        raise UsageError(f"{folder.run_dir}: sbatch refused its submission, so that there is no job to end")
    if not job.alive:
        raise UsageError(f"{folder.run_dir}: its job {job.job_id} has ended already ({job.state})")
    scontrol.call("scancel", job.job_id)
    if job.state == "PENDING" and (folder.run_dir / JOURNAL).is_file() and not in_use(folder.run_dir):
        mark_killed(folder.run_dir)  # a run that waits to go on has no process to say so
    return f"job {job.job_id} for {slurm.shown(folder.run_dir)} is cancelled; go on with python -m launch resubmit"


def resubmit(folder: Folder, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Submit a run again, with the code and configuration of its snapshot; return the submission.

    Raises:
        PipelineError: if a job or a process has the run, or SLURM refuses.
    """
    before = folder.read()
    _refuse_finished(folder)
    given = {k: asked[k] for k in ("exclude", "time") if asked[k]}
    if asked["exclude_failed"]:
        unfit = [
            *preflight.failed_nodes(folder),
            *(part for part in [given.get("exclude") or before["options"]["exclude"]] if part),
        ]
        given["exclude"] = ",".join(unfit) or None
    options = changed(before["options"], given)
    slurm.check(options)
    with slurm.alone(folder.run_dir, folder.path):
        slurm.refuse_a_second(folder)
        _enter(folder, before["cwd"])
        request = slurm.Request(load(folder.config), options, tuple(before["command"]))
        return slurm.send(request, folder)


def _refuse_finished(folder: Folder) -> None:
    """Keep a job from starting that has nothing to do.

    Raises:
        UsageError: if the run has finished, or its journal can't be read.
    """
    if (folder.run_dir / JOURNAL).is_file() and read_run(folder.run_dir).status == "FINISHED":
        raise UsageError(f"{folder.run_dir}: the run has finished; nothing is left to do")


def _enter(folder: Folder, cwd: str) -> None:
    """Go where the run was submitted from: relative paths of the configuration mean what they meant.

    Raises:
        UsageError: if that directory is gone.
    """
    try:
        os.chdir(cwd)
    except OSError as error:
        raise UsageError(
            f"{folder.run_dir}: it was submitted from {cwd}: {error.strerror}; make that directory again, or submit anew"
        ) from error
