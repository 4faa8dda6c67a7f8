"""CIFAR-10's archives, in the python and the binary version, as a folder of PNGs in ImageNet's layout.

The python version's files are pickles, which can run code; they are never unpickled: their opcodes are read as data, and
only the pixels and the labels are taken out.

Source: Krizhevsky 2009; the layouts are described at https://www.cs.toronto.edu/~kriz/cifar.html
"""

import pickletools
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.archive import open_tar
from pipeline.data.folders import whole_folder
from pipeline.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32
_MOST_BYTES = 1 << 29
"""Of an archive unpacked: those that are published have 186 MB."""
_MOST_OPCODES = 200_000
"""Of a batch's pickle: those that are published have about 40,000."""
Part = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Pixels, uint8[N, 3, 32, 32], and labels, uint8[N]."""


def write(archive: Path, root: Path) -> int:
    """Write the archive's images to `root/train/<class>/` and `root/val/<class>/`, and return their number.

    Raises:
        DataError: if the archive is not CIFAR-10's, or is damaged, or the folder exists already or can't be written.
    """
    root = root.expanduser().absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        state = "is not empty" if root.is_dir() else "is a file"
        raise DataError(f"{root}: {state}; choose another folder, or remove it")
    count, names = 0, set()
    try:
        with open_tar(archive, zipped=True, most=_MOST_BYTES) as tar, whole_folder(root) as new:
            for name, number, (pixels, labels) in _parts(tar, archive):
                _write_part(new / _BATCHES[name], number, pixels, labels)
                count += len(labels)
                names.add(name)
            _refuse_a_part(archive, names)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is none, or is cut short, damaged or too large"
        raise DataError(f"{archive}: can't be read as a .tar.gz ({reason}); check the path, or copy it again") from error
    return count


_BATCHES = {**{f"data_batch_{n}": "train" for n in range(1, 6)}, "test_batch": "val"}


def _refuse_a_part(archive: Path, names: set[str]) -> None:
    missing = [name for name in _BATCHES if name not in names]
    if not names:
        raise DataError(
            f"{archive}: holds no CIFAR-10 (data_batch_1 to 5 and test_batch); give cifar-10-python.tar.gz or -binary.tar.gz"
        )
    if missing:
        raise DataError(f"{archive}: holds a part of CIFAR-10 only ({', '.join(missing)} missing); copy the archive again")


def _parts(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, int, Part]]:
    """Yield the name, a number and the content of each batch file, in the archive's order; links are not followed."""
    assert tar.fileobj is not None
    for number, member in enumerate(tar):
        file_name = Path(member.name).name
        name = file_name.removesuffix(".bin")
        file = tar.extractfile(member) if name in _BATCHES and member.isfile() else None
        if file is None:
            continue
        data = file.read()
        try:
            part = _binary(data) if file_name.endswith(".bin") else _python(data)
        except (ValueError, IndexError) as error:
            raise DataError(f"{archive}: {member.name} is damaged ({error}); copy the archive again") from error
        yield name, number, part
    while tar.fileobj.read(1 << 20):  # to the very end, where the checksum of the compression is
        pass


def _binary(data: bytes) -> Part:
    """Read records of one byte of label and 3,072 of pixels."""
    if not data or len(data) % (1 + _PIXELS):
        raise ValueError(f"{len(data)} bytes are no whole number of records")
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return _checked(records[:, 1:], records[:, 0])


def _python(data: bytes) -> Part:
    """Read the pixels and labels among a pickle's opcodes: the one long string, and the numbers after the key `labels`."""
    pixels, labels, after_key, in_list = b"", [], False, False
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if number > _MOST_OPCODES:
            raise ValueError("far too many values in it")
        if isinstance(argument, str | bytes) and len(argument) >= _PIXELS:
            pixels = argument if isinstance(argument, bytes) else argument.encode("latin-1")
        elif argument in ("labels", b"labels"):
            after_key = True
        elif after_key and opcode.name == "MARK":
            in_list = True
        elif opcode.name in ("APPENDS", "SETITEMS"):
            # A list longer than 1,000 comes in pieces, each with a MARK; the next key ends it.
            in_list = False
        elif isinstance(argument, str | bytes):
            after_key = False
        elif in_list and isinstance(argument, int) and opcode.name.startswith("BININT"):
            labels.append(argument)
    if len(pixels) % _PIXELS or not pixels:
        raise ValueError("no pixels in it")
    return _checked(np.frombuffer(pixels, np.uint8).reshape(-1, _PIXELS), np.array(labels, np.int64))


def _checked(pixels: NDArray[np.uint8], labels: NDArray[Any]) -> Part:
    lowest, highest = labels.min(initial=0), labels.max(initial=0)
    if len(pixels) != len(labels) or lowest < 0 or highest >= len(CLASSES):
        raise ValueError(f"{len(pixels)} images, but {len(labels)} labels from {lowest} to {highest}")
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.uint8)


def _write_part(folder: Path, number: int, pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for place, (image, label) in enumerate(zip(pixels.transpose(0, 2, 3, 1), labels, strict=True)):
        Image.fromarray(image).save(folder / CLASSES[label] / f"{number}-{place:05d}.png", compress_level=1)
