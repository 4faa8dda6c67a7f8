import os
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.files import write_atomically, write_text


def test_a_file_is_replaced_whole_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    for text in ("one", "two"):
        write_atomically(path, lambda p, text=text: p.write_text(text))
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.txt"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"b.txt: can't write: No space left on device; free space"):
        write_atomically(path, lambda p: p.write_text("new"))
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["b.txt"]


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
