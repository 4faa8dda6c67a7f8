"""Where the images of a split are listed: class folders, a CSV file, or WebDataset tars made elsewhere."""

import csv
import io
import os
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pipeline.data import image
from pipeline.data.archive import open_tar
from pipeline.data.scan import Listing, some, walk
from pipeline.errors import DataError
from pipeline.files import open_regular, read_bytes
from pipeline.units import count


def exists(folder: Path) -> bool:
    """Tell whether there is anything that lists the images of a split."""
    return folder.is_dir() or _is_list(folder.with_suffix(".csv"))


def find(folder: Path) -> Listing:
    """List the images of a split: from `folder.csv`, from the tars in `folder`, or from its class folders.

    Raises:
        DataError: if there is none of them, or one can't be used.
        OSError: if a folder or file can't be read.
    """
    table = folder.with_suffix(".csv")
    if _is_list(table):
        return read_csv(table)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; data.root needs train/<class>/* and val/<class>/*")
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    return read_tars(folder, tars) if tars else walk(folder)


def _is_list(table: Path) -> bool:
    """Tell whether a list is meant: a pipe or device of its name is one, and refused when it is read."""
    return table.exists() and not table.is_dir()


def read_csv(table: Path) -> Listing:
    """Read a CSV file with the columns `path` (relative to the file's folder, or absolute) and `label` (a class's name).

    Raises:
        DataError: if it lacks a column or a value, or lists nothing.
        OSError: if it can't be read.
    """
    stamps = {str(table): table.stat().st_mtime_ns}
    try:
        names, labels = _read_rows(table)
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{table}: not a CSV file ({error}); its first line must name path and label") from error
    if not names:
        raise DataError(f"{table}: lists no image; add lines of path,label")
    classes = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(classes)}
    return Listing(table.parent, tuple(classes), names, [numbers[label] for label in labels], stamps)


def _read_rows(table: Path) -> tuple[list[str], list[str]]:
    names: list[str] = []
    labels: list[str] = []
    with os.fdopen(open_regular(table), newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = {"path", "label"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(f"{table}: no column {' and none '.join(sorted(missing))}; its first line must name path and label")
        for row in rows:
            if not (row["path"] and row["label"]) or "\0" in row["path"]:
                raise DataError(f"{table}: line {rows.line_num} lacks a path or a label; fill it in or remove it")
            names.append(row["path"])
            labels.append(row["label"])
    return names, labels


def outside(table: bytes) -> list[str]:
    """Return the paths in a CSV file of images that are absolute or lead out of its folder; none if it is no such file."""
    try:
        rows = csv.DictReader(io.StringIO(table.decode("utf-8-sig"), newline=""))
        paths = [row.get("path") or "" for row in rows]
    except (UnicodeDecodeError, csv.Error):
        return []
    return [path for path in paths if path.startswith("/") or f"{posixpath.normpath(path)}/".startswith("../")]


_MOST_CLASSES = 1_000_000
"""Larger labels in tars without a list of classes are taken for a mistake, such as a sample's number."""
_LABEL_BYTES = 64


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
        DataError: if a tar is broken or compressed, or a sample lacks its label or has several images.
        OSError: if a tar can't be read.
    """
    table = folder / "classes.txt"
    stamps = {str(path.name): path.stat().st_mtime_ns for path in [*tars, table] if path.exists()}
    bar = tqdm(tars, desc=f"listing {folder}", unit="tar", disable=None, leave=False, delay=1)
    members = [member for number, tar in enumerate(bar) for member in _read_tar(number, tar)]
    if not members:
        raise DataError(f"{folder}: no image with a .cls beside it in {count(len(tars), 'tar')}; nothing to train on")
    labels = [member.label for member in members]
    classes = _class_names(table, max(labels))
    places = {
        "shard": np.array([member.shard for member in members]),
        "starts": np.array([member.start for member in members]),
        "lengths": np.array([member.length for member in members]),
        "order": np.arange(len(members)),
        "checksums": np.empty(0, np.uint64),
    }
    names = [member.name for member in members]
    return Listing(folder, tuple(classes), names, labels, stamps, tuple(path.name for path in tars), places)


def _class_names(table: Path, largest: int) -> list[str]:
    if not table.exists():
        if largest >= _MOST_CLASSES:
            raise DataError(f"{table.parent}: there is a label {largest}, which is no class's number; mend the .cls files")
        return [str(label) for label in range(largest + 1)]
    try:
        classes = [
            name
            for name in read_bytes(table, _MOST_CLASSES * 256).decode("utf-8").replace("\r\n", "\n").split("\n")
            if name.strip()
        ]
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    if largest >= len(classes):
        raise DataError(f"{table}: names {count(len(classes), 'class', 'classes')}, but there is a label {largest}; name all")
    return classes


def _read_tar(number: int, path: Path) -> Iterator[_Member]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    end = 0
    try:
        # Only plain tars: where bytes are in a compressed one is of no use.
        with open_tar(path) as tar:
            for member in tar:
                end = member.offset_data + (-(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE if member.isreg() else 0)
                if member.isreg():
                    _sort_in(path, tar, member, images, labels)
            _check_end(path, end)
    except tarfile.TarError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a whole, uncompressed tar ({reason}); copy it again, or unpack it") from error
    lost = [member.name for key, member in images.items() if labels.get(key, -1) < 0]
    if lost:
        raise DataError(f"{path}: {count(len(lost), 'image')} with no label in a .cls file ({some(lost)}); add them")
    for key, member in images.items():
        yield _Member(number, member.name, member.offset_data, member.size, labels[key])


def _sort_in(
    path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, images: dict[str, tarfile.TarInfo], labels: dict[str, int]
) -> None:
    name = PurePosixPath(member.name)
    # WebDataset's rule: what stands before the first dot of the file's name is the sample's key.
    key = str(name.parent / name.name.split(".")[0])
    if image.is_image(name.name):
        if key in images:
            raise DataError(f"{path}: two images of one sample, {images[key].name} and {member.name}; keep one, or rename it")
        images[key] = member
    elif name.name.endswith(".cls"):
        content = tar.extractfile(member)
        text = content.read(_LABEL_BYTES) if content else b""
        if not text.strip().isdigit():
            raise DataError(f"{path}: {member.name} holds {text[:20]!r} instead of a class's number; write numbers from 0")
        labels[key] = int(text)


def _check_end(path: Path, end: int) -> None:
    """Refuse a tar that does not end after its last readable member: at a broken header tarfile just stops."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.RECORDSIZE)
    if len(rest) < tarfile.BLOCKSIZE or any(rest):
        raise tarfile.ReadError(f"broken after {end:,} bytes" if rest else "no end mark")
