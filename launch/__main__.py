"""The command line of the launcher."""

import sys
from typing import Any

import click

from launch.commands import COMMANDS
from launch.early import leave_on_signals
from pipeline.errors import PipelineError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Start training processes."""


@cli.command()
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--nproc-per-node", type=click.IntRange(1), help="Processes; default: one for each GPU, one without GPUs.")
def local(config: str, overrides: tuple[str, ...], nproc_per_node: int | None) -> None:
    """Train as the file CONFIG says with several processes on this machine, as `torchrun --standalone` does.

    It starts nothing again: after trouble that may pass (exit code 69) too, the same command with run.dir=DIR goes on.
    """
    leave_on_signals()
    from launch.local import run

    sys.exit(run([config, *overrides], nproc_per_node))


@cli.command(context_settings={"ignore_unknown_options": False})
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--nnodes", default="1", show_default=True, help="Nodes, or MIN:MAX of them: they may be lost and come back.")
@click.option("--nproc-per-node", type=click.IntRange(1), help="Processes; default: one for each GPU, one without GPUs.")
@click.option("--rdzv-endpoint", metavar="HOST:PORT", help="Where the nodes meet: a port on one of them.")
@click.option("--rdzv-id", default="train", show_default=True, help="A name that the nodes of one training share.")
def torchrun(config: str, overrides: tuple[str, ...], **how: Any) -> None:
    """Train as the file CONFIG says, on several nodes: give the same command on each.

    As `torchrun --rdzv-backend=c10d -m pipeline train` does, but signals reach the training, a stop on request is not
    taken for a failure (exit code 75), and bad input (2) or what would fail again (70) is not tried again.
    """
    leave_on_signals()
    from launch.torchrun import Meeting, run

    sys.exit(run(config, overrides, Meeting(**how)))


for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line; errors become one line on standard error and an exit code."""
    try:
        cli.main(prog_name="python -m launch", standalone_mode=False)
    except PipelineError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as error:
        from pipeline.__main__ import end

        end(int(error.code or 0))
