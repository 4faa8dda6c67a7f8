"""The command line of this package: `compare` and `runs`."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import UsageError
from pipeline.output import printable, put, wrote

if TYPE_CHECKING:
    from pipeline.compare.report import Report

_FILE = click.Path(path_type=Path)
_COSTS = ("seconds", "device_hours", "target:seconds", "target:device_hours")


def _to(flag: str, parameter: str, help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(flag, parameter, is_flag=False, flag_value="-", metavar="[FILE]", help=help_text)


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--metric", default="val/top1", show_default=True, help="What to compare by.")
@click.option("--target", type=float, help="Show steps, time and device-hours until the metric was as good as this.")
@click.option(
    "--group-by", metavar="KEY", help="Pool runs by a config key or tag; default: those that differ in the seed only."
)
@click.option("--baseline", metavar="RUN|GROUP", help="What the others are compared with; default: the first run's group.")
@click.option("--cost", type=click.Choice(_COSTS), default="seconds", show_default=True, help="The cost of the Pareto front.")
@click.option("--fail-if", metavar="CONDITION", help="Exit 1 if it holds, such as 'val/top1 < baseline - 0.3%'.")
@click.option("--root", type=_FILE, default="runs", show_default=True, help="Folder of run directories.")
@click.option("--uri", help="MLflow server or store; default: the one of the runs in the folder.")
@click.option("--experiment", "experiments", multiple=True, help="Look in this experiment only; may be repeated.")
@click.option(
    "--source",
    type=click.Choice(["auto", "journal", "mlflow"]),
    default="auto",
    show_default=True,
    help="Read journals, MLflow, or journals where they are and MLflow where not.",
)
@_to("--json", "json_to", "Print JSON instead, or write it to FILE.")
@_to("--csv", "csv_to", "Print CSV instead, or write it to FILE.")
@click.option("--html", "html_to", type=_FILE, metavar="FILE", help="Write one self-contained page with interactive curves.")
def compare(runs: tuple[str, ...], **options: Any) -> None:
    """Compare RUNs: what differs, which is better, which reached the target first, and at what cost.

    A RUN is a run directory or a folder of them, an id, a name, or tag:KEY=VALUE; without any, all runs of the
    --experiments are meant. Accuracies are fractions: --target 0.75; in conditions 0.3% is 0.003.
    """
    from pipeline.compare import condition, html, report, select

    if options["target"] is not None and not math.isfinite(options["target"]):
        raise UsageError(f"--target {options['target']}: can't be reached; give a finite number, such as 0.75 for 75 %")
    if not runs and not options["experiments"]:
        raise click.UsageError("give RUNs to compare, or an --experiment")
    for flag in ("json_to", "csv_to"):
        _refuse_run(f"--{flag.removesuffix('_to')}", options[flag])
    if options["json_to"] == options["csv_to"] == "-":
        raise UsageError("--json and --csv: both would be printed; give one of them a FILE")
    failing = condition.parse(options["fail_if"]) if options["fail_if"] is not None else None
    metrics = (options["metric"], *(name.removeprefix("best:") for name in (failing.names if failing else ())))
    place = select.Place(options["root"], options["uri"], options["experiments"], options["source"], metrics)
    wanted = report.Wanted(*(options[key] for key in ("metric", "target", "group_by", "baseline", "cost")))
    found = report.make(select.find(runs, place), wanted)
    if options["html_to"] is not None:
        html.write(found, options["html_to"])
        wrote(options["html_to"])
    _emit(found, options["json_to"], options["csv_to"])
    if failing is not None:
        report.check(found, failing)


def _refuse_run(flag: str, value: str | None) -> None:
    """Refuse what follows --json or --csv and is meant as a RUN or a command, which it would take for its FILE."""
    if value is not None and (value.startswith("tag:") or value == "watch" or Path(value).is_dir()):
        raise UsageError(f"{flag} {value}: is no file; to print, write {flag} last, or {flag}=-")


def _emit(found: "Report", json_to: str | None, csv_to: str | None) -> None:
    from pipeline.compare import report, text

    made: list[tuple[str | None, Callable[[], str]]] = [
        (json_to, lambda: json.dumps(report.as_json(found), indent=2, allow_nan=False) + "\n"),
        (csv_to, lambda: report.as_csv(found)),
    ]
    asked = [(to, make) for to, make in made if to is not None]
    for to, make in asked:
        put(make(), to)
    if not asked:
        click.echo(printable(text.render(found), keep="\n"))


@click.group(invoke_without_command=True)
@click.option("--root", type=_FILE, default="runs", show_default=True, help="Folder of run directories.")
@click.option(
    "--where", multiple=True, metavar="CONDITION", help="Such as 'val/top1>0.9', optim.lr=0.1, state=FINISHED; all hold."
)
@click.option("--sort", metavar="KEY", help="Sort by a metric, a config key or a tag; default: oldest first.")
@click.option("--reverse", is_flag=True, help="Largest first.")
@click.option("--group-by", metavar="KEY", help="A table for each value of a config key or tag.")
@click.option("--column", "columns", multiple=True, metavar="KEY", help="Show this too; may be repeated.")
@_to("--json", "json_to", "Print JSON instead, or write it to FILE.")
@click.pass_context
def runs(context: click.Context, /, **options: Any) -> None:
    """List the runs in a folder with their state and results."""
    from pipeline.compare import listing
    from pipeline.track.runs import as_json, list_runs

    if context.invoked_subcommand is not None:
        context.obj = options["root"]
        return
    _refuse_run("--json", options["json_to"])
    query = listing.Query(*(options[key] for key in ("where", "sort", "reverse", "group_by", "columns")))
    if not options["root"].is_dir():
        raise UsageError(f"--root {options['root']}: no such folder; give the one that the runs are in")
    there = list_runs(options["root"])
    found = listing.choose(there, query)
    if options["json_to"] is None and not found:
        click.echo(f"no run {'that fulfils every --where ' if there else ''}in {options['root']}")
    elif options["json_to"] is None:
        click.echo(printable(listing.render(found, query), keep="\n"))
    else:
        put(json.dumps(as_json(found), indent=2, allow_nan=False) + "\n", options["json_to"])


@runs.command("watch")
@click.option("--every", "every_s", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between looks.")
@click.option("--root", type=_FILE, help="Folder of run directories; default: as given to `runs`.")
@click.pass_context
def runs_watch(context: click.Context, /, every_s: float, root: Path | None) -> None:
    """Follow the runs that are training: progress, speed, time left, state. Ends when none is training any more."""
    import sys

    from pipeline.compare import listing

    root = root or context.obj
    if not root.is_dir():
        raise UsageError(f"--root {root}: no such folder; give the one that the runs are in")
    listing.watch(root, every_s, clear=sys.stdout.isatty())
