import errno
import os
from pathlib import Path

import pytest
import torch

from pipeline.errors import TransientError, UsageError
from pipeline.files import write_atomically, write_text


def test_a_file_is_replaced_whole_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    for text in ("one", "two"):
        write_atomically(path, lambda p, text=text: p.write_text(text))
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, TransientError), (errno.ESTALE, TransientError), (errno.EPERM, UsageError)]
)
def test_a_write_that_fails_leaves_the_old_file_alone_and_tells_trouble_from_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    path = tmp_path / "b.txt"
    path.write_text("old")

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind, match=rf"b.txt: can't write: {os.strerror(code)}; free space"):
        write_atomically(path, lambda p: p.write_text("new"))
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["b.txt"]


def test_an_error_that_is_none_of_the_disk_is_not_called_one(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.touch()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="CUDA error"):
        write_atomically(tmp_path / "b.pt", write)
    assert not list(tmp_path.iterdir())


def test_the_error_behind_the_one_of_torch_is_named(tmp_path: Path) -> None:
    def write(_: Path) -> None:
        with open("/dev/full", "wb") as full:  # noqa: PTH123
            torch.save({"w": torch.zeros(100_000)}, full)

    with pytest.raises(TransientError, match="b.pt: can't write: No space left on device"):
        write_atomically(tmp_path / "b.pt", write)


def test_what_is_no_regular_file_is_written_into_not_replaced(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through" and pipe.is_fifo()
    os.close(reader)
    with pytest.raises(UsageError, match="can't write"):
        write_text(tmp_path, "a folder")
