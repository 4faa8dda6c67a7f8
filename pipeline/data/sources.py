"""Where the images of a split are listed: class folders, a CSV file, or WebDataset tars made elsewhere.

Not here: reading images (`scan`), and packs of our own, which bring an index (`store`).
"""

import csv
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pipeline.data import image
from pipeline.data.scan import Listing, some, walk
from pipeline.errors import DataError
from pipeline.units import count


def exists(folder: Path) -> bool:
    """Tell whether there is anything that lists the images of a split."""
    return folder.is_dir() or folder.with_suffix(".csv").is_file()


def find(folder: Path) -> Listing:
    """List the images of a split: from `folder.csv`, from the tars in `folder`, or from its class folders.

    Raises:
        DataError: if there is none of them, or one can't be used.
        OSError: if a folder or file can't be read.
    """
    table = folder.with_suffix(".csv")
    if table.is_file():
        return read_csv(table)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; data.root needs train/<class>/* and val/<class>/*")
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    return read_tars(folder, tars) if tars else walk(folder)


def read_csv(table: Path) -> Listing:
    """Read a CSV file with the columns `path` (relative to the file's folder, or absolute) and `label` (a class's name).

    Raises:
        DataError: if it lacks a column or a value, or lists nothing.
        OSError: if it can't be read.
    """
    stamps = {str(table): table.stat().st_mtime_ns}
    names: list[str] = []
    labels: list[str] = []
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = {"path", "label"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(f"{table}: no column {' and none '.join(sorted(missing))}; its first line must name path and label")
        for row in rows:
            if not (row["path"] and row["label"]):
                raise DataError(f"{table}: line {rows.line_num} lacks a path or a label; fill it in or remove it")
            names.append(row["path"])
            labels.append(row["label"])
    if not names:
        raise DataError(f"{table}: lists no image; add lines of path,label")
    classes = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(classes)}
    return Listing(table.parent, tuple(classes), names, [numbers[label] for label in labels], stamps)


class _Member(NamedTuple):
    shard: int
    name: str
    start: int
    length: int
    label: int


def read_tars(folder: Path, tars: list[Path]) -> Listing:
    """List the images in WebDataset tars: of each sample its image and its `.cls`, a class's number as text.

    `classes.txt` beside the tars names the classes, one a line; without it their numbers do.

    Raises:
        DataError: if a tar is broken or a sample lacks its label.
        OSError: if a tar can't be read.
    """
    table = folder / "classes.txt"
    stamps = {str(path.name): path.stat().st_mtime_ns for path in [*tars, table] if path.exists()}
    bar = tqdm(tars, desc=f"listing {folder}", unit="tar", disable=None, leave=False, delay=1)
    members = [member for number, tar in enumerate(bar) for member in _read_tar(number, tar)]
    if not members:
        raise DataError(f"{folder}: no image with a .cls beside it in {count(len(tars), 'tar')}; nothing to train on")
    labels = [member.label for member in members]
    classes = table.read_text().split("\n") if table.is_file() else [str(label) for label in range(max(labels) + 1)]
    classes = [name for name in classes if name.strip()]
    if max(labels) >= len(classes):
        raise DataError(
            f"{table}: names {count(len(classes), 'class', 'classes')}, but there is a label {max(labels)}; name all"
        )
    places = {
        "shard": np.array([member.shard for member in members]),
        "starts": np.array([member.start for member in members]),
        "lengths": np.array([member.length for member in members]),
        "order": np.arange(len(members)),
        "checksums": np.empty(0, np.uint64),
    }
    names = [member.name for member in members]
    return Listing(folder, tuple(classes), names, labels, stamps, tuple(path.name for path in tars), places)


def _read_tar(number: int, path: Path) -> Iterator[_Member]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                # WebDataset's rule: what stands before the first dot of the file's name is the sample's key.
                key = os.path.join(PurePosixPath(member.name).parent, PurePosixPath(member.name).name.split(".")[0])  # noqa: PTH118
                if image.is_image(PurePosixPath(member.name).name):
                    images[key] = member
                elif member.name.endswith(".cls"):
                    content = tar.extractfile(member)
                    labels[key] = int(content.read()) if content else -1
    except (tarfile.TarError, ValueError) as error:
        raise DataError(f"{path}: not a whole WebDataset tar ({error}); copy it again") from error
    lost = [member.name for key, member in images.items() if labels.get(key, -1) < 0]
    if lost:
        raise DataError(f"{path}: {count(len(lost), 'image')} with no label in a .cls file ({some(lost)}); add them")
    for key, member in images.items():
        yield _Member(number, member.name, member.offset_data, member.size, labels[key])
