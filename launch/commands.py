"""The launcher's SLURM commands: submitting, watching, ending and resubmitting jobs."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pipeline.output import emit, json_option

_FILE = click.Path(path_type=Path)
OVERRIDES = "KEY=VALUE changes a configuration key, such as optim.lr=0.5; `python -m pipeline config describe` lists all keys."
_JOB_OPTIONS = [
    click.option("--nodes", type=int, help="Nodes; default 1."),
    click.option("--gpus-per-node", type=int, help="GPUs of each node, and training processes on it."),
    click.option("--nproc-per-node", type=int, help="Training processes a node where they are not one a GPU (CPU clusters)."),
    click.option("--task-per", type=click.Choice(["node", "gpu"]),
                 help="A task a node, with the elastic agent (default), or a process."),
    click.option("--cpus-per-task", type=int, help="Cores of each task."),
    click.option("--time", help="Time limit of one start: 90 (minutes), 1:30:00, 2-12:00:00. The job is requeued before it."),
    click.option("--signal-delay-s", type=int, help="Seconds before the time limit at which to save; default 120."),
    click.option("--mem", help="Memory a node, as SLURM takes it: 64G."),
    *(click.option(f"--{name}", help=f"As sbatch's --{name}.") for name in
      ("partition", "account", "qos", "constraint", "exclude", "reservation", "dependency")),
    click.option("--container-image", help="Container to run in (needs pyxis); see docs/slurm.md."),
    click.option("--container-mounts", help="What the container sees of the host: /data:/data,/runs:/runs."),
    click.option("--python", help="The interpreter inside the job; default: this one."),
    click.option("--setup", multiple=True, help="A shell line to run first, such as 'module load cuda'; repeatable."),
    click.option("--set", "set_", multiple=True, metavar="KEY[=VALUE]",
                 help="Any other option of sbatch, without a value if it is a flag: --set hold; repeatable."),
    click.option("--site", type=_FILE, help="Site defaults; default: launch.site, else ~/.config/image-pipeline/site.yaml."),
]  # fmt: skip


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to ask SLURM for."""
    for option in reversed(_JOB_OPTIONS):
        command = option(command)
    return command


def read(config: Path, overrides: tuple[str, ...], asked: dict[str, Any]) -> Any:
    """Return the request that a command line makes.

    Raises:
        ConfigError: listing what can't be used.
    """
    from launch import options, slurm
    from pipeline.config import load
    from pipeline.errors import UsageError

    cfg = load(config, overrides)
    if not cfg.run.name:
        if not config.stem.isprintable():
            raise UsageError(f"{config.stem!r}: a file's name with control characters can't name a run; give it a run.name")
        cfg = cfg.model_copy(update={"run": cfg.run.model_copy(update={"name": config.stem})})
    pairs = {key: value or "true" for key, _, value in (text.partition("=") for text in asked.pop("set_"))}
    if "" in pairs:
        raise UsageError("--set: write KEY=VALUE, such as --set comment=nightly, or KEY alone for a flag, such as --set hold")
    site = options.site_file(asked.pop("site") or cfg.launch.site)
    return slurm.request(cfg, options.options(site, asked | {"set": pairs}))


@click.command(epilog=OVERRIDES)
@click.argument("config", type=_FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@job_options
@click.option(
    "--array", metavar="NUMBERS", help="A run for each number, with it as its seed: 0-4, 1,3,7 or 0-9%2 (two at a time)."
)
@click.option("--dry-run", is_flag=True, help="Print the batch script, the configuration and the plan; submit nothing.")
@json_option
def slurm(
    config: Path, overrides: tuple[str, ...], array: str | None, dry_run: bool, json_to: str | None, **asked: Any
) -> None:
    """Submit the training that the file CONFIG describes to SLURM.

    The job comes back by itself after a time limit, a preemption, a lost node or a killed task, under the same job id
    and in the same MLflow run, and goes on at the step where it was. The run directory has to be on a file system
    that every node sees.
    """
    from launch import slurm as work

    request = read(config, overrides, asked)
    if array is not None:
        _array(request, (config, overrides, array), dry_run, json_to)
        return
    if dry_run:
        planned = work.dry_run(request)
        emit(planned, json_to, lambda: work.render_dry_run(planned))
        return
    found = work.submit(request)
    emit(found, json_to, lambda: work.render(found))


def _array(request: Any, what: tuple[Path, tuple[str, ...], str], dry_run: bool, json_to: str | None) -> None:
    """Submit one training with many seeds, or show what that would be."""
    from launch import slurm as work
    from launch import sweep as sweeps

    config, overrides, array = what
    numbers, parallel = sweeps.seeds(array)
    found = sweeps.of_seeds(config, overrides, None, numbers)
    rows = sweeps.plan(found)
    if dry_run:
        place = request.cfg.run.model_copy(update={"dir": found.folder / "array-DATE-ID"})
        planned = work.dry_run(
            replace(request, cfg=request.cfg.model_copy(update={"run": place})), (len(numbers), parallel or len(numbers))
        ) | {"members": rows}
        emit(planned, json_to, lambda: f"{work.render_dry_run(planned)}\n\n# members\n{sweeps.render(rows)}")
        return
    sweeps.remember(found)
    _submit(found, request, parallel or len(numbers), json_to)


def _submit(found: Any, request: Any, parallel: int, json_to: str | None) -> None:
    from launch import sweep as sweeps

    array = sweeps.submit(found, request, parallel)
    emit(array, json_to, lambda: "job {job}: {n} members in {folder}".format(n=len(array["members"]), **array))


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--root", type=_FILE, default="runs", show_default=True, help="Folder of run directories.")
@json_option
def status(runs: tuple[str, ...], root: Path, json_to: str | None) -> None:
    """Show the jobs of RUN..., directories or names, or of all submitted runs in the folder."""
    from launch import control

    rows = control.states(control.find(runs, root))
    emit(rows, json_to, lambda: control.render(rows))


@click.command()
@click.argument("run")
@click.option("--root", type=_FILE, default="runs", show_default=True, help="Folder of run directories.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the job has ended.")
@click.option("--rank", type=int, help="Only what this rank printed.")
def logs(run: str, root: Path, follow: bool, rank: int | None) -> None:
    """Print the log of RUN, a directory or a name."""
    from launch import control

    (found,) = control.find((run,), root)
    control.logs(found, follow, rank, lambda text: click.echo(text, nl=False))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--root", type=_FILE, default="runs", show_default=True, help="Folder of run directories.")
def cancel(runs: tuple[str, ...], root: Path) -> None:
    """End the jobs of RUN... for good; they save where they are, and `resubmit` would go on there."""
    from launch import control

    for run in control.find(runs, root):
        click.echo(control.cancel(run))


@click.command()
@click.argument("run")
@click.option("--root", type=_FILE, default="runs", show_default=True, help="Folder of run directories.")
@click.option("--exclude", help="Nodes to exclude, such as node7,node9.")
@click.option("--exclude-failed", is_flag=True, help="Keep off the nodes that the last job found unfit.")
@click.option("--time", help="Another time limit.")
@json_option
def resubmit(run: str, root: Path, json_to: str | None, **asked: Any) -> None:
    """Submit RUN again, as it was; it goes on where it stopped."""
    from launch import control
    from launch.slurm import render

    (found,) = control.find((run,), root)
    again = control.resubmit(found, asked)
    emit(again, json_to, lambda: render(again))


@click.command(epilog=OVERRIDES)
@click.argument("config", type=_FILE)
@click.argument("values", nargs=-1, metavar="KEY=VALUE,VALUE...")
@click.option("--name", help="Name of the sweep and its folder in run.root; default: CONFIG's name and -sweep.")
@click.option(
    "--zip", "zipped", is_flag=True, help="Pair the lists, the first values, then the second ones, instead of all combinations."
)
@click.option("--list", "list_file", type=_FILE, help="A YAML file with a line for each member: - {optim.lr: 0.1, seed: 3}.")
@click.option("--local", "where", flag_value="local", default="local", help="Run on this machine (default).")
@click.option("--slurm", "where", flag_value="slurm", help="Submit one SLURM array.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="With --local: members at a time.")
@click.option(
    "--array-parallelism", type=click.IntRange(1), default=8, show_default=True, help="With --slurm: members at a time."
)
@job_options
@click.option("--dry-run", is_flag=True, help="Print the table of members; run nothing.")
@json_option
def sweep(config: Path, values: tuple[str, ...], dry_run: bool, json_to: str | None, **asked: Any) -> None:
    """Train CONFIG once for each combination of values: optim.lr=0.1,0.5 seed=0..4 makes ten runs.

    They lie in one folder and are children of one run in MLflow. The same command again runs only the members that
    have not finished.
    """  # fmt: skip
    from launch import sweep as work

    how = {key: asked.pop(key) for key in ("name", "zipped", "list_file", "where", "jobs", "array_parallelism")}
    found = work.make(config, values, how["name"], "zip" if how["zipped"] else "grid", how["list_file"])
    rows = work.plan(found)
    if dry_run:
        emit(rows, json_to, lambda: work.render(rows))
        return
    work.remember(found)
    if how["where"] == "slurm":
        _submit(found, read(config, found.fixed, asked), how["array_parallelism"], json_to)
        return
    codes = work.run_here(found, how["jobs"], asked["nproc_per_node"])
    rows = [row | {"exit_code": codes.get(row["member"])} for row in work.plan(found)]
    emit(rows, json_to, lambda: work.render(rows))
    sys.exit(max(codes.values(), default=0))


@click.command(epilog=OVERRIDES)
@click.argument("config", type=_FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--partition", help="Only this partition's settings.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes that are to train together.")
@json_option
def preflight(config: Path, overrides: tuple[str, ...], partition: str | None, nodes: int, json_to: str | None) -> None:
    """Check that the training CONFIG can run here: data, disk, tracker, GPUs, and the cluster's requeue settings.

    Under srun or torchrun it checks all nodes together: that they see the same data and run directory, with the same
    versions and time, and how fast they exchange (all-reduce). Each job checks its own nodes at its start, and names
    those that are unfit.
    """
    from launch import preflight as work
    from pipeline import findings
    from pipeline.config import load
    from pipeline.world import from_env

    cfg, world = load(config, overrides), from_env()
    if world.size > 1:
        from launch import fabric

        found = fabric.run(cfg, world, partition)
    else:
        found = work.run(cfg, partition, nodes)
    if world.is_main:
        emit(findings.as_json(found), json_to, lambda: findings.render(found))
    sys.exit(1 if findings.failed(found) else 0)


COMMANDS = (preflight, sweep, slurm, status, logs, cancel, resubmit)
if __name__ == "__main__":
    sys.exit("use python -m launch")
