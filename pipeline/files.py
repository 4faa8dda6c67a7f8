"""Files that are either whole or not there.

Not here: what stands in them.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UsageError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, and rename it.

    Raises:
        UsageError: if the directory can't be written to or is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "write error, or no space left"
        raise UsageError(f"{path}: can't write: {reason}; free space, or choose another place") from error


def write_text(path: Path, text: str) -> None:
    """Write a file that a user named: whole or not at all, but into what is there if that is no regular file (`/dev/stdout`).

    Raises:
        UsageError: if it can't be written.
    """
    if not path.is_symlink() and (path.is_file() or not path.exists()):
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))
        return
    try:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"{path}: can't write: {error.strerror}; choose another place") from error
