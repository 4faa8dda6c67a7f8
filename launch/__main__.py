"""The command line of the launcher.

Not here: training itself; every launcher ends in `python -m pipeline train`.
"""

import sys

import click

from pipeline.errors import PipelineError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Start training processes."""


@cli.command()
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--nproc-per-node", type=click.IntRange(1), help="Processes; default: one for each GPU, one without GPUs.")
def local(config: str, overrides: tuple[str, ...], nproc_per_node: int | None) -> None:
    """Train as the file CONFIG says with several processes on this machine, as `torchrun --standalone` does."""
    from launch.local import run

    sys.exit(run([config, *overrides], nproc_per_node))


def main() -> None:
    """Run the command line; errors become one line on standard error and an exit code."""
    try:
        cli.main(prog_name="python -m launch", standalone_mode=False)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()
