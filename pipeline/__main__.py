"""The command line: each sub-command reads its options and calls one function elsewhere.

Imports are inside the commands, so that `--help` needs no torch.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from pipeline.bench.commands import COMMANDS as bench_commands
from pipeline.bench.commands import doctor
from pipeline.compare.commands import compare, runs
from pipeline.data.commands import COMMANDS as data_commands
from pipeline.errors import ConfigError, PipelineError, Stopped, TrainingError
from pipeline.output import emit as _emit
from pipeline.output import json_option as _json_option
from pipeline.output import printable
from pipeline.track.commands import reap, ui

_FILE = click.Path(path_type=Path)
_OVERRIDES = "KEY=VALUE changes a configuration key, such as optim.lr=0.5; `config describe` lists all keys."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--traceback", "with_traceback", is_flag=True, help="Show where in the code an error was raised.")
def cli(with_traceback: bool) -> None:
    """Train image classifiers: from a folder of images to a trained, tracked, comparable network.

    \b
    Exit codes: 0 done, 2 bad input, 69 trouble that may pass (launchers try again), 70 would fail again the same way,
    75 stopped on request with what was done saved (run the same command with run.dir=DIR to resume), 1 any other failure.
    """  # noqa: D301


@cli.command(epilog=_OVERRIDES)
@click.argument("config", type=_FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def train(config: Path, overrides: tuple[str, ...]) -> None:
    """Train as the file CONFIG says; under torchrun, together with the other processes.

    A run that was stopped or killed goes on where it was with run.dir=DIR, in the middle of an epoch too.
    """
    from pipeline.train.preemption import StopFlag

    with StopFlag():  # before the slow imports: a signal that comes meanwhile counts
        from pipeline.config import load

        cfg = load(config, overrides)
        if not cfg.run.name:
            cfg = cfg.model_copy(update={"run": cfg.run.model_copy(update={"name": printable(config.stem)})})
        from pipeline.train.run import train as run

        run(cfg)


@cli.command("eval", epilog=_OVERRIDES)
@click.argument("checkpoint", type=_FILE)
@click.argument("data", type=_FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--config", type=_FILE, help="The configuration, for files of weights that do not hold their own.")
@_json_option
def evaluate(checkpoint: Path, data: Path, overrides: tuple[str, ...], config: Path | None, json_to: str | None) -> None:
    """Evaluate CHECKPOINT on the images in DATA/val, each counted exactly once.

    CHECKPOINT is a run directory (its final weights, averaged ones if there are such), a step-*.pt or best.pt in its
    checkpoints folder, a model.safetensors, or, with --config, weights in torchvision's format. DATA has ImageNet's layout:
    DATA/val/<class>/*.
    """
    from pipeline.train.standalone import Request, evaluate_file, render

    found = evaluate_file(Request(checkpoint, data, tuple(overrides), config))
    if found:
        _emit(found, json_to, lambda: render(found))


@cli.command(epilog=_OVERRIDES)
@click.argument("file", type=_FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=_FILE, default="runs/degradation", show_default=True, help="Folder of the runs and results.")
@_json_option
def experiment(file: Path, overrides: tuple[str, ...], out: Path, json_to: str | None) -> None:
    """Train the plain and residual networks in FILE, and draw what depth does to them: PNG and Markdown.

    The runs share the cores; one that was stopped goes on with the same command.
    """
    from pipeline.experiment import degradation, sweep

    plan = sweep.read(file)
    sweep.carry_out(plan, out, overrides, lambda line: click.echo(line, err=True))
    results = degradation.read(out, list(plan.runs))
    written = degradation.write(results, out)
    said = "\n".join([*degradation.seen(results), *map(str, written)])
    _emit([r.as_dict() for r in results], json_to, lambda: said)


@cli.group()
def data() -> None:
    """Make and inspect data sets."""


@data.command("demo")
@click.argument("root", type=_FILE, default="data/digits")
def data_demo(root: Path) -> None:
    """Write the embedded handwritten digits to ROOT, in ImageNet's layout; quick if they are there already."""
    from pipeline.data import demo

    demo.write(root)
    click.echo(f"{root}: the handwritten digits, train/<class>/* and val/<class>/*")


for _command in data_commands:
    data.add_command(_command)


@data.command("cifar10")
@click.argument("archive", type=_FILE)
@click.argument("root", type=_FILE, default="data/cifar10")
def data_cifar10(archive: Path, root: Path) -> None:
    """Write CIFAR-10's images from ARCHIVE (.tar.gz, the python or the binary version) to ROOT, in ImageNet's layout."""
    from pipeline.data import cifar10

    n = cifar10.write(archive, root)
    click.echo(f"{root}: {n:,} images, train/<class>/* and val/<class>/*")


@cli.group()
def bench() -> None:
    """Measure the parts of training."""


for _command in bench_commands:
    bench.add_command(_command)


@cli.group()
def config() -> None:
    """Explain and show configurations."""


@config.command("describe")
@_json_option
def config_describe(json_to: str | None) -> None:
    """Print every key with its type, default and meaning."""
    from pipeline.config import describe, keys

    _emit(keys(), json_to, describe)


@config.command("show", epilog=_OVERRIDES)
@click.argument("config", type=_FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@_json_option
def config_show(config: Path, overrides: tuple[str, ...], json_to: str | None) -> None:
    """Print the whole configuration that CONFIG and the overrides resolve to."""
    from pipeline.config import as_tree, load, to_yaml

    cfg = load(config, overrides)
    _emit(as_tree(cfg), json_to, lambda: to_yaml(cfg).rstrip())


@config.command("diff")
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@_json_option
def config_diff(a: Path, b: Path, json_to: str | None) -> None:
    """Show the keys in which the configurations A and B differ."""
    from pipeline.config import load
    from pipeline.config.diff import diff, render

    found = diff(load(a, strict=False), load(b, strict=False))
    _emit(found, json_to, lambda: render(found, (str(a), str(b))))


@config.command("plan", epilog=_OVERRIDES)
@click.argument("config", type=_FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--world", type=click.IntRange(1), default=1, show_default=True, help="Number of processes.")
@click.option(
    "--images",
    type=click.IntRange(1),
    help="Training images; default: what the recipe is for, else ImageNet's; data.root is not read.",
)
@click.option(
    "--classes", type=click.IntRange(1), help="Number of classes; default: CIFAR-10's where those are its images, else 1000."
)
@click.option("--img-s", type=click.FloatRange(0, min_open=True), help="Speed of all processes together, in images a second.")
@click.option("--png", type=_FILE, help="Draw learning rate and resolution into this file.")
@_json_option
def config_plan(config: Path, overrides: tuple[str, ...], png: Path | None, json_to: str | None, **asked: Any) -> None:
    """Print what CONFIG will do: steps, learning rate, images, resolution, memory and, with --img-s, hours."""
    from pipeline.config import load
    from pipeline.train.forecast import CIFAR10, IMAGENET, Question, draw, forecast, render

    cfg = load(config, overrides)
    images = asked["images"] or cfg.expect.images or IMAGENET[0]
    classes = asked["classes"] or (CIFAR10 if images == CIFAR10[0] else IMAGENET)[2]
    found = forecast(cfg, Question(asked["world"], images, classes, asked["img_s"]))
    if png is not None:
        draw(found, png)
        click.echo(f"wrote {png}", err=True)
    _emit(found.as_dict(), json_to, lambda: render(found, cfg))


@cli.command()
@click.argument("run_dirs", nargs=-1, required=True, type=_FILE, metavar="RUN_DIR...")
@click.option("--uri", help="Tracking server or store; default: the one that the run used.")
def sync(run_dirs: Sequence[Path], uri: str | None) -> None:
    """Bring what MLflow does not have yet of the runs in RUN_DIR... into it, from their journals."""
    from pipeline.redact import redact
    from pipeline.track.shipper import sync as ship

    for run_dir in run_dirs:
        found = ship(run_dir, uri)
        click.echo(f"{run_dir}: {found.points:,} points of run {found.run_id} brought to {redact(found.uri)}")


for command in (compare, runs, reap, ui, doctor):
    cli.add_command(command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; errors become one line on standard error and an exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    show = "--traceback" in arguments
    arguments = [a for a in arguments if a != "--traceback"]
    try:
        cli.main(arguments, prog_name="python -m pipeline", standalone_mode=False)
    except PipelineError as error:
        _fail(error, str(error), error.exit_code, show)
    except click.exceptions.Abort as error:
        _fail(error, "interrupted", 130, show)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        _fail(error, f"{type(error).__name__}: {text[0]} (--traceback shows where)", 1, show)
    sys.exit(0)


def _fail(error: BaseException, message: str, code: int, show: bool) -> NoReturn:
    """Print the message unless another rank prints the same, and exit."""
    agreed = isinstance(error, Stopped | TrainingError) and error.agreed and os.environ.get("RANK", "0") != "0"
    same_on_node = isinstance(error, ConfigError) and os.environ.get("LOCAL_RANK", "0") != "0"
    if show:
        traceback.print_exception(error)
    elif message and not agreed and not same_on_node:
        mark = "" if isinstance(error, Stopped) else "error: "
        lines = [mark + printable(line, keep="\t") for line in message.strip("\n").split("\n")]
        print("\n".join(lines), file=sys.stderr, flush=True)
    sys.exit(code)


def end(code: int) -> NoReturn:
    """Exit; without the usual farewell from a process group that an error left open (`world.leave`)."""
    if world := sys.modules.get("pipeline.world"):
        world.leave(code)
    sys.exit(code)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as error:
        end(int(error.code or 0))
