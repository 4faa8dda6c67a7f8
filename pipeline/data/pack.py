"""Packs: a data set as plain WebDataset tar shards with an index of where each sample's bytes are."""

import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from pipeline.data import image, store, verify
from pipeline.data.folders import whole_folder
from pipeline.data.index import Index, open_index, open_pack
from pipeline.data.order import Stream, permute
from pipeline.data.parallel import in_order, one_at_a_time
from pipeline.data.quarantine import Quarantine
from pipeline.data.scan import Listing, some
from pipeline.errors import DataError, TransientError, UsageError
from pipeline.files import read_bytes, write_atomically
from pipeline.units import count

_PARTS = ".parts"
_BLOCK = 512  # bytes; Source: POSIX.1-1988 (ustar)
_RECORD = 20 * _BLOCK
_CHUNK = 64  # images that a thread checks at a time
_KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "PPM": "ppm", "TIFF": "tif"}
_ROW = np.dtype([("start", "<u8"), ("length", "<u8"), ("width", "<u4"), ("height", "<u4"), ("checksum", "<u8")])


@dataclass(frozen=True)
class Settings:
    """How to pack: re-encode to a shorter side of `short_side` or a longer side of `max_side` pixels; neither keeps the bytes.

    Images that are no larger keep their bytes in any case. `quality` is of JPEG; a shard has `shard_images` images. What a list
    of bad images, `quarantine`, names is left out.
    """

    short_side: int | None = None
    max_side: int | None = None
    quality: int = 90
    shard_images: int = 4096
    quarantine: Path | None = None


class _BadImageError(Exception):
    """An image is left out; the text says why."""


@dataclass(frozen=True)
class _Job:
    index: Index
    split: str
    out: Path
    settings: Settings
    quarantine: Quarantine
    bad: frozenset[int]

    @property
    def order(self) -> NDArray[np.int64]:
        """int64[N]: the samples as they are written, shuffled, so that neighbours on the disk are unrelated."""
        n = len(self.index)
        return permute(np.arange(n, dtype=np.int64), n, 0, 0, Stream.PACK)

    def about(self) -> dict[str, Any]:
        """Return what shards must agree on to belong to one pack."""
        index = self.index
        source = hashlib.sha256(index.names.tobytes() + index.labels.astype(np.int64).tobytes())
        for side in (index.widths, index.heights):  # 0 of a bad image, so that a pack made before it was mended is told apart
            source.update(side.astype(np.int32).tobytes())
        settings = {key: value for key, value in asdict(self.settings).items() if key != "quarantine"}
        listed = hashlib.sha256(self.quarantine.listed.tobytes()).hexdigest() if len(self.quarantine.listed) else ""
        return {"settings": settings, "images": len(index), "source": source.hexdigest(), "left_out": listed}


def pack(root: Path, out: Path, settings: Settings, cache: Path | None, threads: int) -> list[dict[str, Any]]:
    """Pack the splits of a data root into `out/train` and `out/val`; return for each its folder, images and bytes.

    A pack that is finished is left as it is, one that was interrupted goes on after its last finished shards. The same
    images and settings give the same bytes.

    Raises:
        DataError: if the root can't be used, or `out` holds a pack of something else.
        UsageError: if `out` can't be written or is full; finished shards stay.
    """
    rows = []
    for split in ("train", "val"):
        job = _job(open_index(root, split, cache), split, out.expanduser().resolve() / split, settings)
        if job.out == job.index.folder:
            raise UsageError(f"{out}: is the data root itself; choose another folder for the pack")
        _pack_split(job, threads)
        made, meta = open_pack(job.out), store.read_meta(job.out / store.IN_PACK)
        row = {"folder": str(job.out), "images": len(made), "bad": len(made.bad), "shards": len(meta.shards)}
        rows.append(row | {"bytes": sum(meta.shard_bytes), "first_bad": made.first_bad()})
    return rows


def _job(index: Index, split: str, out: Path, settings: Settings) -> _Job:
    lists = [settings.quarantine] if settings.quarantine else []
    quarantine = Quarantine(index, split, 1.0, lists)
    if settings.quarantine:
        quarantine.warn_of_unknown(settings.quarantine, "--quarantine")
    return _Job(index, split, out, settings, quarantine, frozenset(quarantine.bad.tolist()))


def _pack_split(job: _Job, threads: int) -> None:
    with _writing(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(job.out, lambda: tqdm.write(f"waiting for another packer of {job.out}", file=sys.stderr)):
            if store.is_pack(job.out):
                open_pack(job.out)
                _same(job, store.read_meta(job.out / store.IN_PACK).model_extra or {})
            else:
                _pack_anew(job, threads)


def _pack_anew(job: _Job, threads: int) -> None:
    parts = job.out / _PARTS
    order = job.order
    per = job.settings.shard_images
    chunks = [order[start : start + per] for start in range(0, len(order), per)]
    parts.mkdir(exist_ok=True)
    for left in [*job.out.glob(".*.tmp"), *parts.glob(".*.tmp")]:  # of a process that was killed
        left.unlink()
    settings = parts / "settings.json"
    before = _read_json(settings)
    if before and before.pop("format", None) == store.FORMAT:
        _same(job, before)
    else:  # there is none, or it was begun by a version that packs in another order
        shutil.rmtree(parts)
        parts.mkdir()
    write_atomically(settings, lambda path: path.write_text(json.dumps(job.about() | {"format": store.FORMAT})))
    bar = tqdm(total=len(order), desc=f"packing {job.split}", unit="img", disable=None, leave=False, delay=1)
    with bar:
        for rows in in_order(lambda number: _shard(job, number, chunks[number]), range(len(chunks)), threads, "pack"):
            bar.update(len(rows))
    _write_index(job, chunks)
    shutil.rmtree(parts)


def _same(job: _Job, found: dict[str, Any]) -> None:
    for key, value in job.about().items():
        if found.get(key, "") != value:
            what = {
                "settings": "made with other settings",
                "source": "of other images, or they have changed since",
                "left_out": "made with another list of bad images",
            }
            raise DataError(
                f"{job.out}: holds a pack {what.get(key, 'of other images')}; choose another folder, or remove this one"
            )


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{out}: can't be written: {error.strerror or error}; choose another folder") from error
    except (UsageError, TransientError) as error:
        raise type(error)(f"{error}; the same command goes on after the finished shards") from error


def _name(job: _Job, number: int) -> str:
    return f"{job.split}-{number:06d}.tar"


def _shard(job: _Job, number: int, ids: NDArray[np.int64]) -> NDArray[Any]:
    """Write a shard unless it is there already; return its samples' places."""
    path, part = job.out / _name(job, number), job.out / _PARTS / f"{number:06d}.npy"
    written = _read_part(part, ids)
    if written and path.is_file() and path.stat().st_size == _shard_bytes(written[0]):  # else a crash or a copy cut it short
        return written[0]
    rows = np.zeros(len(ids), _ROW)
    reasons: dict[int, str] = {}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for place, sample in enumerate(ids.tolist()):
                try:
                    rows[place] = _write_sample(job, file, sample)
                except _BadImageError as error:
                    reasons[sample] = str(error)
            file.write(bytes(2 * _BLOCK))
            file.write(bytes(-file.tell() % _RECORD))

    write_atomically(path, write)
    write_atomically(part.with_suffix(".json"), lambda temporary: temporary.write_text(json.dumps(reasons)))
    write_atomically(part, lambda temporary: _save_part(temporary, rows))
    return rows


def _shard_bytes(rows: NDArray[Any]) -> int:
    """Return the size of the tar of samples, each an image and a label of less than a block."""
    lengths = rows["length"][rows["length"] > 0].astype(np.int64)
    return _up(int((-(-lengths // _BLOCK) * _BLOCK).sum()) + len(lengths) * 3 * _BLOCK + 2 * _BLOCK, _RECORD)


def _up(size: int, to: int) -> int:
    return -(-size // to) * to


def _save_part(path: Path, rows: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, rows, allow_pickle=False)


def _read_part(part: Path, ids: NDArray[np.int64]) -> tuple[NDArray[Any], dict[str, str]] | None:
    """Return where the samples `ids` of a shard lie and why others were left out; None if the shard is not finished."""
    reasons = _read_json(part.with_suffix(".json"))
    try:
        rows: NDArray[Any] = np.load(part, allow_pickle=False)
    except Exception:  # numpy's reader of headers raises anything
        return None
    left_out = (
        {str(sample) for sample in ids[rows["length"] == 0].tolist()}
        if rows.shape == ids.shape and rows.dtype == _ROW
        else None
    )
    return None if reasons is None or left_out != reasons.keys() else (rows, reasons)


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return what an interrupted call has written down, or None if there is nothing, or it is damaged."""
    try:
        found = json.loads(read_bytes(path, 1 << 28))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _write_sample(job: _Job, file: BinaryIO, sample: int) -> tuple[int, int, int, int, int]:
    """Write an image and its label; return start, length, width, height and checksum.

    Raises:
        _BadImageError: if the image is bad, before anything is written.
    """
    if sample in job.bad:
        raise _BadImageError(job.quarantine.reason(sample))
    size = int(job.index.widths[sample]), int(job.index.heights[sample])
    try:
        data, kind, size = _encode(job.index.read(sample), size, job.settings)
    except _BadImageError:
        raise
    except Exception as error:  # PIL's decoders raise anything on broken files
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{job.index.path(sample)}: {image.describe(error)}; make it readable") from error
        raise _BadImageError(image.describe(error)) from error
    start = _write_member(file, f"{sample:09d}.{kind}", data)
    _write_member(file, f"{sample:09d}.cls", str(int(job.index.labels[sample])).encode())
    return start, len(data), *size, checksum(data)


def checksum(data: bytes | memoryview) -> int:
    """Return the checksum of a sample's bytes that an index of a pack keeps."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _write_member(file: BinaryIO, name: str, data: bytes) -> int:
    file.write(_header(name, len(data)))
    start = file.tell()
    file.write(data)
    file.write(bytes(-len(data) % _BLOCK))
    return start


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444  # no time and no owner: the same images give the same bytes
    return info.tobuf(tarfile.USTAR_FORMAT)


def _encode(data: bytes, size: tuple[int, int], settings: Settings) -> tuple[bytes, str, tuple[int, int]]:
    """Return an image's bytes as they are to be stored, its kind and its width and height."""
    target = target_size(size, settings)
    if target != size:
        # Decoders paint garbage and holes and go on: encoded again, nobody could tell that they were there.
        verdict = verify.examine_bytes(np.frombuffer(data, np.uint8), deep=True)
        if verdict.problem:
            raise _BadImageError(f"{verdict.problem}: {verdict.detail}")
    with Image.open(BytesIO(data), formats=image.FORMATS) as opened:
        if target == size:
            return data, _KINDS[str(opened.format)], size
        resized = opened.convert("RGB").resize(target, Image.Resampling.BICUBIC)
    buffer = BytesIO()
    resized.save(buffer, "JPEG", quality=settings.quality)
    return buffer.getvalue(), "jpg", target


def target_size(size: tuple[int, int], settings: Settings) -> tuple[int, int]:
    """Return width and height that an image of `size` is stored with; never larger."""
    shares = [1.0]
    if settings.short_side:
        shares.append(settings.short_side / min(size))
    if settings.max_side:
        shares.append(settings.max_side / max(size))
    share = min(shares)
    return size if share == 1 else (max(1, round(size[0] * share)), max(1, round(size[1] * share)))


def _write_index(job: _Job, chunks: list[NDArray[np.int64]]) -> None:
    index, n = job.index, len(job.index)
    rows, shard = np.zeros(n, _ROW), np.zeros(n, np.int64)
    reasons: dict[str, str] = {}
    for number, ids in enumerate(chunks):
        written = _read_part(job.out / _PARTS / f"{number:06d}.npy", ids)
        if written is None:
            raise DataError(f"{job.out / _PARTS}: was changed meanwhile; the same command packs anew what is missing")
        rows[ids], shard[ids] = written[0], number
        reasons |= written[1]
    if not rows["length"].any():
        raise DataError(f"{index.folder}: no image can be read; there is nothing to pack")
    files = tuple(_name(job, number) for number in range(len(chunks)))
    places = {
        "shard": shard,
        "starts": rows["start"],
        "lengths": rows["length"],
        "order": job.order,
        "checksums": rows["checksum"],
    }
    names = [index.name(sample) for sample in range(n)]
    # Of no folder: a pack may be moved, and the same images give the same bytes wherever they are packed.
    listing = Listing(Path(), index.classes, names, index.labels.tolist(), {}, files, places)
    sizes = np.stack([rows["width"], rows["height"]], axis=1).astype(np.int32)
    sizes_of_files = [(job.out / name).stat().st_size for name in files]
    left_out = {"reasons": reasons, "listed": job.quarantine.listed.tolist()}
    more = job.about() | {"shard_bytes": sizes_of_files} | left_out
    with whole_folder(job.out / store.IN_PACK) as new:
        store.save(new, store.Content(Path(), listing, sizes, more))


def check(out: Path, threads: int) -> dict[str, Any]:
    """Compare every sample of a pack with its checksum; return the numbers of images, of those left out, and of shards.

    Raises:
        DataError: naming the first few samples that differ, or if there is no pack.
    """
    images, left_out, shards = 0, 0, 0
    wrong: list[str] = []
    for split in ("train", "val"):
        folder = out.expanduser().absolute() / split
        if not store.is_pack(folder):
            raise DataError(f"{folder}: no finished pack; make it with `python -m pipeline data pack ROOT {out}`")
        index = open_pack(folder)
        assert index.shards is not None
        images, left_out, shards = images + len(index), left_out + len(index.bad), shards + len(index.shards.files)
        wrong += [str(index.path(sample)) for sample in _differing(index, threads)]
    if wrong:
        raise DataError(
            f"{out}: {count(len(wrong), 'sample')} damaged: {some(wrong)}; copy the shards again, or make the pack again"
        )
    return {"folder": str(out), "images": images - left_out, "left_out": left_out, "shards": shards}


def _differing(index: Index, threads: int) -> list[int]:
    assert index.shards is not None
    order = index.shards.order
    bad = set(index.bad.tolist())

    def look(start: int) -> tuple[int, list[int]]:
        samples = order[start : start + _CHUNK].tolist()
        return len(samples), [sample for sample in samples if _differs(index, sample, sample in bad)]

    bar = tqdm(total=len(order), desc=f"checking {index.folder}", unit="img", disable=None, leave=False, delay=1)
    found: list[int] = []
    with bar:
        for n, differing in in_order(look, range(0, len(order), _CHUNK), threads, "check"):
            found += differing
            bar.update(n)
    return sorted(found)


def _differs(index: Index, sample: int, bad: bool) -> bool:
    """Tell whether a sample's image, its label or their headers are not what was packed."""
    shards = index.shards
    assert shards is not None
    start, length = int(shards.starts[sample]), int(shards.lengths[sample])
    if bad or not length:
        return not bad or length > 0
    if checksum(shards.view(sample).data) != int(shards.checksums[sample]):
        return True
    number, label = int(shards.shard[sample]), BytesIO()
    _write_member(label, f"{sample:09d}.cls", str(int(index.labels[sample])).encode())
    head = shards.bytes_at(number, start - _BLOCK, _BLOCK)
    heads = [_header(f"{sample:09d}.{kind}", length) for kind in _KINDS.values()]
    return head not in heads or shards.bytes_at(number, start + _up(length, _BLOCK), 2 * _BLOCK) != label.getvalue()
