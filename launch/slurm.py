"""Submit trainings to SLURM through submitit: the only module that imports it."""

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from launch import scontrol, snapshot
from launch.job import Task
from launch.options import Options
from launch.snapshot import Folder
from pipeline import units
from pipeline.config import Config, Plan, to_yaml
from pipeline.errors import UsageError
from pipeline.redact import redact
from pipeline.track.identity import typed
from pipeline.track.lock import FileLock, in_use
from pipeline.train import rundir
from pipeline.train.run import plan as plan_of


@dataclass(frozen=True)
class Request:
    """One training to submit: `command` is what the user typed."""

    cfg: Config
    options: Options
    command: tuple[str, ...]


def forecast(request: Request) -> Plan:
    """Return the plan of a training in the world that is asked for.

    Raises:
        PipelineError: if configuration, data and world do not fit together.
    """
    return plan_of(request.cfg, request.options.nodes * request.options.processes)


def check(options: Options) -> None:
    """Refuse what the cluster would refuse or, worse, keep pending for ever.

    Raises:
        UsageError: naming the option and what there is.
    """
    scontrol.need_slurm()
    there = scontrol.partitions()
    name = options.partition or next((n for n, row in there.items() if row.get("Default") == "YES"), None)
    if name is None:
        raise UsageError(f"--partition: the cluster has no default; choose one of {', '.join(there)}")
    if missing := [n for n in name.split(",") if n not in there]:
        raise UsageError(f"--partition: {missing[0]!r} does not exist; there are {', '.join(there)}")
    nodes = {k: v for n in name.split(",") for k, v in scontrol.nodes(n).items()}
    if options.nodes > len(nodes):
        raise UsageError(f"--nodes: {options.nodes}, but partition {name} has {units.count(len(nodes), 'node')}")
    most = max((scontrol.gpus(row.get("Gres", "")) for row in nodes.values()), default=0)
    if options.gpus_per_node > most:
        raise UsageError(f"--gpus-per-node: {options.gpus_per_node}, but a node of partition {name} has {most}")


def submit(request: Request) -> dict[str, Any]:
    """Submit a training; return the submission as it is kept in the run directory.

    Raises:
        PipelineError: before anything is submitted, if the training or the request can't work.
    """
    refuse_secrets(request.cfg)
    plan = forecast(request)
    check(request.options)
    refuse_expansion(_place(request.cfg))
    run_dir = rundir.choose(request.cfg).absolute()
    folder = Folder(run_dir)
    folder.path.mkdir(exist_ok=True)
    with alone(run_dir, folder.path):
        refuse_a_second(folder)
        snapshot.take(placed(request.cfg, run_dir), run_dir, plan.as_dict(), request.command)
        return send(request, folder)


@contextmanager
def alone(what: Path, folder: Path) -> Iterator[None]:
    """Hold the lock in `folder` that keeps two processes from submitting `what` at a time.

    Raises:
        UsageError: if another one submits it now.
    """
    lock = FileLock(folder / "submit.lock")
    if not lock.acquire(wait=False):
        raise UsageError(f"{what}: {lock.holder()} is submitting it; wait for it, or choose another directory")
    try:
        yield
    finally:
        lock.release()


def refuse_expansion(path: Path) -> None:
    """Keep directories out whose logs SLURM would write elsewhere.

    Raises:
        UsageError: if it would expand a part of the path, such as %j.
    """
    if "%" in str(path):
        raise UsageError(f"{path}: SLURM would expand the % in it; choose a run.dir, run.root and run.name without")


def _place(cfg: Config) -> Path:
    """Return the run directory, as far as it is known before it is made."""
    return (cfg.run.dir or cfg.run.root / f"{cfg.run.name or 'run'}-DATE-ID").absolute()


def refuse_secrets(cfg: Config) -> None:
    """Keep credentials out of the snapshot, without which the job would fail to log in.

    Raises:
        UsageError: if the tracking address holds any.
    """
    if cfg.track.uri and redact(cfg.track.uri) != cfg.track.uri:
        raise UsageError(
            f"track.uri: {redact(cfg.track.uri)} holds credentials, which no file keeps; "
            "export MLFLOW_TRACKING_URI with them instead, which the job inherits"
        )


def placed(cfg: Config, run_dir: Path) -> Config:
    """Return the configuration with its run directory fixed: every requeue has to find the same one."""
    return cfg.model_copy(update={"run": cfg.run.model_copy(update={"dir": run_dir, "root": cfg.run.root.absolute()})})


def refuse_a_second(folder: Folder) -> None:
    """Keep two jobs out of one run directory.

    Raises:
        UsageError: if a job or a process has it.
    """
    if folder.submission.is_file():
        job = scontrol.job(str(folder.read()["job"]))
        if job.alive:
            raise UsageError(
                f"{folder.run_dir}: job {job.job_id} has it ({job.state}); "
                f"stop that with python -m launch cancel {shlex.quote(str(folder.run_dir))}, or choose another run.dir"
            )
    if in_use(folder.run_dir):
        raise UsageError(f"{folder.run_dir}: a process trains in it; wait for it, or choose another run.dir")


@dataclass(frozen=True)
class Submitted:
    """A job's id, where it logs, and the tags of its run."""

    job_id: str
    log: str
    tags: Mapping[str, str]


def keep(request: Request, folder: Folder, sent: Submitted) -> dict[str, Any]:
    """Write down what was submitted, so that the job, its requeues and `resubmit` find it; return it."""
    submission = {
        "job": sent.job_id,
        "submitted": time.time(),
        "run_dir": str(folder.run_dir),
        "cwd": str(Path.cwd()),
        "command": list(request.command),
        "options": request.options.model_dump(mode="json"),
        "max_restarts": request.cfg.launch.max_restarts,
        "max_requeues": request.cfg.launch.max_requeues,
        "max_idle_requeues": request.cfg.launch.max_idle_requeues,
        "tags": {**snapshot.tags(), "command": shlex.join(request.command), **sent.tags},
        "log": sent.log,
    }
    folder.write(submission)
    return submission


def send(request: Request, folder: Folder) -> dict[str, Any]:
    """Submit what the snapshot holds; return the submission.

    Raises:
        UsageError: if sbatch refuses.
    """
    tags = _tags_before(folder)
    keep(request, folder, Submitted("", "", tags))  # the job may start before its id is known here
    found = executor(request, folder)
    job = call(lambda: found.submit(Task(folder.run_dir)))
    return keep(request, folder, Submitted(str(job.job_id), str(folder.jobs / f"{job.job_id}_0_log.out"), tags))


def _tags_before(folder: Folder) -> dict[str, str]:
    """Return what an earlier submission tagged the run with: the commit of its snapshot, the sweep it is a member of."""
    return dict(folder.read()["tags"]) if folder.submission.is_file() else {}


def executor(request: Request, folder: Folder, parallel: int | None = None) -> Any:
    """Return submitit's executor for a training, or for an array of `parallel` at a time."""
    from submitit import SlurmExecutor

    python = request.options.python
    found = SlurmExecutor(folder.jobs, python=python)
    found.update_parameters(**parameters(request, folder), **({"array_parallelism": parallel} if parallel else {}))
    return found


def call(work: Any) -> Any:
    """Run a submission and put what sbatch says into one line.

    Raises:
        UsageError: if sbatch refuses.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with redirect_stderr(StringIO()):  # submitit repeats there what its error says
            return work()
    except (FailedJobError, FailedSubmissionError) as error:
        raise UsageError(f"sbatch: {_reason(str(error))}; nothing was submitted") from error


def _reason(said: str) -> str:
    """Return sbatch's reason on one line: its errors, else what it says besides the hint at its help."""
    rows = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("Try ")]
    found = [line for line in rows if "sbatch: error: " in line] or rows or ["no reason given"]
    return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in found)


def parameters(request: Request, folder: Folder) -> dict[str, Any]:
    """Return submitit's parameters; `folder` is that of the run, or of a sweep's array with its members."""
    options = request.options
    per_gpu = options.task_per == "gpu"
    wanted = {
        "job_name": request.cfg.run.name or "train",
        "time": options.time,
        "nodes": options.nodes,
        "ntasks_per_node": options.processes if per_gpu else 1,
        "cpus_per_task": options.cpus_per_task,
        "gpus_per_node": options.gpus_per_node or None,
        "signal_delay_s": options.signal_delay_s,
        **{k: getattr(options, k) for k in ("partition", "account", "qos", "constraint", "exclude", "dependency")},
    }
    return {
        **{k: v for k, v in wanted.items() if v is not None or k == "time"},
        "wckey": None,
        "stderr_to_stdout": True,
        "setup": _setup(options, folder),
        "teardown": _teardown(options, folder),
        "srun_args": _srun(options),
        "additional_parameters": {
            "requeue": True,
            "chdir": str(Path.cwd()),
            **{k: v for k, v in (("mem", options.mem), ("reservation", options.reservation)) if v},
            **{key: value == "true" or value for key, value in options.set.items()},  # True: a flag, without a value
        },
    }


def _setup(options: Options, folder: Folder) -> list[str]:
    return [
        "trap : USR1 USR2  # they are for the tasks, and must not end this shell",
        f"export PYTHONPATH={shlex.quote(str(folder.code))} PYTHONSAFEPATH=1  # the snapshot, not the working directory",
        *options.setup,
    ]


def _teardown(options: Options, folder: Folder) -> list[str]:
    # The batch shell is outside the container, where the interpreter is the one that submits.
    python = (None if options.container_image else options.python) or shlex.quote(sys.executable)
    return [f'{python} -m launch.requeue {shlex.quote(str(folder.run_dir))} "$?"']


def _srun(options: Options) -> list[str]:
    """Return srun's arguments: without the first, a dead task leaves its neighbours hanging in their collectives."""
    found = ["--kill-on-bad-exit=1"]
    if options.cpus_per_task:  # which srun does not take over from sbatch since 22.05
        found.append(f"--cpus-per-task={options.cpus_per_task}")
    for name, value in (("image", options.container_image), ("mounts", options.container_mounts)):
        if value:
            found.append(f"--container-{name}={value}")
    return found


def script(request: Request, run_dir: Path, array: tuple[int, int] | None = None) -> str:
    """Return the batch script that would be submitted; of an array, `array` is its members and how many run at a time."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = Folder(run_dir)
    python = request.options.python or shlex.quote(sys.executable)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder.jobs))}"
    given = parameters(request, folder)
    many = {"map_count": array[0], "array_parallelism": array[1]} if array else {}
    return str(_make_sbatch_string(command=command, folder=folder.jobs, **many, **given))


def dry_run(request: Request, array: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return what would be submitted (`array`: see `script`): script, configuration and plan; nothing is written.

    Raises:
        PipelineError: if configuration, data and world do not fit together.
    """
    run_dir = _place(request.cfg)
    refuse_expansion(run_dir)
    plan = forecast(request)
    options = request.options
    hours = options.time / 60 if options.time else None
    gpus = options.nodes * options.gpus_per_node
    return {
        "run_dir": str(run_dir),
        "script": script(request, run_dir, array),
        "config": to_yaml(placed(request.cfg, run_dir)),
        "plan": plan.as_dict(),
        "gpus": gpus,
        "hours": hours,
        "gpu_hours": hours * gpus if hours else None,
    }


def render_dry_run(found: Mapping[str, Any]) -> str:
    """Return a dry run for people."""
    plan = found["plan"]
    hours = f"at most {found['hours']:.1f} h" if found["hours"] else "as long as the partition allows"
    spent = f", {found['gpu_hours']:.1f} GPU hours" if found["gpu_hours"] else ""
    rows = [
        f"run directory   {found['run_dir']}",
        f"steps           {plan['total_steps']:,}, {plan['steps_per_epoch']:,} an epoch",
        f"processes       {plan['world_size']}; {plan['global_batch']} images a step = "
        f"{plan['world_size']} x {plan['accumulation']} x {plan['micro_batch']}",
        f"GPUs            {found['gpus']}",
        f"hours           {hours}{spent} a start",
    ]
    return "\n".join([found["script"].rstrip(), "", "# configuration", found["config"].rstrip(), "", "# plan", *rows])


def render(found: Mapping[str, Any]) -> str:
    """Return a submission for people."""
    run_dir = shown(Path(found["run_dir"]))
    quoted = shlex.quote(str(run_dir))
    return "\n".join(
        [
            f"job {found['job']} for {run_dir}",
            f"  log      {found['log']}",
            f"  state    python -m launch status {quoted}",
            f"  follow   python -m launch logs -f {quoted}",
            f"  stop     python -m launch cancel {quoted}",
            f"  compare  python -m pipeline runs --root {shlex.quote(str(run_dir.parent))}",
        ]
    )


def shown(path: Path) -> Path:
    """Return a path as it is written from the working directory."""
    here = Path(os.getcwd())  # noqa: PTH109 - as the shell has it
    return path.relative_to(here) if path.is_relative_to(here) else path


def argv() -> tuple[str, ...]:
    """Return the command line as the user typed it."""
    return tuple(typed(sys.argv))


def request(cfg: Config, options: Options, command: Sequence[str] | None = None) -> Request:
    """Return a request with the command line of this process, unless another is given."""
    return Request(cfg, options, tuple(command) if command is not None else argv())
