"""Folders that appear whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a new folder beside `final` that replaces it at the end of the `with` block, and vanishes if the block fails.

    The move is flushed to the disk; what is in the folder is not. Where two processes do so at once, one of the two results
    stays.

    Raises:
        OSError: if the folder can't be made or moved.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    new = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    new.mkdir()
    try:
        yield new
        _replace(new, final)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace(new: Path, final: Path) -> None:
    # A folder can't be renamed onto one that isn't empty, so the old one steps aside first.
    old = new.with_name(f"{new.name}.old")
    try:
        if final.exists():
            final.rename(old)
        new.rename(final)
        parent = os.open(final.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError:
        if not final.is_dir():  # else another process was faster, and its result is as good
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
