"""Packs: their bytes, their readers, restarts, damage, and training from them."""

import gc
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn
from PIL import Image

from pipeline.config import Config, make_plan
from pipeline.data import pack as packing
from pipeline.data import shards as sharding
from pipeline.data.blocks import window_batches
from pipeline.data.dataset import open_dataset
from pipeline.data.index import Index, build, open_index
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.pack import Settings, check, pack, target_size
from pipeline.data.parallel import one_at_a_time
from pipeline.data.quarantine import Entry, Quarantine
from pipeline.errors import DataError, PipelineError, UsageError
from pipeline.world import World

SMALL_SHARDS = Settings(shard_images=7)


@pytest.fixture(scope="session")
def packed(images: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root of all kinds of image as a pack that keeps their bytes, in shards of seven."""
    out = tmp_path_factory.mktemp("packed")
    pack(images, out, SMALL_SHARDS, cache, 2)
    return out


def both(images: Path, packed: Path, cache: Path, split: str = "train") -> tuple[Index, Index]:
    return open_index(images, split, cache), open_index(packed, split, cache)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_pack_keeps_each_image_s_bytes_label_size_and_name(images: Path, packed: Path, cache: Path) -> None:
    folder, shards = both(images, packed, cache)
    assert len(folder) == len(shards) == 20
    assert shards.classes == folder.classes
    for sample in range(20):
        assert shards.read(sample) == folder.read(sample)
        assert shards.name(sample) == folder.name(sample)
        assert shards.labels[sample] == folder.labels[sample]
        assert (shards.widths[sample], shards.heights[sample]) == (folder.widths[sample], folder.heights[sample])


def test_tar_reads_a_pack(images: Path, packed: Path, cache: Path) -> None:
    index = open_index(images, "train", cache)
    seen = {}
    for shard in sorted((packed / "train").glob("*.tar")):
        names = subprocess.run(["tar", "-tf", shard], capture_output=True, text=True, check=True).stdout.split()
        with tarfile.open(shard) as tar:
            assert tar.getnames() == names
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                seen[member.name] = file.read()
    assert len(seen) == 40
    for sample in range(20):
        assert int(seen[f"{sample:09d}.cls"]) == index.labels[sample]
        assert index.read(sample) in (seen.get(f"{sample:09d}.{kind}") for kind in ("jpg", "png", "bmp", "webp"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_webdataset_reads_a_pack(packed: Path, images: Path, cache: Path) -> None:
    wds = pytest.importorskip("webdataset")
    index = open_index(images, "train", cache)
    shards = [str(path) for path in sorted((packed / "train").glob("*.tar"))]
    pipeline = wds.DataPipeline(wds.SimpleShardList(shards), wds.tarfile_to_samples(), wds.to_tuple("jpg;png;bmp;webp", "cls"))
    found = [(data, int(label)) for data, label in pipeline]
    del pipeline
    gc.collect()
    assert sorted(found) == sorted((index.read(sample), int(index.labels[sample])) for sample in range(20))


def test_dali_s_reader_reads_a_pack(packed: Path, images: Path, cache: Path) -> None:
    index = open_index(images, "train", cache)
    shards = [str(path) for path in sorted((packed / "train").glob("*.tar"))]
    graph = Pipeline(20, 1, None)
    with graph:
        graph.set_outputs(*fn.readers.webdataset(paths=shards, ext=["jpg;png;bmp;webp", "cls"]))
    images_, labels = graph.run()
    found = [(bytes(np.asarray(images_[k])), int(bytes(np.asarray(labels[k])))) for k in range(20)]
    assert sorted(found) == sorted((index.read(sample), int(index.labels[sample])) for sample in range(20))


def test_packing_again_gives_the_same_bytes(images: Path, packed: Path, cache: Path, tmp_path: Path) -> None:
    pack(images, tmp_path, SMALL_SHARDS, cache, 3)
    for split in ("train", "val"):
        mine, theirs = contents(tmp_path / split), contents(packed / split)
        assert mine == theirs


@pytest.mark.parametrize("executor", ["dali", "hybrid", "reference"])
def test_a_pack_gives_the_folder_s_pixels_in_the_folder_s_order(
    executor: str, images: Path, packed: Path, image_config: Callable[..., Config]
) -> None:
    found = []
    for root in (images, packed):
        cfg = image_config(f"data.executor={executor}", f"data.root={root}")
        data = open_dataset(cfg, World())
        plan = make_plan(cfg, world_size=1, train_images=20, val_images=20, classes=2)
        loaders = (train_loader(cfg, plan, World(), data, 0), eval_loader(cfg, World(), data.val))
        found.append([batch for loader in loaders for batch in loader])
        for loader in loaders:
            loader.close()
    assert len(found[0]) == len(found[1]) == 16 + 7
    for folder, shards in zip(*found, strict=True):
        assert folder.ids.tolist() == shards.ids.tolist()
        assert torch.equal(folder.labels, shards.labels)
        assert torch.equal(folder.images, shards.images)


def test_larger_images_are_reduced_and_others_keep_their_bytes(images: Path, cache: Path, tmp_path: Path) -> None:
    pack(images, tmp_path, Settings(short_side=256, quality=85), cache, 2)
    folder, shards = both(images, tmp_path, cache, "val")
    for sample in range(20):
        before = (int(folder.widths[sample]), int(folder.heights[sample]))
        with Image.open(shards.source(sample)) as image:
            assert image.size == (shards.widths[sample], shards.heights[sample])
            assert min(image.size) == min(256, *before)
            if min(before) <= 256:
                assert shards.read(sample) == folder.read(sample)
            else:
                assert (image.format, image.mode) == ("JPEG", "RGB")
    assert json.loads((tmp_path / "val" / "index" / "meta.json").read_text())["settings"] == {
        "short_side": 256,
        "max_side": None,
        "quality": 85,
        "shard_images": 4096,
    }


@pytest.mark.parametrize(
    ("size", "settings", "expected"),
    [
        ((500, 375), Settings(), (500, 375)),
        ((500, 375), Settings(short_side=375), (500, 375)),
        ((500, 375), Settings(short_side=300), (400, 300)),
        ((375, 500), Settings(max_side=250), (188, 250)),
        ((500, 375), Settings(short_side=300, max_side=250), (250, 188)),
        ((9000, 2), Settings(max_side=100), (100, 1)),
    ],
)
def test_sizes_of_a_pack(size: tuple[int, int], settings: Settings, expected: tuple[int, int]) -> None:
    assert target_size(size, settings) == expected


def test_a_pack_that_was_killed_goes_on_after_its_finished_shards(small: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    build(small, "train", cache)
    code = (
        "import sys, time; from pathlib import Path; from pipeline.data import pack as p; write = p._write_sample; n = [0]\n"
        "def slow(job, file, sample):\n"
        "    n[0] += 1\n"
        "    if n[0] == 4: print('waiting', flush=True); time.sleep(600)\n"
        "    return write(job, file, sample)\n"
        "p._write_sample = slow\n"
        "p.pack(Path(sys.argv[1]), Path(sys.argv[2]), p.Settings(shard_images=2), Path(sys.argv[3]), 1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, small, out, cache], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGKILL)
    assert list((out / "train").glob(".*.tmp"))  # the shard that it was writing
    first = out / "train" / "train-000000.tar"
    before = first.stat()
    pack(small, out, Settings(shard_images=2), cache, 1)
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in (out / "train").iterdir()) == ["index", *(f"train-{k:06d}.tar" for k in range(3))]
    pack(small, tmp_path / "whole", Settings(shard_images=2), cache, 1)
    mine, theirs = contents(out / "train"), contents(tmp_path / "whole" / "train")
    assert mine.keys() == theirs.keys()
    assert all(mine[name] == theirs[name] for name in mine if name.endswith(".tar"))
    assert check(out, 1)["images"] == 12


def test_a_finished_pack_is_left_alone_and_another_one_refused(small: Path, tmp_path: Path) -> None:
    pack(small, tmp_path / "out", Settings(), tmp_path, 1)
    before = contents(tmp_path / "out")
    pack(small, tmp_path / "out", Settings(), tmp_path, 1)
    assert contents(tmp_path / "out") == before
    with pytest.raises(DataError, match=r"out/train: holds a pack made with other settings; choose another folder"):
        pack(small, tmp_path / "out", Settings(quality=50), tmp_path, 1)
    (tmp_path / "link").symlink_to(small)
    for out in (small, tmp_path / "link"):
        with pytest.raises(UsageError, match="is the data root itself"):
            pack(small, out, Settings(), tmp_path, 1)


def test_a_finished_pack_of_images_that_have_changed_is_refused(small: Path, tmp_path: Path) -> None:
    bad = small / "train" / "cat" / "1.jpg"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    pack(small, tmp_path / "out", Settings(), tmp_path, 1)
    bad.write_bytes(good)
    with pytest.raises(DataError, match=r"out/train: holds a pack of other images, or they have changed since; choose"):
        pack(small, tmp_path / "out", Settings(), tmp_path, 1)


def test_a_shard_that_was_cut_short_before_the_pack_was_finished_is_made_again(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = tmp_path / "out", Settings(shard_images=2)
    pack(small, tmp_path / "whole", settings, tmp_path, 1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "_write_index", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(small, out, settings, tmp_path, 1)
    monkeypatch.undo()
    with (out / "train" / "train-000001.tar").open("r+b") as file:
        file.truncate(3000)
    before = (out / "train" / "train-000000.tar").stat().st_ino
    pack(small, out, settings, tmp_path, 1)
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "train" / "train-000000.tar").stat().st_ino == before


def test_two_packers_of_one_pack_take_turns(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "train").mkdir(parents=True)
    command = [sys.executable, "-m", "pipeline", "data", "pack", small, out, "--cache", tmp_path / "cache"]
    with one_at_a_time(out / "train", lambda: None):
        second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert second.stderr.readline() == f"waiting for another packer of {out / 'train'}\n"
        assert not list((out / "train").iterdir())
    assert second.communicate(timeout=60) == (None, "")
    assert second.returncode == 0
    assert check(out, 1)["images"] == 12


def test_a_full_disk_keeps_what_is_finished(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = packing._write_member
    calls = iter(range(100))

    def full_after_five(file: object, name: str, data: bytes) -> int:
        if next(calls) >= 5:
            os.write(os.open("/dev/full", os.O_WRONLY), data)  # the kernel's own error
        return written(file, name, data)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "_write_member", full_after_five)
    with pytest.raises(UsageError, match="No space left on device; free space.+goes on after the finished shards"):
        pack(small, tmp_path / "out", Settings(shard_images=2), tmp_path, 1)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "out" / "train").glob("*.tar")] == ["train-000000.tar"]
    assert not list((tmp_path / "out" / "train").glob(".*.tmp"))
    pack(small, tmp_path / "out", Settings(shard_images=2), tmp_path, 1)
    assert check(tmp_path / "out", 2) == {"folder": str(tmp_path / "out"), "images": 12, "left_out": 0, "shards": 6}


def test_check_names_damaged_samples(small: Path, tmp_path: Path) -> None:
    pack(small, tmp_path / "out", Settings(), tmp_path, 1)
    index = open_index(tmp_path / "out", "val", None)
    assert index.shards is not None
    shard = index.shards.files[0]
    data = bytearray(shard.read_bytes())
    data[int(index.shards.starts[3]) + 100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError) as failed:
        check(tmp_path / "out", 2)
    assert "1 sample damaged" in str(failed.value)
    assert str(index.path(3)) in str(failed.value)
    with pytest.raises(DataError, match="no finished pack"):
        check(small, 1)


@pytest.mark.parametrize("place", ["label", "label's header", "image's header"])
def test_check_names_samples_whose_label_or_header_is_damaged(place: str, small: Path, tmp_path: Path) -> None:
    pack(small, tmp_path / "out", Settings(), tmp_path, 1)
    index = open_index(tmp_path / "out", "train", None)
    assert index.shards is not None
    shard, start = index.shards.files[0], int(index.shards.starts[3])
    data = bytearray(shard.read_bytes())
    label = start + -(-int(index.shards.lengths[3]) // 512) * 512
    data[{"label": label + 512, "label's header": label, "image's header": start - 512 + 3}[place]] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"1 sample damaged: .+dog/0.jpg"):
        check(tmp_path / "out", 2)


def test_a_pack_with_a_shard_missing_or_cut_is_refused(small: Path, tmp_path: Path) -> None:
    pack(small, tmp_path / "out", Settings(shard_images=3), tmp_path, 1)
    shard = tmp_path / "out" / "train" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"train-000001.tar has [\d,]+ bytes instead of [\d,]+; copy it again"):
        open_index(tmp_path / "out", "train", None)
    shard.unlink()
    with pytest.raises(DataError, match=r"train-000001.tar is missing; copy it again"):
        open_index(tmp_path / "out", "train", None)


def test_a_pack_may_be_moved(small: Path, tmp_path: Path) -> None:
    pack(small, tmp_path / "out", Settings(), tmp_path, 1)
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    index = open_index(tmp_path / "elsewhere", "train", None)
    assert index.read(2) == (small / "train" / index.name(2)).read_bytes()


def test_a_pack_of_unreadable_images_keeps_their_numbers(small: Path, tmp_path: Path) -> None:
    (small / "train" / "cat" / "1.jpg").write_bytes(b"")
    pack(small, tmp_path / "out", Settings(short_side=32), tmp_path / "cache", 1)
    index = open_index(tmp_path / "out", "train", None)
    assert (len(index), index.bad.tolist(), index.name(2)) == (6, [1], "cat/2.jpg")
    assert index.shards is not None
    assert index.shards.lengths.tolist().count(0) == 1
    assert index.reason(1) == "is empty"


def test_damaged_images_are_left_out_where_encoding_them_again_would_hide_it(small: Path, tmp_path: Path) -> None:
    path = small / "train" / "cat" / "1.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\x55" * 40 + whole[len(whole) // 2 + 40 :])
    assert Image.open(path).convert("RGB").size == (48, 40)  # decoders go on
    (small / "train" / "cat" / "2.jpg").write_bytes(b"")
    rows = pack(small, tmp_path / "out", Settings(short_side=32, shard_images=2), tmp_path / "cache", 1)
    index = open_index(tmp_path / "out", "train", None)
    assert index.bad.tolist() == [1, 2]
    assert index.reason(1).startswith("corrupt data: ")
    assert [line.split(": ")[0] for line in rows[0]["first_bad"]] == ["cat/1.jpg", "cat/2.jpg"]
    kept = pack(small, tmp_path / "kept", Settings(shard_images=2), tmp_path / "cache", 1)
    assert (rows[0]["bad"], kept[0]["bad"]) == (2, 1)
    with pytest.raises(DataError, match=r"2 images of 6 can't be read: cat/1.jpg \(corrupt data: .+\), cat/2.jpg \("):
        Quarantine(index, "train", 0.1)


def test_listed_images_are_left_out_of_a_pack_and_stay_so(small: Path, tmp_path: Path) -> None:
    lists = [tmp_path / "bad.tsv", tmp_path / "other.tsv"]
    for path, entry in zip(lists, (Entry("train", 4, "dog/1.jpg", "a fish"), Entry("val", 0, "cat/0.jpg", "?")), strict=True):
        path.write_text(entry.line())
    settings = Settings(shard_images=2, quarantine=lists[0])
    for _ in range(2):  # the second call finds it finished
        rows = pack(small, tmp_path / "out", settings, tmp_path / "cache", 1)
        assert [row["first_bad"] for row in rows] == [["dog/1.jpg: a fish"], []]
    index = open_index(tmp_path / "out", "train", None)
    assert (index.bad.tolist(), index.reason(4)) == ([4], "a fish")
    assert check(tmp_path / "out", 1) == {"folder": str(tmp_path / "out"), "images": 11, "left_out": 1, "shards": 6}
    for other in (None, lists[1]):
        with pytest.raises(DataError, match="holds a pack made with another list of bad images; choose another folder"):
            pack(small, tmp_path / "out", replace(settings, quarantine=other), tmp_path / "cache", 1)


def test_what_was_left_out_of_a_pack_by_a_list_does_not_count_against_the_limit(small: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.tsv").write_text(Entry("train", 4, "dog/1.jpg", "a fish").line())
    (small / "train" / "cat" / "0.jpg").write_bytes(b"")
    settings = Settings(quarantine=tmp_path / "bad.tsv")
    pack(small, tmp_path / "out", settings, tmp_path / "cache", 1)
    pack(tmp_path / "out", tmp_path / "again", Settings(), None, 1)
    for out in (tmp_path / "out", tmp_path / "again"):
        index = open_index(out, "train", None)
        assert (index.bad.tolist(), index.listed.tolist()) == ([0, 4], [4])
        assert Quarantine(index, "train", 0.2).bad.tolist() == [0, 4]
        with pytest.raises(DataError, match=r"1 image of 6 can't be read: cat/0.jpg \(is empty\); replace"):
            Quarantine(index, "train", 0.1)


def test_tars_made_elsewhere_are_indexed(packed: Path, images: Path, cache: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for shard in (packed / split).glob("*.tar"):
            os.link(shard, tmp_path / split / shard.name)
        (tmp_path / split / "classes.txt").write_text("first\nsecond\n")
    folder, foreign = open_index(images, "train", cache), open_index(tmp_path, "train", tmp_path / "cache")
    assert foreign.classes == ("first", "second")
    for place in range(20):
        sample = int(foreign.name(place)[:9])
        assert foreign.read(place) == folder.read(sample)
        assert foreign.labels[place] == folder.labels[sample]
        assert foreign.widths[place] == folder.widths[sample]
    time_before = (tmp_path / "train" / "classes.txt").stat().st_mtime_ns
    (tmp_path / "train" / "classes.txt").write_text("one\ntwo\n")
    os.utime(tmp_path / "train" / "classes.txt", ns=(time.time_ns(), time_before + 10**9))
    assert open_index(tmp_path, "train", tmp_path / "cache").classes == ("one", "two")


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.jpg", b""), ("x.cls", b"n014")], r"a.tar: x.cls holds b'n014' instead of a class's number"),
        ([("x.jpg", b""), ("x.png", b""), ("x.cls", b"0")], r"a.tar: two images of one sample, x.jpg and x.png"),
        ([("x.jpg", b""), ("x.cls", b"0"), ("x.jpg", b""), ("x.cls", b"1")], r"two images of one sample, x.jpg and x.jpg"),
        ([("x.jpg", b""), ("x.cls", b"123456789012")], "a label 123456789012, which is no class's number"),
        ([("x.jpg", b""), ("x.json", b'{"label": 1}')], r"1 image with no label in a .cls file \(x.jpg\)"),
    ],
)
def test_tars_whose_samples_are_unclear_are_refused(members: list[tuple[str, bytes]], message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "a.tar", members)
    with pytest.raises(DataError, match=message):
        build(tmp_path, "train", tmp_path / "cache")


@pytest.mark.parametrize("damage", ["header", "end", "gz"])
def test_tars_that_lose_images_in_silence_are_refused(damage: str, small: Path, tmp_path: Path) -> None:
    members = []
    for number, path in enumerate(sorted((small / "train").glob("*/*"))):
        members += [(f"{number}.jpg", path.read_bytes()), (f"{number}.cls", b"0")]
    tar = tmp_path / "train" / "a.tar"
    data = write_tar(tar, members, "w:gz" if damage == "gz" else "w")
    place = data.find(b"4.jpg")
    if damage == "header":
        tar.write_bytes(data[:place] + b"\xff" * 512 + data[place + 512 :])
    elif damage == "end":
        tar.write_bytes(data[:place])
    with pytest.raises(
        DataError, match=r"a.tar: not a whole, uncompressed tar \((broken after|no end mark|invalid header)"
    ) as caught:
        build(tmp_path, "train", tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_tars_without_labels_or_cut_short_are_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    whole = next((packed / "train").glob("*.tar")).read_bytes()
    (tmp_path / "train" / "a.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PipelineError, match=r"a.tar: not a whole, uncompressed tar|no label"):
        build(tmp_path, "train", tmp_path)
    with tarfile.open(tmp_path / "train" / "a.tar", "w") as tar:
        tar.add(__file__, "x.jpg")
    with pytest.raises(DataError, match=r"a.tar: 1 image with no label in a .cls file \(x.jpg\); add them"):
        build(tmp_path, "train", tmp_path)


def _advice(
    monkeypatch: pytest.MonkeyPatch, cfg: Config, world: World, n_batches: int
) -> tuple[Index, list[tuple[str, int, int, int, str]], list[list[int]]]:
    """Take batches; return the kernel advice asked for meanwhile, with when it was asked, and the batches' samples."""
    asked: list[tuple[str, int, int, int, str]] = []
    taken: list[list[int]] = []

    def watch(fd: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        shard = Path(f"/proc/self/fd/{fd}").readlink().name
        asked.append((shard, start, start + length, len(taken), threading.current_thread().name))

    class Prompt(ThreadPoolExecutor):
        """Has done what it is asked before anything else happens."""

        def submit(self, *given: Any, **options: Any) -> Future[Any]:
            future = super().submit(*given, **options)
            wait([future])
            return future

    monkeypatch.setattr(os, "posix_fadvise", watch)
    monkeypatch.setattr(sharding, "ThreadPoolExecutor", Prompt)
    data = open_dataset(cfg, world)
    plan = make_plan(cfg, world_size=world.size, train_images=len(data.train), val_images=len(data.val), classes=2)
    loader = train_loader(cfg, plan, world, data, 0)
    for batch in itertools.islice(loader, n_batches):
        taken.append(batch.ids.tolist())
    loader.close()
    return data.train, asked, taken


@pytest.mark.parametrize("order", ["full", "blocks"])
def test_what_comes_is_asked_of_the_kernel_before_by_a_thread_of_its_own(
    order: str, packed: Path, image_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = (f"data.root={packed}", f"data.order={order}", "data.executor=reference")
    blocks = ("data.block=4", "data.window=2") if order == "blocks" else ()
    cfg = image_config(*where, *blocks, "data.prefetch=1")
    index, asked, taken = _advice(monkeypatch, cfg, World(), 8)
    assert len(taken) == 8
    assert {name[:10] for *_, name in asked} == {"read ahead"}
    places = index.shards
    assert places is not None
    for number, ids in enumerate(taken[1:], 1):
        for sample in ids:
            name, start = places.files[int(places.shard[sample])].name, int(places.starts[sample])
            stop = start + int(places.lengths[sample])
            assert any(s == name and a <= start and stop <= b and when < number for s, a, b, when, _ in asked)
    if order == "blocks":  # eight images of a window in two runs, and where a run goes on in the next shard
        first = [one for one in asked if one[3] == 0]
        assert 4 <= len(first) < 2 * 8  # of this window and the next, not of the whole epoch


def test_neighbours_are_asked_for_as_one_run(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = open_index(packed, "train", None).shards
    assert places is not None
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, __: asked.append((start, length)))
    first = places.order[:7].astype(np.int64)
    places.will_need(np.random.default_rng(0).permutation(first))
    last = int(first[-1])
    assert asked == [(int(places.starts[first[0]]), int(places.starts[last] + places.lengths[last] - places.starts[first[0]]))]


def test_a_window_that_is_read_ahead_is_bounded(packed: Path, image_config: Callable[..., Config]) -> None:
    index = open_index(packed, "train", None)
    data = image_config("data.order=blocks", "data.block=4", "data.window=2").data
    assert window_batches(index, data, 2, 1) == 4
    assert window_batches(index, data, 2, 2) == 2
    assert window_batches(index, data, 16, 4) == 1
    wide = image_config("data.order=blocks", "data.block=1000", "data.window=1000").data
    assert window_batches(index, wide, 2, 1) == 10


@pytest.mark.parametrize("hard", ["4096", "20"])
def test_a_pack_may_have_more_shards_than_a_process_may_open_files(
    hard: str, images: Path, cache: Path, tmp_path: Path
) -> None:
    pack(images, tmp_path, Settings(shard_images=1), cache, 1)
    code = (
        "import resource, sys; from pathlib import Path; from pipeline.data.index import open_index\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, int(sys.argv[2])))\n"
        "index = open_index(Path(sys.argv[1]), 'train', None)\n"
        "print(sum(len(index.read(k)) > 0 for k in range(len(index))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path, hard], capture_output=True, text=True, check=False)
    if hard == "4096":
        assert done.stdout == "20\n"
    else:
        assert "Too many open files; raise `ulimit -n`" in done.stderr
