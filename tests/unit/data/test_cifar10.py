"""CIFAR-10's archives, generated here in the layouts of the published ones."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import load
from pipeline.data import cifar10
from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError
from pipeline.world import World

N = 1100  # more than the 1,000 after which a pickled list comes in pieces


def images(seed: int, n: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, 10, n).tolist()


PARTS = {
    "data_batch_1": images(1, N),
    **{f"data_batch_{n}": images(10 + n, 10) for n in range(2, 6)},
    "test_batch": images(3, 20),
}


def python2(pixels: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2's cPickle wrote: protocol 2 with 8-bit strings, numpy's arrays through _reconstruct."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def whole(n: int) -> bytes:
        return b"K" + bytes([n]) if n < 256 else b"J" + struct.pack("<i", n)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + whole(0) + b"\x85" + text(b"b") + b"\x87R(" + whole(1)
        + whole(len(pixels)) + whole(3072) + b"\x86cnumpy\ndtype\n" + text(b"u1") + whole(0) + whole(1) + b"\x87R(" + whole(3)
        + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff" + whole(0) + b"tb\x89" + text(pixels.tobytes()) + b"tb"
    )  # fmt: skip
    pieces = [labels[at : at + 1000] for at in range(0, len(labels), 1000)]
    numbers = b"]" + b"".join(b"(" + b"".join(map(whole, piece)) + b"e" for piece in pieces)
    names = b"](" + text(b"a.png") + text(b"b.png") + b"e"
    return (
        b"\x80\x02}(" + text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + numbers + text(b"data")
        + array + text(b"filenames") + names + b"u."
    )  # fmt: skip


def python3(pixels: np.ndarray, labels: list[int]) -> bytes:
    return pickle.dumps({b"data": pixels, b"labels": labels, b"filenames": [b"x.png"] * len(labels)}, protocol=2)


def binary(pixels: np.ndarray, labels: list[int]) -> bytes:
    return np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1).tobytes()


def archive(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(f"cifar-10/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("version", "ending"), [(python2, ""), (python3, ""), (binary, ".bin")])
def test_every_version_becomes_the_usual_layout(version, ending: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    content = {f"{name}{ending}": version(*part) for name, part in PARTS.items()} | {"batches.meta": b"labels"}
    path = archive(tmp_path / "cifar.tar.gz", content)
    assert cifar10.write(path, tmp_path / "root") == N + 60
    dataset = open_dataset(load(None, [f"data.root={tmp_path / 'root'}", f"data.cache={tmp_path}"]), World())
    assert (len(dataset.train), len(dataset.val), dataset.classes) == (N + 40, 20, cifar10.CLASSES)
    pixels, labels = PARTS["test_batch"]
    for place in range(20):
        (file,) = (tmp_path / "root" / "val" / cifar10.CLASSES[labels[place]]).glob(f"*-{place:05d}.png")
        assert np.array_equal(np.asarray(Image.open(file)), pixels[place].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "touched"),)  # type: ignore[return-value]

    data = pickle.dumps({"labels": [1], "data": Evil()})
    path = archive(tmp_path / "evil.tar.gz", {"data_batch_1": data, "test_batch": data})
    with pytest.raises(DataError, match="data_batch_1 is damaged"):
        cifar10.write(path, tmp_path / "root")
    assert not (tmp_path / "touched").exists() and not (tmp_path / "root").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.tar.gz"
    text.write_text("no archive")
    with pytest.raises(
        DataError, match="can't be read as a .tar.gz .it is none, or is cut short, damaged or too large.; check"
    ):
        cifar10.write(text, tmp_path / "root")
    with pytest.raises(DataError, match="holds no CIFAR-10"):
        cifar10.write(archive(tmp_path / "other.tar.gz", {"readme": b"hello"}), tmp_path / "root")
    cut = binary(*PARTS["test_batch"])[:-5]
    with pytest.raises(DataError, match=r"test_batch.bin is damaged \(61455 bytes"):
        cifar10.write(archive(tmp_path / "cut.tar.gz", {"test_batch.bin": cut}), tmp_path / "root")
    (tmp_path / "full" / "x").mkdir(parents=True)
    with pytest.raises(DataError, match="is not empty"):
        cifar10.write(text, tmp_path / "full")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: is a file; choose another folder"):
        cifar10.write(text, tmp_path / "file")


def whole(**changed: bytes) -> dict[str, bytes]:
    return {f"{name}.bin": binary(*images(1, 3)) for name in PARTS} | changed


def test_a_part_of_the_archive_is_refused(tmp_path: Path) -> None:
    content = whole()
    del content["data_batch_4.bin"]
    with pytest.raises(DataError, match=r"holds a part of CIFAR-10 only \(data_batch_4 missing\); copy the archive again"):
        cifar10.write(archive(tmp_path / "part.tar.gz", content), tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("value", [0, 100])
def test_damage_within_the_compression_is_one_line(value: int, tmp_path: Path) -> None:
    """Noise is stored as it is, where only the checksum at the end tells; other pixels are coded, and the code breaks."""
    pixels, labels = images(1, N)
    content = whole() | {"data_batch_1.bin": binary(pixels if not value else np.minimum(pixels, value), labels)}
    path = archive(tmp_path / "flipped.tar.gz", content)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"flipped.tar.gz: .*damaged"):
        cifar10.write(path, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_links_and_names_that_lead_elsewhere_are_left_alone(tmp_path: Path) -> None:
    secret = tmp_path / "data_batch_1"
    secret.write_bytes(binary(*images(1, 1)))
    path = tmp_path / "linked.tar"
    with tarfile.open(path, "w") as tar:
        for name, target in (("data_batch_1", str(secret)), ("../../data_batch_2", "nowhere")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    with pytest.raises(DataError, match="holds no CIFAR-10"):
        cifar10.write(path, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_label_below_zero_is_damage(tmp_path: Path) -> None:
    path = archive(tmp_path / "cifar.tar.gz", {"test_batch": python3(images(1, 2)[0], [3, -1])})
    with pytest.raises(DataError, match="test_batch is damaged .2 images, but 2 labels from -1 to 3"):
        cifar10.write(path, tmp_path / "root")


def bomb(path: Path, *members: tuple[str, int, bytes]) -> Path:
    """Write members whose headers claim a size, whatever follows them."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for name, size, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = size, tarfile.XHDTYPE if name == "header" else tarfile.REGTYPE
            file.write(info.tobuf(tarfile.GNU_FORMAT) + data)
    return path


@pytest.mark.parametrize(
    "members",
    [
        [("data_batch_1", 100 << 20, bytes(100 << 20))],
        [("junk", 100 << 20, bytes(100 << 20)), ("data_batch_1", 1 << 40, b"")],
        [("junk", 1 << 40, bytes(1000))],
        [("header", 3 << 30, bytes(80 << 20))],
        [("junk", (1 << 63) - 1, b"")],
    ],
    ids=["batch", "second", "other file", "extended header", "largest"],
)
def test_a_bomb_is_refused_before_it_is_unpacked(members: list[tuple[str, int, bytes]], tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.tar.gz", *members)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bomb.tar.gz: can't be read as a .tar.gz \(it is none, .* or too large\); check"):
        cifar10.write(path, tmp_path / "root")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    assert not (tmp_path / "root").exists()


def test_a_pickle_of_millions_of_values_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "many.tar.gz", {"data_batch_1": b"N" * 210_000})
    with pytest.raises(DataError, match="data_batch_1 is damaged .far too many values in it"):
        cifar10.write(path, tmp_path / "root")


def test_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar.gz")
    for path in (tmp_path / "pipe.tar.gz", Path("/dev/zero")):
        with pytest.raises(DataError, match=f"^{path}: can't be read as a .tar.gz .not a regular file.; check"):
            cifar10.write(path, tmp_path / "root")


def plain() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in whole().items():
            info = tarfile.TarInfo(f"ünïcode/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


SMALL = plain()


@given(seed=st.integers(0, 2**32 - 1), how=st.sampled_from(["flip", "cut", "zero"]))
def test_any_damage_of_an_archive_is_one_line_or_changes_nothing(seed: int, how: str) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(SMALL)
    at = int(rng.integers(1, len(data)))
    if how == "flip":
        data[at] ^= 1 << int(rng.integers(8))
    elif how == "zero":
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    else:
        del data[at:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tar")
        path.write_bytes(data)
        try:
            assert cifar10.write(path, Path(folder, "root")) == 18
        except DataError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path))
            assert [entry.name for entry in Path(folder).iterdir()] == ["a.tar"]
