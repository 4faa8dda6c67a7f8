"""The commands `bench loader`, `bench scale-data` and `doctor`.

Imports are inside the commands, so that `--help` needs no torch.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from pipeline import cpus
from pipeline.output import emit, json_option, write_csv

_FILE = click.Path(path_type=Path)
_WHERE = click.option("--dir", "folder", type=_FILE, help="Where to put temporary files; default: the system's place.")


@click.command("loader")
@click.option(
    "--images",
    type=click.IntRange(64),
    default=2000,
    show_default=True,
    help="Images of each pass; under 1,000, img/s counts mostly what was loaded ahead.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Passes of each loader; medians count.")
@click.option("--workers", type=click.IntRange(1), default=cpus.available(), show_default=True, help="Threads or workers.")
@click.option("--only", help="Names of loaders, with commas; the first is what the others are compared with.")
@click.option("--csv", "csv_to", type=_FILE, help="Write the table to FILE.")
@click.option("--png", "png_to", type=_FILE, help="Draw a bar chart into FILE.")
@_WHERE
@json_option
def loader(**options: Any) -> None:
    """Compare our loaders with torchvision's, timm's and webdataset's on 100 KB JPEGs: crop, resize to 224, flip.

    All run in this one run, in turn. Processor time is what counts: it does not depend on what else the machine does.
    """
    from pipeline.bench import loader as bench

    names = tuple(options["only"].split(",")) if options["only"] else bench.NAMES
    request = bench.Request(options["images"], options["rounds"], workers=options["workers"], names=names)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options["folder"]) as place:
        rows, skipped = bench.measure(request, Path(place))
    if options["csv_to"]:
        write_csv(options["csv_to"], bench.as_json(rows))
    if options["png_to"]:
        bench.draw(rows, options["png_to"])
    emit(bench.as_json(rows), options["json_to"], lambda: bench.table(rows, skipped))


@click.command("scale-data")
@click.option("--files", type=click.IntRange(0), default=100_000, show_default=True, help="Images of an index of real files.")
@click.option("--entries", type=click.IntRange(0), default=10_000_000, show_default=True, help="Entries of a made-up index.")
@_WHERE
@json_option
def scale_data(**options: Any) -> None:
    """Measure what many images cost at the start of training: opening the index, an epoch's order, the first batch.

    ImageNet has 1281167 images. The files are links to a few photographs; the entries need 60 bytes each on the disk.
    """
    from pipeline.bench import scale

    with tempfile.TemporaryDirectory(prefix="bench-", dir=options["folder"]) as place:
        rows = scale.measure(Path(place), options["files"], options["entries"])
    emit(scale.as_json(rows), options["json_to"], lambda: scale.table(rows))


@click.command()
@json_option
def doctor(json_to: str | None) -> None:
    """Check that this installation can train: GPUs, exchange, image decoding, tracking, shared memory; exit 1 if not."""
    from pipeline import findings
    from pipeline.bench.doctor import examine

    found = examine()
    emit(findings.as_json(found), json_to, lambda: findings.render(found))
    sys.exit(1 if findings.failed(found) else 0)


COMMANDS = (loader, scale_data)
