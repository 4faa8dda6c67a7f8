import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from pipeline.data import image, scan, store
from pipeline.data.index import build, open_index
from pipeline.data.quarantine import Quarantine
from pipeline.data.verify import verify
from pipeline.errors import DataError


def touch(folder: Path) -> None:
    """Make the folder's mtime new whatever the file system's resolution is."""
    now = folder.stat().st_mtime_ns + 10**9
    os.utime(folder, ns=(now, now))


def kept(cache: Path) -> Path:
    (place,) = cache.iterdir()
    return place


def test_samples_and_labels_are_image_folder_s(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(images, root)
    nested = root / "train" / "n01 first" / "zz nested" / "more"
    nested.mkdir(parents=True)
    shutil.copy(root / "train" / "n01 first" / "h tiny.bmp", nested / "UPPER.BMP")
    (root / "train" / "n01 first" / "notes.txt").write_text("not an image")
    (root / "train" / "Another").mkdir()
    shutil.copy(nested / "UPPER.BMP", root / "train" / "Another" / "x.PnG")
    expected = ImageFolder(str(root / "train"))
    # What ImageFolder would take for a class and an image.
    (root / "train" / ".cache").mkdir()
    (root / "train" / "n01 first" / "._a plain.JPEG").write_bytes(b"not an image")
    index = build(root, "train", tmp_path / "cache")
    assert [(str(index.path(i)), int(index.labels[i])) for i in range(len(index))] == expected.samples
    assert list(index.classes) == expected.classes


def test_sizes_are_those_stored(images: Path, cache: Path) -> None:
    index = open_index(images, "val", cache)
    for sample in range(len(index)):
        with Image.open(index.path(sample)) as image:
            assert (index.widths[sample], index.heights[sample]) == image.size


def test_paths_are_nul_padded_bytes(images: Path, cache: Path) -> None:
    index = open_index(images, "train", cache)
    ids = np.array([7, 1, 0])
    table = index.paths(ids)
    assert table.dtype == np.uint8
    assert [os.fsdecode(row.tobytes().rstrip(b"\0")) for row in table] == [str(index.path(int(i))) for i in ids]
    assert table.shape == (3, max(len(os.fsencode(index.path(int(i)))) for i in ids))


def test_an_index_is_opened_by_mmap_and_not_made_again(small: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build(small, "train", cache)
    place = kept(cache)
    np.save(place / "labels.npy", np.array([1, 1, 1, 0, 0, 1], np.uint8))
    store.seal(place, json.loads((place / "meta.json").read_text()))
    index = open_index(small, "train", cache)
    assert index.labels.tolist() == [1, 1, 1, 0, 0, 1]
    assert all(isinstance(array.base, np.memmap) for array in (index.names, index.offsets, index.labels, index.widths))


def test_a_changed_folder_is_indexed_again(small: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    nested = small / "train" / "dog" / "nested"
    nested.mkdir()
    assert len(open_index(small, "train", cache)) == 6
    shutil.copy(small / "train" / "cat" / "0.jpg", nested / "9.jpg")
    touch(nested)
    assert len(open_index(small, "train", cache)) == 7
    (small / "train" / "cat" / "0.jpg").unlink()
    touch(small / "train" / "cat")
    assert len(open_index(small, "train", cache)) == 6
    assert len(list(cache.iterdir())) == 1


def cut(place: Path) -> None:
    path = place / "offsets.npy"
    path.write_bytes(path.read_bytes()[:-8])


def shorten(place: Path) -> None:
    np.save(place / "widths.npy", np.ones(3, np.int32))


def pickled(place: Path) -> None:
    np.save(place / "widths.npy", np.array([{}] * 6, object), allow_pickle=True)


def other_format(place: Path) -> None:
    meta = json.loads((place / "meta.json").read_text())
    (place / "meta.json").write_text(json.dumps({**meta, "format": 0}))


BREAKS: list[Callable[[Path], object]] = [
    cut,
    shorten,
    pickled,
    other_format,
    lambda place: (place / "meta.json").write_text("{"),
    lambda place: (place / "meta.json").write_text("[]"),
    lambda place: (place / "labels.npy").write_bytes(b""),
    lambda place: (place / "names.npy").unlink(),
]


@pytest.mark.parametrize("damage", BREAKS)
def test_a_broken_index_is_made_again(damage: Callable[[Path], object], small: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    whole = open_index(small, "train", cache)
    sizes, names = whole.widths.tolist(), [whole.path(i) for i in range(6)]
    damage(kept(cache))
    for _ in range(2):
        again = open_index(small, "train", cache)
        assert (again.widths.tolist(), [again.path(i) for i in range(6)]) == (sizes, names)
    assert len(list(cache.iterdir())) == 1


def test_an_interrupted_index_goes_on(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_CHUNK", 2)
    read = image.read_size
    seen: list[str] = []

    def interrupted(path: str) -> tuple[int, int]:
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(path)
        return read(path)

    monkeypatch.setattr(scan, "_THREADS", 1)
    monkeypatch.setattr(image, "read_size", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(small, "train", tmp_path / "cache")
    done = len(seen) // 2 * 2
    monkeypatch.setattr(image, "read_size", lambda path: seen.append(path) or read(path))
    index = build(small, "train", tmp_path / "cache")
    assert done <= 4
    assert len(seen) <= 5 + 6 - 2  # the first chunks were not read again
    assert index.widths.tolist() == [48] * 6
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [kept(tmp_path / "cache").name]


def test_a_csv_file_lists_images_anywhere(small: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (small / split).rename(small / f"pictures {split}")
        lines = ["path,label", f"{small / 'pictures val'}/dog/0.jpg,a dog"]
        lines += [f"pictures {split}/cat/1.jpg,the cat", f"pictures {split}/dog/2.jpg,a dog", ""]
        (small / f"{split}.csv").write_text("\n".join(lines))
    index = open_index(small, "train", tmp_path / "cache")
    assert index.classes == ("a dog", "the cat")
    assert index.labels.tolist() == [0, 1, 0]
    assert [index.path(k).parts[-3:] for k in (0, 1)] == [("pictures val", "dog", "0.jpg"), ("pictures train", "cat", "1.jpg")]
    assert index.heights.tolist() == [40] * 3
    (small / "train.csv").write_text("path,label\npictures train/cat/0.jpg,cat\n")
    later = (small / "train.csv").stat().st_mtime_ns + 10**9
    os.utime(small / "train.csv", ns=(later, later))
    assert open_index(small, "train", tmp_path / "cache").classes == ("cat",)


def test_absolute_paths_of_a_list_reach_dali_as_they_are(small: Path, tmp_path: Path) -> None:
    place = small / "train" / "cat" / "0.jpg"
    (tmp_path / "train.csv").write_text(f"path,label\n{place},cat\n")
    found = open_index(tmp_path, "train", tmp_path / "cache")
    assert bytes(found.paths(np.array([0]))[0]).rstrip(b"\0") == os.fsencode(place)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b\n", "no column path; its first line must name path and label"),
        ("path,label\n", "lists no image"),
        ("path,label\na.jpg,\n", "line 2 lacks a path or a label"),
        ("path,label\n\0a.jpg,x\n", "line 2 lacks a path or a label"),
        ("path,label\nno/such.jpg,x\n", "none of the 1 image can be read"),
        ("path,label\na.jpg,\udcff\n", "is not UTF-8 .invalid start byte at byte 17.; save it as UTF-8"),
        ("path,label\n" + "x" * 200_000 + ",a\n", "not a CSV file .field larger"),
    ],
)
def test_csv_files_that_can_t_be_used(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        build(tmp_path, "train", tmp_path / "cache")


def test_indexes_of_different_folders_live_side_by_side(small: Path, images: Path, tmp_path: Path) -> None:
    lengths = [len(open_index(*at, tmp_path / "cache")) for at in ((small, "train"), (small, "val"), (images, "val"))]
    assert lengths == [6, 6, 20]
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_the_user_s_cache_is_the_default(variable: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    open_index(small, "train", None)
    folder = tmp_path if variable == "XDG_CACHE_HOME" else tmp_path / ".cache"
    assert kept(folder / "image-pipeline").name.startswith("index-")


def test_unreadable_images_are_named(small: Path, tmp_path: Path) -> None:
    cats = small / "train" / "cat"
    whole = (cats / "0.jpg").read_bytes()
    (cats / "bad.jpg").write_text("text")
    (cats / "cut.jpg").write_bytes(whole[:30])
    Image.new("P", (8, 8)).save(cats / "gif.jpg", format="GIF")
    for number in range(4):
        (cats / f"zero{number}.png").touch()
    index = build(small, "train", tmp_path / "cache")
    with pytest.raises(DataError) as failed:
        Quarantine(index, "train", 0.5)
    message = str(failed.value)
    assert message.startswith(f"{small / 'train'}: 7 images of 13 can't be read: cat/bad.jpg (not a JPEG")
    assert message.endswith(
        "and 2 more; replace or remove such files, list them for data.quarantine, or raise data.max_bad_fraction"
    )
    assert "\n" not in message
    (cats / "bad.jpg").write_bytes(whole)  # neither the folder nor its list of files changes
    assert len(open_index(small, "train", tmp_path / "cache").bad) == 6


def test_class_folders_without_images_are_named(small: Path, tmp_path: Path) -> None:
    (small / "train" / "bird").mkdir()
    (small / "train" / "bird" / "readme.txt").touch()
    with pytest.raises(DataError, match=r"train: 1 class folder with no image \(bird\); remove them, or add images"):
        build(small, "train", tmp_path)


def test_a_cache_that_can_t_be_written_is_named(small: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(DataError, match=rf"data.cache: {blocked} can't be written \(.+\); set it to a folder that can"):
        open_index(small, "train", blocked)


def test_an_unreadable_link_or_listed_path_is_an_image_that_is_bad(small: Path, tmp_path: Path) -> None:
    (small / "train" / "cat" / "9 nowhere.jpg").symlink_to("no such file")
    (small / "val.csv").write_text("path,label\nval/cat/0.jpg,cat\nmissing.jpg,dog\nval/dog,dog\n")
    for _ in range(2):
        assert build(small, "train", tmp_path / "cache").bad.tolist() == [3]
        assert open_index(small, "val", tmp_path / "cache").bad.tolist() == [1, 2]


def test_a_bad_image_that_is_replaced_by_an_older_file_is_noticed(small: Path, tmp_path: Path) -> None:
    bad = small / "train" / "cat" / "0.jpg"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    assert build(small, "train", tmp_path / "cache").bad.tolist() == [0]
    bad.write_bytes(good)
    os.utime(bad, (1, 1))  # as `cp -p` does
    assert not len(open_index(small, "train", tmp_path / "cache").bad)


def test_a_pipe_with_an_image_s_name_is_not_waited_for(small: Path, tmp_path: Path) -> None:
    os.mkfifo(small / "train" / "cat" / "9.jpg")
    index = build(small, "train", tmp_path / "cache")
    assert [index.reason(int(sample)) for sample in index.bad] == ["not a regular file"]
    assert index.problem(3) == "not a regular file"
    found = verify(small, tmp_path / "cache", deep=True, threads=1)
    assert [bad.entry.reason for bad in found.bad] == ["unreadable: not a regular file"]


@pytest.mark.parametrize("link", ["cat/loop", "cat/deep/loop", "loop"])
def test_a_loop_of_links_is_refused(link: str, small: Path, tmp_path: Path) -> None:
    path = small / "train" / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("../" if path.parent.name == "deep" else ".")
    with pytest.raises(DataError, match="loop: is a link to a folder that it lies in"):
        build(small, "train", tmp_path / "cache")


def test_links_to_other_folders_are_followed(small: Path, tmp_path: Path) -> None:
    (small / "train" / "cat" / "more").symlink_to(small / "train" / "dog")
    assert len(build(small, "train", tmp_path / "cache")) == 9


def test_two_who_index_at_once_don_t_mix_their_sizes(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_CHUNK", 2)
    monkeypatch.setattr(scan, "_THREADS", 1)
    listing, partial = scan.walk(small / "train"), tmp_path / "partial"
    Image.new("RGB", (99, 98)).save(small / "train" / "cat" / "0.jpg")
    read, inner = image.read_size, []

    def second_starts(path: str) -> tuple[int, int]:
        if not inner:
            inner.append(None)
            inner.append(scan.read_sizes(listing, partial))
            assert len(partial.read_bytes()) == 0 or partial.stat().st_size == 32
        return read(path)

    monkeypatch.setattr(image, "read_size", second_starts)
    sizes = scan.read_sizes(listing, partial)
    assert np.array_equal(sizes, inner[1])
    assert partial.stat().st_size == 32 + 3 * (2 * 8 + 4)  # a digest, and each image's size once, in chunks with checksums


def test_a_full_disk_without_words_is_named(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("600 requested and 200 written")  # as numpy says it

    monkeypatch.setattr(store, "save", full)
    with pytest.raises(DataError, match=r"can't be written \(600 requested and 200 written\); set it to a folder that can"):
        build(small, "train", tmp_path / "cache")
