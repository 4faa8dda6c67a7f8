"""The commands `data index`, `data verify` and `data pack`.

Imports are inside the commands, so that `--help` needs no torch.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import cpus
from pipeline.files import write_text
from pipeline.output import emit, json_option, write_csv

if TYPE_CHECKING:
    from pipeline.data.verify import Report

_FILE = click.Path(path_type=Path)
_CACHE = click.option("--cache", type=_FILE, help="Where indexes are kept; default: as data.cache.")
_THREADS = click.option("--threads", type=click.IntRange(1), default=cpus.available(), show_default=True, help="Threads.")


@click.command("index")
@click.argument("root", type=_FILE)
@_CACHE
@json_option
def index(root: Path, cache: Path | None, json_to: str | None) -> None:
    """Read every image's header in ROOT and keep paths, labels and sizes for training.

    ROOT has train/<class>/* and val/<class>/*, or train.csv and val.csv with the columns path and label, or
    WebDataset tars in train/ and val/. Training does this by itself at the first start; do it beforehand where that
    takes long. An interrupted index goes on where it was.
    """
    from pipeline.data.index import build

    rows = []
    for split in ("train", "val"):
        found = build(root, split, cache)
        row = {"folder": str(found.folder), "images": len(found), "classes": len(found.classes), "bad": len(found.bad)}
        rows.append(row | {"first_bad": found.first_bad()})
    emit(rows, json_to, lambda: _listed("{images:>9,} images   {classes:>5} classes   {bad:>5} unreadable   {folder}", rows))


def _listed(line: str, rows: list[dict[str, Any]]) -> str:
    """Return a line for each row, and below it its first bad images."""
    lines = []
    for row in rows:
        more = row["bad"] - len(row["first_bad"])
        rest = [f"and {more:,} more; `python -m pipeline data verify` lists all"] if more else []
        lines += [line.format(**row), *(" " * 11 + bad for bad in [*row["first_bad"], *rest])]
    return "\n".join(lines)


@click.command("verify")
@click.argument("root", type=_FILE)
@_CACHE
@_THREADS
@click.option("--deep/--quick", default=True, show_default=True, help="Decode every image, or read its header and end only.")
@click.option("--quarantine", type=_FILE, help="Write the list of bad images to FILE, for data.quarantine=FILE.")
@click.option("--csv", "csv_to", type=_FILE, help="Write the bad images as a table to FILE.")
@json_option
def verify(root: Path, **options: Any) -> None:
    """Find every bad image in ROOT, a folder or a pack; exit with 1 if there is any.

    Found are missing and empty files, text, GIFs, cut headers, truncated files, and, by decoding, garbage and holes in
    the middle, which decoders only warn of. Grey, CMYK, progressive and EXIF-rotated JPEGs and other formats behind a
    JPEG's name are fine, and counted.
    """
    from pipeline.data.verify import verify as look

    report = look(root, options["cache"], deep=options["deep"], threads=options["threads"])
    rows = [
        {"split": one.entry.split, "path": str(one.path), "problem": one.problem, "reason": one.entry.reason}
        for one in report.bad
    ]
    if options["quarantine"]:
        lines = "".join(one.entry.line() for one in report.bad)
        write_text(options["quarantine"], lines)
    if options["csv_to"]:
        write_csv(options["csv_to"], rows)
    found = {
        "images": report.images,
        "cpu_ms_per_image": report.cpu_ms_per_image,
        "kinds": report.kinds,
        "problems": report.problems(),
        "bad": rows,
    }
    emit(found, options["json_to"], lambda: _verified(report))
    if report.bad:
        sys.exit(1)


def _verified(report: "Report") -> str:
    lines = [f"{bad.path}: {bad.entry.reason}" for bad in report.bad]
    lines += [f"{n:>9,} {kind}" for kind, n in report.kinds.items()]
    lines += [f"{n:>9,} bad: {problem}" for problem, n in report.problems().items()]
    return "\n".join(
        [*lines, f"{report.images:,} images, {len(report.bad):,} bad ({report.cpu_ms_per_image:.2f} ms of CPU an image)"]
    )


@click.command("pack")
@click.argument("root", type=_FILE)
@click.argument("out", type=_FILE, required=False)
@_CACHE
@_THREADS
@click.option("--short-side", type=click.IntRange(1), help="Reduce larger images to a shorter side of this many pixels.")
@click.option("--max-side", type=click.IntRange(1), help="Reduce larger images to a longer side of this many pixels.")
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="JPEG quality of reduced images.")
@click.option("--shard-images", type=click.IntRange(1), default=4096, show_default=True, help="Images of each tar.")
@click.option("--quarantine", type=_FILE, help="Leave out the images in this list, as `data verify --quarantine` writes it.")
@click.option("--check", is_flag=True, help="Compare every sample of the pack (OUT, or ROOT alone) with its checksum instead.")
@json_option
def pack(root: Path, out: Path | None, **options: Any) -> None:
    """Write the images in ROOT as tar shards into OUT, in the WebDataset layout, with an index; train with data.root=OUT.

    Each image keeps its bytes unless it is to be reduced; one that is to be reduced and is damaged is left out. The same
    command goes on after an interruption; the same images give the same bytes.
    """
    from pipeline.data.pack import Settings
    from pipeline.data.pack import check as compare
    from pipeline.data.pack import pack as write

    if options["check"]:
        found = compare(out or root, options["threads"])
        emit(found, options["json_to"], lambda: _checked(found))
        return
    if out is None:
        raise click.UsageError("Missing argument 'OUT'.")
    settings = Settings(**{key: options[key] for key in ("short_side", "max_side", "quality", "shard_images", "quarantine")})
    rows = write(root, out, settings, options["cache"], options["threads"])
    line = "{images:>9,} images   {bad:>5} left out   {shards:>5} shards   {bytes:>15,} bytes   {folder}"
    emit(rows, options["json_to"], lambda: _listed(line, rows))


def _checked(found: dict[str, Any]) -> str:
    left_out = f"; {found['left_out']:,} more left out as bad" if found["left_out"] else ""
    return "{folder}: {images:,} images in {shards:,} shards are whole".format(**found) + left_out


@click.command("stage")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=_FILE)
@json_option
def stage(source: str, target: Path, json_to: str | None) -> None:
    """Copy a data root or pack from SRC to the folder DST on this node's disk; quick if it is there already.

    SRC is a folder or a URL such as s3://bucket/pack or https://host/pack. Of several processes on a node one copies
    and the others wait. An interrupted copy goes on where it was. Training does this by itself with data.stage_to.
    """
    from dataclasses import asdict

    from pipeline.data.stage import render
    from pipeline.data.stage import stage as copy

    found = copy(source, target)
    emit(asdict(found), json_to, lambda: render(found, target))


COMMANDS = (index, verify, pack, stage)
