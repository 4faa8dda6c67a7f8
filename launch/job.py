"""What a SLURM task runs: the elastic agent of its node (or one training process), and how that ended."""

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import preflight, requeue, scontrol
from launch.options import Options
from launch.snapshot import PATIENCE_S, Folder
from pipeline.config import load
from pipeline.errors import PipelineError, Stopped, TransientError, UsageError
from pipeline.retry import may_pass, retry
from pipeline.track.identity import TAGS
from pipeline.track.journal import JOURNAL, Journal, read
from pipeline.track.lock import RunLock
from pipeline.train.preemption import SIGNALS, StopFlag

_FIRST_PORT, _PORTS = 20000, 10000  # below the ports that Linux hands out by itself (32768 on)


@dataclass(frozen=True)
class Task:
    """A task of the job of one run; submitit calls it on its node."""

    run_dir: Path

    def __call__(self) -> None:
        """Train; end the process with the training's exit code, or 0 for a stop: a task that fails takes the others along."""
        try:
            code = _run(Folder(self.run_dir))
        except (PipelineError, OSError) as error:
            if not isinstance(error, PipelineError) and not may_pass(error):
                raise
            print(f"error: {error}", file=sys.stderr, flush=True)
            code = getattr(error, "exit_code", TransientError.exit_code)
            # Else the batch shell sees no more than that the other tasks had to be killed, and requeues the job.
            _note(Folder(self.run_dir), code, str(error))
        sys.stdout.flush()
        if code != Stopped.exit_code:
            sys.exit(code)


def _note(folder: Folder, code: int, reason: str) -> None:
    """Leave word of how it ended, if that can be written: a node that does not see the run directory can't."""
    with suppress(PipelineError, OSError):
        requeue.note(folder, code, reason)


def _run(folder: Folder) -> int:
    submission = retry(folder.read, PATIENCE_S)
    options = Options.model_validate(submission["options"])
    first = os.environ.get("SLURM_PROCID", "0") == "0"
    if first:
        _count(folder)
    cfg, checks = load(folder.config), folder.path / "nodes" / "{job}-{restart}".format(**requeue.attempt())
    if os.environ.get("SLURM_LOCALID", "0") == "0":
        preflight.report(cfg, checks)
    if first:
        preflight.compare(checks, options.nodes, cfg.launch.join_timeout_s)
    os.environ[TAGS] = json.dumps(submission["tags"] | _tags(folder))
    alone = options.task_per == "gpu"
    code = _alone(folder) if alone else _agent(folder, submission, options, cfg.launch.join_timeout_s)
    for number in SIGNALS:  # one that comes now must not turn an end that is known into a killed task
        signal.signal(number, signal.SIG_IGN)
    if first:
        _conclude(folder, code)
    return code


def _count(folder: Folder) -> None:
    """Put down a requeue that SLURM made by itself, and see to the limits.

    Raises:
        UsageError: if the job has been requeued too often, or too often without a new step.
    """
    now = requeue.attempt()
    done = [one for one in requeue.history(folder) if one["job"] == now["job"]]
    if now["restart"] > len(done):
        requeue.append(folder, "by SLURM: preempted, a lost node, or scontrol requeue", now["restart"] - 1)
    if now["restart"] and (why := requeue.limit(folder, now["restart"] - 1)):
        raise UsageError(f"job {now['job']}: given up: {why}; {requeue.remedy(folder)}")


def _tags(folder: Folder) -> dict[str, str]:
    now = requeue.attempt()
    found = {
        "slurm.job": now["job"],
        "slurm.restarts": str(now["restart"]),
        "slurm.nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
    }
    history = requeue.history(folder)
    if history:
        found["slurm.requeues"] = "; ".join(one["reason"] for one in history[-20:])
    return found


def endpoint() -> str:
    """Return where the nodes of this job meet: the batch host, at a port of the job's own."""
    host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    return f"{host}:{_FIRST_PORT + int(os.environ['SLURM_JOB_ID']) % _PORTS}"


def _agent(folder: Folder, submission: dict[str, Any], options: Options, join_timeout_s: float) -> int:
    from launch import agent

    now = requeue.attempt()
    run_id = f"{now['job']}-{now['restart']}"
    group = agent.Group(
        nproc=options.processes,
        min_nodes=options.nodes,
        max_nodes=options.nodes,
        endpoint=endpoint(),
        is_host=os.environ["SLURM_NODEID"] == "0",
        run_id=run_id,
        max_restarts=submission["max_restarts"],
        join_timeout_s=join_timeout_s,
        run_dir=folder.run_dir,
        logs=folder.ranks / run_id / f"node{os.environ['SLURM_NODEID']}",
    )
    return agent.run(group, [str(folder.config)])


def _alone(folder: Folder) -> int:
    """Train in this process, one of a task for each GPU."""
    from launch import worker

    with StopFlag():  # submitit's handlers would swallow a signal that comes before the training has its own
        return worker.train([str(folder.config)])


def _conclude(folder: Folder, code: int) -> None:
    """Leave word for the batch script; a job that was cancelled, or stopped by hand, does not come back.

    Raises:
        PipelineError: if that can't be written.
    """
    status, reason = last_words(folder.run_dir)
    stop = folder.run_dir / "STOP"
    for_good = status == "KILLED" or stop.exists() or str(stop) in reason
    requeue.note(folder, 128 + signal.SIGINT if code == Stopped.exit_code and for_good else code, reason)
    # After the word, as SLURM may be silent, or not be there at all: a container image has no scontrol.
    if code == Stopped.exit_code and not for_good and _cancelled():
        mark_killed(folder.run_dir)
        requeue.note(folder, 128 + signal.SIGINT, reason)


def _cancelled() -> bool:
    """Return whether SLURM says, here, that the job was cancelled; else the batch shell finds out (`launch.requeue`)."""
    try:
        return scontrol.job(requeue.own_id()).cancelled(requeue.attempt()["restart"])
    except PipelineError:
        return False


def last_words(run_dir: Path) -> tuple[str, str]:
    """Return status and reason that a run's journal ends with."""
    try:
        found = [record for record, _ in read(run_dir / JOURNAL) if record["kind"] == "status"]
    except OSError:
        found = []
    return (found[-1]["status"], str(found[-1].get("reason") or "")) if found else ("", "")


def mark_killed(run_dir: Path) -> None:
    """Write into the journal that the run was cancelled, and bring that into MLflow if it is tracked.

    Raises:
        PipelineError: if the journal can't be written or the tracker refuses; `sync` brings it there later.
    """
    if last_words(run_dir)[0] in ("", "KILLED", "FINISHED"):
        return
    with RunLock(run_dir), Journal(run_dir) as journal:
        journal.event("status", status="KILLED", reason="cancelled with scancel")
    if (run_dir / "mlflow.json").is_file():
        from pipeline.track.shipper import sync

        sync(run_dir)
