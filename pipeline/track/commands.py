"""The command line of this package: `sync`, `reap` and `ui`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.output import json_option, printable, put

if TYPE_CHECKING:
    from pipeline.track.runs import RunInfo

_FILE = click.Path(path_type=Path)
_ROOT = click.option("--root", type=_FILE, default="runs", show_default=True, help="Folder of run directories.")
_URI = click.option("--uri", help="Tracking server or store; default: the one of the runs in the folder.")


def store(uri: str | None, root: Path) -> str:
    """Return the address of the store that is meant.

    Raises:
        ConfigError: if it is none.
    """
    from pipeline.config.schema import Track
    from pipeline.track.uri import tracking_uri

    return tracking_uri(Track(uri=uri), root)


@click.command()
@_ROOT
@_URI
@click.option("--after", "after_s", type=click.FloatRange(0), default=600, show_default=True, help="Seconds of silence.")
@json_option
def reap(root: Path, uri: str | None, after_s: float, json_to: str | None) -> None:
    """Close the runs in MLflow whose process died without a word.

    MLflow shows such runs as running for ever. Those whose journal is at hand are brought up to date from it; where that
    fails the run is closed all the same, and the exit code is 1.
    """
    import json
    import sys
    from dataclasses import asdict

    from pipeline.track.reap import reap as close

    found = close(store(uri, root), after_s)
    if json_to is not None:
        put(json.dumps([asdict(run) for run in found], indent=2) + "\n", json_to)
    elif not found:
        click.echo("no run is silent")
    else:
        for run in found:
            click.echo(f"{printable(run.name)} {run.run_id}: {run.status}, silent for {run.silent_s:.0f} s")
    problems = [run for run in found if run.problem]
    for run in problems:
        click.echo(printable(f"{run.name} {run.run_id}: not brought up to date: {run.problem}"), err=True)
    if problems:
        sys.exit(1)


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@_ROOT
@_URI
@click.option("--port", type=click.IntRange(1, 65535), help="Default: a free one.")
def ui(runs: tuple[str, ...], root: Path, uri: str | None, port: int | None) -> None:
    """Start MLflow's web interface on these runs' store, for this machine only, and print the link to open.

    RUNs (directories, names or MLflow ids) are opened side by side. A store that is a server is only linked to.
    """
    from pipeline.redact import redact
    from pipeline.track import ui as interface
    from pipeline.track.runs import list_runs

    there = list_runs(root) if runs else []
    ids = [_mlflow_id(text, there) for text in runs]
    where = store(uri, root) if uri else _own_store(ids, there) or store(None, root)

    def page(base: str) -> str:
        return interface.link(base, interface.places(where, ids), ids)

    if where.startswith("http"):
        click.echo(page(redact(where)))
    else:
        interface.serve(where, page, lambda text: click.echo(f"{text}\n(ends with Ctrl-C)"), port)


def _own_store(ids: Sequence[str], runs: "Sequence[RunInfo]") -> str | None:
    """Return the store that all of these runs are in, as far as their directories tell."""
    from pipeline.track.cursor import Cursor

    cursors = [Cursor.load(run.run_dir) for run in runs if run.mlflow_run_id in ids]
    stores = {cursor.uri for cursor in cursors if cursor is not None}
    return stores.pop() if len(stores) == 1 else None


def _mlflow_id(text: str, runs: "list[RunInfo]") -> str:
    for run in runs:
        if run.mlflow_run_id and text in (run.name, run.run_dir.name, str(run.run_dir), run.uid, run.mlflow_run_id):
            return run.mlflow_run_id
    return text
