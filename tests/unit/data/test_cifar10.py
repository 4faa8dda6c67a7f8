"""CIFAR-10's archives, generated here in the layouts of the published ones."""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
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


PARTS = {"data_batch_1": images(1, N), "data_batch_2": images(2, 30), "test_batch": images(3, 20)}


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
    assert cifar10.write(path, tmp_path / "root") == N + 50
    dataset = open_dataset(load(None, [f"data.root={tmp_path / 'root'}", f"data.cache={tmp_path}"]), World())
    assert (len(dataset.train), len(dataset.val), dataset.classes) == (N + 30, 20, cifar10.CLASSES)
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
    with pytest.raises(DataError, match="can't be read as a .tar.gz .it is none, or is cut short.; check"):
        cifar10.write(text, tmp_path / "root")
    with pytest.raises(DataError, match="holds no CIFAR-10"):
        cifar10.write(archive(tmp_path / "other.tar.gz", {"readme": b"hello"}), tmp_path / "root")
    cut = binary(*PARTS["test_batch"])[:-5]
    with pytest.raises(DataError, match=r"test_batch.bin is damaged \(61455 bytes"):
        cifar10.write(archive(tmp_path / "cut.tar.gz", {"test_batch.bin": cut}), tmp_path / "root")
    (tmp_path / "full" / "x").mkdir(parents=True)
    with pytest.raises(DataError, match="is not empty"):
        cifar10.write(text, tmp_path / "full")
