"""What a data set of many images costs at the start of training: time and memory of opening, ordering, the first batch."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bench.photos import make_photo
from pipeline.data import store
from pipeline.data.index import Index, build, open_index
from pipeline.errors import UsageError

_LINKS = 50_000  # ext4 allows 65,000 to one file
_CLASSES = 1000
_EPOCHS = 1000
_BATCH = 256
_CHUNK = 5_000_000


@dataclass(frozen=True)
class Row:
    """What was measured of an index of so many images; times in seconds, sizes in MB.

    `rss_mb` is what opening the index, an epoch's order and the first batch added to the memory of a rank that is its
    own; `shared_mb` what they added of the index's pages in the page cache, which all ranks of a node share.
    """

    images: int
    kind: str
    made_s: float
    disk_mb: float
    open_s: float
    order_s: float
    first_batch_s: float
    rss_mb: float
    shared_mb: float


def measure(folder: Path, real: int, synthetic: int) -> list[Row]:
    """Measure an index of `real` files, and one of `synthetic` entries, both made in `folder`; 0 leaves one out.

    Raises:
        UsageError: if a measuring process dies.
        OSError: if the folder can't be written or is full.
    """
    rows = []
    for kind, images, make in (("files", real, write_files), ("synthetic", synthetic, write_synthetic)):
        if images:
            root = folder / kind
            make(root, images)
            start = time.perf_counter()
            if kind == "files":
                build(root, "train", folder / "cache")
            made_s = time.perf_counter() - start if kind == "files" else 0.0
            rows.append(_measure_one(root, folder / "cache", images, kind, made_s))
    return rows


def write_files(root: Path, images: int) -> None:
    """Write `images` files with ImageNet's names into 1,000 class folders: links to a few photographs.

    Raises:
        OSError: if they can't be written.
    """
    (root / "photos").mkdir(parents=True)
    sources = [root / "photos" / f"{number}.jpg" for number in range(images // _LINKS + 1)]
    for number, source in enumerate(sources):
        source.write_bytes(make_photo(number))
    labels = min(_CLASSES, images)
    for label in range(labels):
        (root / "train" / f"n{label:08d}").mkdir(parents=True)
    for number in range(images):
        name = f"n{number % labels:08d}"
        os.link(sources[number // _LINKS], root / "train" / name / f"{name}_{number}.JPEG")


def write_synthetic(root: Path, images: int) -> None:
    """Write an index of `images` entries as beside a pack, whose only shard holds one photograph again and again.

    Raises:
        OSError: if it can't be written.
    """
    folder, place = root / "train", root / "train" / store.IN_PACK
    place.mkdir(parents=True)
    photo = make_photo(0)
    shard = folder / "train-000000.tar"
    shard.write_bytes(photo)
    width = len(str(images))
    for name, dtype, value in _arrays(images, width, len(photo)):
        _write_array(place / f"{name}.npy", images, np.dtype(dtype), value)
    classes = [f"n{label:08d}" for label in range(_CLASSES)]
    meta = {"folder": str(folder), "base": "", "classes": classes, "stamps": {}, "shards": [shard.name], "bad": []}
    store.seal(place, meta | {"shard_bytes": [len(photo)]})


def _arrays(images: int, width: int, length: int) -> list[tuple[str, Any, Any]]:
    """Return each array's name, type, and function from int64 sample numbers (one more for the offsets) to its values."""
    offset = np.min_scalar_type(images * width)
    return [
        ("names", np.dtype(f"S{width}"), lambda ids: _digits(ids, width)),
        ("offsets", offset, lambda ids: ids * width),
        ("labels", "u2", lambda ids: ids % _CLASSES),
        ("widths", "u2", lambda ids: np.full(len(ids), 500)),
        ("heights", "u2", lambda ids: np.full(len(ids), 375)),
        ("shard", "u1", lambda ids: np.zeros(len(ids))),
        ("starts", "u1", lambda ids: np.zeros(len(ids))),
        ("lengths", "u4", lambda ids: np.full(len(ids), length)),
        ("order", np.min_scalar_type(images), lambda ids: ids),
        ("checksums", "u8", lambda ids: ids),
    ]


def _digits(ids: NDArray[np.int64], width: int) -> NDArray[np.bytes_]:
    """Return the numbers as text, padded with zeros, as bytes[width] each."""
    places = 10 ** np.arange(width - 1, -1, -1)
    return (ids[:, None] // places % 10 + ord("0")).astype(np.uint8).view(f"S{width}")[:, 0]


def _write_array(path: Path, images: int, dtype: np.dtype[Any], values: Any) -> None:
    n = images + (path.stem == "offsets")
    shape, kind = ((n * dtype.itemsize,), np.dtype(np.uint8)) if path.stem == "names" else ((n,), dtype)
    array = np.lib.format.open_memmap(path, "w+", kind, shape)
    for start in range(0, n, _CHUNK):
        ids = np.arange(start, min(start + _CHUNK, n))
        part = np.asarray(values(ids)).astype(dtype)
        array[start * dtype.itemsize // kind.itemsize :][: part.nbytes // kind.itemsize] = part.view(kind)
    array.flush()


def _measure_one(root: Path, cache: Path, images: int, kind: str, made_s: float) -> Row:
    """Measure in a process of its own, as a rank would start."""
    arguments = json.dumps({"root": str(root), "cache": str(cache), "images": images})
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.bench.scale", arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise UsageError(f"bench scale-data: measuring {images:,} images failed: {done.stderr.strip()[-300:]}")
    place = next(cache.glob("index-*")) if kind == "files" else root / "train" / store.IN_PACK
    disk_mb = sum(path.stat().st_size for path in place.iterdir()) / 1e6
    return Row(images=images, kind=kind, made_s=made_s, disk_mb=disk_mb, **json.loads(done.stdout.splitlines()[-1]))


def main(argument: str) -> None:
    """Open an index, order an epoch, load a batch; print what they took."""
    import pipeline.data.hybrid  # noqa: F401 - what every training loads is no part of the measurement
    from pipeline.config import load, make_plan
    from pipeline.data.dataset import Dataset, quarantine
    from pipeline.data.loader import train_loader
    from pipeline.world import World

    given = json.loads(argument)
    root, cache = Path(given["root"]), Path(given["cache"])
    cfg = load(None, [f"data.root={root}", f"batch.micro={_BATCH}", "data.threads=2", f"train.epochs={_EPOCHS}"])
    before = _memory()
    start = time.perf_counter()
    index = open_index(root, "train", cache)
    open_s = time.perf_counter() - start
    order_s = _order_an_epoch(index)
    start = time.perf_counter()
    bad = quarantine(index, "train", cfg)
    plan = make_plan(cfg, world_size=1, train_images=len(index), val_images=1, classes=len(index.classes))
    loader = train_loader(cfg, plan, World(), Dataset(index, index, index.classes, bad, bad), 0)
    batch = next(iter(loader))
    first_batch_s = time.perf_counter() - start
    after = _memory()
    loader.close()
    assert len(batch.labels) == _BATCH
    used = {"rss_mb": after["RssAnon"] - before["RssAnon"], "shared_mb": after["RssFile"] - before["RssFile"]}
    print(json.dumps({"open_s": open_s, "order_s": order_s, "first_batch_s": first_batch_s, **used}))


def _order_an_epoch(index: Index) -> float:
    """Return the seconds that computing a whole epoch's order takes, batch by batch; for large ones scaled up."""
    from pipeline.data.order import permute

    n = len(index)
    done = min(n, 2_000_000)
    start = time.perf_counter()
    for first in range(0, done, _BATCH * 16):
        permute(np.arange(first, min(first + _BATCH * 16, done), dtype=np.int64), n, 0, 0)
    return (time.perf_counter() - start) * n / done


def _memory() -> dict[str, float]:
    status = Path("/proc/self/status").read_text().split("\n")
    fields = dict(line.split(":", 1) for line in status if ":" in line)
    return {key: int(fields[key].split()[0]) / 1000 for key in ("RssAnon", "RssFile")}


def table(rows: list[Row]) -> str:
    """Return the rows for people."""
    lines = ["       images   kind        made s   disk MB   open s   epoch order s   first batch s   RSS MB   shared MB"]
    for row in rows:
        times = f"{row.open_s:6.3f}   {row.order_s:13.2f}   {row.first_batch_s:13.2f}"
        sizes = f"{row.rss_mb:6.0f}   {row.shared_mb:9.0f}"
        lines.append(f"{row.images:>13,}   {row.kind:<9}   {row.made_s:6.1f}   {row.disk_mb:7.1f}   {times}   {sizes}")
    return "\n".join(lines)


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain values."""
    return [asdict(row) for row in rows]


if __name__ == "__main__":
    main(sys.argv[1])
