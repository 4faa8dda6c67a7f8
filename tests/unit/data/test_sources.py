"""Lists and tars from elsewhere, forged: an index, or one line."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import sources
from pipeline.data.index import build
from pipeline.data.quarantine import Quarantine, read
from pipeline.data.synthetic import make_index
from pipeline.errors import DataError


def tar_of(members: list[tuple[str, bytes]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


LONG = "ü" * 120
TARS = [
    tar_of([(f"{LONG}{n}.jpg", b"x" * 600), (f"{LONG}{n}.cls", b"1")], form)
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    for n in range(2)
]


@given(whole=st.sampled_from(TARS), seed=st.integers(0, 2**32 - 1), how=st.sampled_from(["flip", "cut", "noise", "repeat"]))
def test_any_damage_of_a_tar_is_a_listing_or_one_line(
    whole: bytes, seed: int, how: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng, data = np.random.default_rng(seed), bytearray(whole)
    at = int(rng.integers(len(data)))
    if how == "flip":
        for place in rng.integers(0, 3 * 512, 2).tolist():
            data[place] ^= 1 << int(rng.integers(8))
        head = bytes(data[:148]) + b" " * 8 + bytes(data[156:512])
        data[148:156] = b"%06o\0 " % sum(head)  # a header that is forged has the right checksum
    elif how == "cut":
        del data[at:]
    elif how == "noise":
        data[at : at + 20] = rng.bytes(len(data[at : at + 20]))
    else:
        data[at:at] = data[: 512 * int(rng.integers(1, 4))]
    folder = tmp_path_factory.mktemp("tar")
    (folder / "a.tar").write_bytes(data)
    try:
        found = sources.read_tars(folder, [folder / "a.tar"])
        assert all(0 <= label < len(found.classes) for label in found.labels)
    except (DataError, OSError) as error:
        assert "\n" not in str(error) and "Error" not in str(error)


@given(text=st.text(st.sampled_from('path,label\n\r"\0ab./\udcff'), max_size=60))
def test_any_text_as_a_list_is_a_listing_or_one_line(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    table = tmp_path_factory.mktemp("list") / "train.csv"
    table.write_text(f"path,label\n{text}", errors="surrogateescape", newline="")
    try:
        found = sources.read_csv(table)
        assert len(found.names) == len(found.labels) > 0
    except DataError as error:
        assert "\n" not in str(error)


@given(data=st.binary(max_size=60) | st.text(st.sampled_from("train\tval\n12-²a\\")).map(str.encode))
def test_any_bytes_as_a_list_of_bad_images_are_a_list_or_one_line(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("list") / "bad.tsv"
    path.write_bytes(data)
    index = make_index("train", 10, 2)
    read(path, torn=True)  # of a run's own file no line is refused
    try:
        Quarantine(index, "train", 1.0, [path])
    except DataError as error:
        assert "\n" not in str(error) and str(error).startswith(f"data.quarantine: {path}: not a quarantine file")


def test_pipes_and_devices_are_refused_at_once(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^data.quarantine: /dev/zero: not a regular file; "):
        read(Path("/dev/zero"))
    os.mkfifo(small / "train.csv")
    with pytest.raises(DataError, match="train.csv: not a regular file; make it readable, or remove it"):
        build(small, "train", tmp_path)
    (small / "train.csv").unlink()
    (small / "train" / "classes.txt").symlink_to("/dev/zero")
    (small / "train" / "a.tar").write_bytes(TARS[0])
    with pytest.raises(DataError, match="classes.txt: not a regular file"):
        build(small, "train", tmp_path)
    (small / "train" / "a.tar").unlink()
    os.mkfifo(small / "train" / "a.tar")
    with pytest.raises(DataError, match="a.tar: not a regular file"):
        build(small, "train", tmp_path)
