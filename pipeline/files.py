"""Files that are written whole or not at all, and read only if they are files, and no larger than they may be."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import TransientError, UsageError
from pipeline.retry import may_pass

SMALL_BYTES = 1 << 20
"""The most that a configuration or another file that people write may have."""


def open_regular(path: Path | str) -> int:
    """Open a file for reading; return its descriptor.

    Raises:
        OSError: if it can't be opened, or is a folder, a pipe or a device, which would be waited for or read without end.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def read_bytes(path: Path, most: int = SMALL_BYTES) -> bytes:
    """Return what stands in a file of at most `most` bytes.

    Raises:
        OSError: if it can't be read, is no regular file, or is larger.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most >> 20:,} MiB", str(path))
    return data


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, and rename it.

    Whatever `write` raises, nothing is left behind; what is no error of the disk (such as one of a GPU) is raised as it is.

    Raises:
        TransientError: if it can't be written for a reason that may pass, such as a full disk.
        UsageError: if it can't be written for another reason, such as missing permission.
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
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if (cause := _of_the_disk(error)) is None:
            raise
        kind = TransientError if may_pass(cause) else UsageError
        raise kind(f"{path}: can't write: {cause.strerror or cause}; free space, or choose another place") from cause


def _of_the_disk(error: BaseException | None) -> OSError | None:
    """Return the OSError that an error is or hides: torch.save raises a RuntimeError while it handles that of its file."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def write_text(path: Path, text: str) -> None:
    """Write a file that a user named: whole or not at all, but into what is there if that is no regular file (`/dev/stdout`).

    Raises:
        TransientError, UsageError: if it can't be written, as `write_atomically` does.
    """
    if not path.is_symlink() and (path.is_file() or not path.exists()):
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))
        return
    try:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"{path}: can't write: {error.strerror}; choose another place") from error
