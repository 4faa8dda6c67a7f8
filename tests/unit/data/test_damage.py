"""Damaged and forged files of indexes: never another content than the images have."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import image, scan, store
from pipeline.data.index import Index, build, open_index, open_pack
from pipeline.data.pack import Settings, pack
from pipeline.errors import DataError

CASES = 240


def content(index: Index) -> list[Any]:
    """Return all that an index says, as plain values."""
    arrays = [index.names, index.offsets, index.labels, index.widths, index.heights, index.bad, index.listed]
    shards = index.shards
    more: list[Any] = [index.folder, index.classes, dict(index.reasons)]
    if shards is not None:
        arrays += [shards.shard, shards.starts, shards.lengths, shards.order, shards.checksums]
        more.append(shards.files)
    return more + [array.tolist() for array in arrays]


def bit(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(data)))
    return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]


def cut(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def zeros(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at, n = int(rng.integers(len(data))), int(rng.integers(1, 65))
    return data[:at] + bytes(len(data[at : at + n])) + data[at + n :]


def noise(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at, n = int(rng.integers(len(data))), int(rng.integers(1, 9))
    return data[:at] + rng.bytes(len(data[at : at + n])) + data[at + n :]


def longer(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(3)


def swapped(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return other


DAMAGES = [bit, bit, bit, cut, zeros, noise, longer, swapped]


def damage(place: Path, other: Path, seed: int) -> str:
    """Damage a file at `place`, or swap it with one of its own or of the index `other`; return what was done."""
    rng = np.random.default_rng(seed)
    files = sorted(path for path in place.iterdir() if path.is_file())
    path = files[seed % len(files)]
    how = DAMAGES[seed // len(files) % len(DAMAGES)]
    namesake = other / path.name
    swap = namesake if seed % 2 and namesake.is_file() else files[int(rng.integers(len(files)))]
    before = path.read_bytes()
    path.write_bytes(how(before, swap.read_bytes(), rng))
    return "" if path.read_bytes() == before else f"{how.__name__} of {path.name}, seed {seed}"


@pytest.fixture
def cached(small: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A data root with a bad image, and the folder with the caches of both splits; names and sizes differ between these."""
    (small / "train" / "cat" / "1.jpg").write_text("text")
    shutil.copy(small / "train" / "cat" / "0.jpg", small / "val" / "dog" / "another.jpg")
    for split in ("train", "val"):
        build(small, split, tmp_path / "cache")
    return small, tmp_path / "cache"


def test_no_damage_of_an_index_changes_what_is_trained_on(
    cached: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # of 240 indexes it takes 10 s
    root, cache = cached
    right = content(open_index(root, "train", cache))
    (place,) = [path for path in cache.iterdir() if json.loads((path / "meta.json").read_text())["folder"].endswith("train")]
    (other,) = set(cache.iterdir()) - {place}
    whole = shutil.copytree(place, tmp_path / "whole")
    damaged, silent = 0, []
    for seed in range(CASES * 2):
        what = damage(place, other, seed)
        if not what:
            continue
        damaged += 1
        capsys.readouterr()
        if content(open_index(root, "train", cache)) != right:
            silent.append(what)
        elif capsys.readouterr().err.count("\n") > 1:
            silent.append(f"more than a line: {what}")
        if damaged == CASES:
            break
        shutil.copytree(whole, place, dirs_exist_ok=True)
    assert (damaged, silent) == (CASES, [])


def test_no_damage_of_a_pack_s_index_changes_what_is_trained_on(images: Path, cache: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "pack", Settings(shard_images=7), cache, 1)
    root = tmp_path / "pack"
    right = content(open_index(root, "train", None))
    place = root / "train" / "index"
    whole = shutil.copytree(place, tmp_path / "whole")
    silent = []
    for seed in range(CASES // 2):
        what = damage(place, root / "val" / "index", seed)
        try:
            if content(open_index(root, "train", None)) != right:
                silent.append(what)
        except DataError as error:
            assert what and "\n" not in str(error), what
        shutil.copytree(whole, place, dirs_exist_ok=True)
    assert silent == []
    for name in sorted(path.name for path in whole.iterdir()):  # a pack whose index lost a file is no folder of foreign tars
        (place / name).unlink()
        with pytest.raises(DataError, match="the index of this pack is broken"):
            open_index(root, "train", None)
        shutil.copytree(whole, place, dirs_exist_ok=True)


def test_damage_of_an_interrupted_index_is_read_anew(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_CHUNK", 2)
    listing, partial = scan.walk(small / "train"), tmp_path / "partial"
    right = scan.read_sizes(listing, partial)
    whole = partial.read_bytes()
    for at in range(len(whole)):
        partial.write_bytes(bit(whole[at:], b"", np.random.default_rng(at)).join([whole[:at], b""]))
        assert np.array_equal(scan.read_sizes(listing, partial), right)
        assert partial.read_bytes() == whole
    chunk = 2 * 8 + 4
    partial.write_bytes(whole[:32] + whole[32 + chunk : 32 + 2 * chunk] + whole[32 : 32 + chunk])
    read: list[str] = []
    size = image.read_size
    monkeypatch.setattr(image, "read_size", lambda path: read.append(path) or size(path))
    assert np.array_equal(scan.read_sizes(listing, partial), right)
    assert len(read) == 6


def test_what_is_written_is_flushed_before_it_is_put_in_place(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, place = set(), tmp_path / "cache"
    really = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.add(Path(f"/proc/self/fd/{fd}").readlink().name), really(fd)))
    build(small, "train", place)
    names = {path.name for path in next(place.iterdir()).iterdir()}
    assert len(names) == 6 and names | {place.name} <= flushed


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of ten images in two shards, to write anything into."""
    root = tmp_path_factory.mktemp("forged")
    for split in ("train", "val"):
        (root / "root" / split / "a").mkdir(parents=True)
        for number in range(10):
            image.Image.new("RGB", (9, 8 + number)).save(root / "root" / split / "a" / f"{number}.png")
    pack(root / "root", root / "pack", Settings(shard_images=5), root / "cache", 1)
    return root / "pack" / "train"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["format", "folder", "base", "classes", "stamps", "shards", "shard_bytes", "bad", "reasons", "listed", "sums", "guard"]
NAMES = st.sampled_from(["/etc/passwd", "../val/val-000000.tar", "..", "", "a\0b", "train-000000.tar", "nowhere.tar"])
LISTS = st.lists(NAMES, max_size=3) | st.lists(st.integers(-2, 1 << 70), max_size=3)


def opened(folder: Path) -> Index | None:
    """Open a pack and take a name, a reason and the bytes of each sample; None if it is refused, in a line of our own."""
    try:
        index = open_pack(folder)
        for sample in range(len(index)):
            assert isinstance(index.name(sample) + index.reason(sample) + index.classes[int(index.labels[sample])], str)
            index.read(sample)
        return index
    except DataError as error:
        assert "\n" not in str(error) and str(error).startswith(str(folder))
        return None


@given(key=st.sampled_from(KEYS), value=ANYTHING | LISTS)
def test_a_forged_list_of_a_pack_is_one_line(key: str, value: object, forged: Path) -> None:
    place = forged / "index"
    before = json.loads((place / "meta.json").read_text())
    about = {k: v for k, v in (before | {key: value}).items() if key == "guard" or k != "guard"}
    try:
        if key != "guard":
            about["guard"] = store._guard(json.loads(json.dumps(about)))
        (place / "meta.json").write_text(json.dumps(about))
        index = opened(forged)
        assert index is None or {path.parent for path in index.shards.files} == {forged}  # type: ignore[union-attr]
    finally:
        (place / "meta.json").write_text(json.dumps(before))


@given(
    name=st.sampled_from(store.PACK_ARRAYS),
    values=st.lists(st.integers(0, 20) | st.sampled_from([2**16, 2**32 - 1, 2**63, 2**64 - 1]), min_size=0, max_size=12),
    kind=st.sampled_from(["<u8", ">u8", "<u4", "<i8", "<f8", "S4"]),
)
def test_forged_arrays_of_a_pack_are_one_line(name: str, values: list[int], kind: str, forged: Path) -> None:
    place = forged / "index"
    path, meta = place / f"{name}.npy", (place / "meta.json").read_text()
    before = path.read_bytes()
    old = np.load(path)
    changed = old.astype(object)
    changed[: len(values)] = values[: len(old)]
    try:
        np.save(
            path,
            (np.array(changed % (2**32 if "4" in kind else 2**63), np.dtype(kind)) if kind != "S4" else changed.astype("S4")),
        )
        store.seal(place, json.loads(meta))
        opened(forged)
    finally:
        path.write_bytes(before)
        (place / "meta.json").write_text(meta)


@given(data=st.binary(max_size=60))
def test_any_bytes_as_what_an_index_says_are_refused(data: bytes) -> None:
    with pytest.raises(store.DamagedError):
        store.parse(data)


def test_shards_that_are_links_out_of_the_pack_pipes_or_missing_are_refused(forged: Path, tmp_path: Path) -> None:
    pack_root = shutil.copytree(forged.parent, tmp_path / "pack")
    shard = pack_root / "train" / "train-000001.tar"
    outside = shutil.move(shard, tmp_path / "outside.tar")
    (pack_root / "elsewhere.tar").write_bytes(Path(outside).read_bytes())
    for make, said in (
        (lambda: shard.symlink_to(outside), "is a link that leads out of the pack"),
        (lambda: os.mkfifo(shard), "is not a regular file"),
        (lambda: None, "is missing"),
        (lambda: shard.mkdir(), "is not a regular file"),
        (lambda: shard.symlink_to("../elsewhere.tar"), ""),
    ):
        make()
        if said:
            with pytest.raises(DataError, match=f"train: train-000001.tar {said}; copy it again, or make the pack again"):
                open_pack(shard.parent)
        else:
            assert len(open_pack(shard.parent)) == 10
        if shard.is_dir():
            shard.rmdir()
        shard.unlink(missing_ok=True)


def test_a_pack_from_before_checksums_is_still_read(forged: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(forged.parent, tmp_path / "pack") / "train"
    about = json.loads((folder / "index" / "meta.json").read_text())
    (folder / "index" / "meta.json").write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(DataError, match="meta.json is not as it was written"):
        open_pack(folder)
    old = {key: value for key, value in about.items() if key not in ("guard", "sums")} | {"format": 2}
    (folder / "index" / "meta.json").write_text(json.dumps(old))
    assert len(open_pack(folder)) == 10
    (folder / "index" / "meta.json").write_text(json.dumps(old | {"format": 1}))
    with pytest.raises(DataError, match="of another version"):
        open_pack(folder)
