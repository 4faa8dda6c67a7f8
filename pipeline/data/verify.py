"""Finds every bad image of a data set: by its header and size, and by decoding it."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from pipeline.data import image, jpeg
from pipeline.data.index import Index, open_index
from pipeline.data.parallel import in_order
from pipeline.data.quarantine import Entry
from pipeline.files import open_regular

Bytes = NDArray[np.uint8]
_CHUNK = 64
_TAIL = 2048  # bytes at the end in which a JPEG's end marker is looked for


@dataclass(frozen=True)
class Verdict:
    """What an image is (`kinds`), or what is wrong with it (`problem`, and `detail` in the decoder's words)."""

    kinds: tuple[str, ...] = ()
    problem: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Bad:
    """A bad image: where it is, what kind of bad, and the decoder's words."""

    entry: Entry
    path: Path
    problem: str


@dataclass(frozen=True)
class Report:
    """What verifying found: the number of images, of each kind of good image, and the bad ones; and what it cost."""

    images: int
    cpu_ms_per_image: float
    kinds: dict[str, int]
    bad: list[Bad]

    def problems(self) -> dict[str, int]:
        """Return how many images have each problem, the most frequent first."""
        return dict(Counter(one.problem for one in self.bad).most_common())


def verify(root: Path, cache: Path | None, *, deep: bool, threads: int) -> Report:
    """Look at every image of both splits; `deep` decodes them too. Shows a bar on a terminal.

    Raises:
        DataError: if the root can't be used.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    bad: list[Bad] = []
    images, spent_s = 0, 0.0
    for split in ("train", "val"):
        index = open_index(root, split, cache, allow_bad=True)
        images += len(index)
        before_s = time.process_time()
        bar = tqdm(total=len(index), desc=f"verifying {split}", unit="img", disable=None, leave=False, delay=1)
        for sample, verdict in _verdicts(index, deep, threads):
            seen[verdict.kinds] += 1
            if verdict.problem:
                reason = f"{verdict.problem}: {verdict.detail}" if verdict.detail else verdict.problem
                bad.append(Bad(Entry(split, sample, index.name(sample), reason), index.path(sample), verdict.problem))
            if sample % _CHUNK == 0:
                bar.update(_CHUNK)
        bar.close()
        spent_s += time.process_time() - before_s
    kinds: Counter[str] = Counter()
    for several, n in seen.items():
        kinds.update(dict.fromkeys(several, n))
    return Report(images, spent_s / images * 1000, dict(sorted(kinds.items())), bad)


def _verdicts(index: Index, deep: bool, threads: int) -> Iterator[tuple[int, Verdict]]:
    order: NDArray[np.int64] = index.shards.order if index.shards else np.arange(len(index))

    def look(start: int) -> list[tuple[int, Verdict]]:
        return [(int(sample), examine(index, int(sample), deep)) for sample in order[start : start + _CHUNK]]

    for found in in_order(look, range(0, len(order), _CHUNK), threads, "verify"):
        yield from found


def examine(index: Index, sample: int, deep: bool) -> Verdict:
    """Return what a sample is, or what is wrong with it."""
    try:
        if index.shards is not None:
            if not int(index.shards.lengths[sample]):
                return Verdict(problem="left out", detail=f"when it was packed: {index.reasons.get(sample, 'not readable')}")
            return examine_bytes(index.shards.view(sample), deep)
        path = os.path.join(index.folder, index.name(sample))  # noqa: PTH118 - a Path costs a tenth of the time
        fd = open_regular(path)
        try:
            return _judge_file(fd, deep)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return Verdict(problem="missing", detail="no such file")
    except OSError as error:
        return Verdict(problem="unreadable", detail=image.describe(error))


def _judge_file(fd: int, deep: bool) -> Verdict:
    size = os.fstat(fd).st_size
    if not size:
        return Verdict(problem="empty", detail="0 bytes")
    if deep:
        return examine_bytes(np.frombuffer(os.pread(fd, size, 0), np.uint8), deep)
    return judge(lambda start, n: os.pread(fd, n, start), size)


def examine_bytes(data: Bytes, deep: bool) -> Verdict:
    """Return what an image in memory (uint8[bytes]) is, or what is wrong with it."""
    verdict = judge(lambda start, n: data[start : start + n].tobytes(), len(data))
    return _decode(data, verdict) if deep and not verdict.problem else verdict


def judge(read: Callable[[int, int], bytes], size: int) -> Verdict:
    """Judge an image of `size` bytes by its header and, of a JPEG, its end, without decoding it.

    `read(start, n)` returns up to `n` of its bytes.
    """
    head = read(0, image.HEAD)
    if not head.startswith(jpeg.SOI):
        return _judge_other(head, lambda: read(0, size))
    try:
        frame = image.read_frame(head, lambda n: read(0, n))
    except (ValueError, OSError) as error:
        return Verdict(problem="cut header" if isinstance(error, OSError) else "broken header", detail=str(error))
    tail = head if size <= len(head) else read(max(0, size - _TAIL), _TAIL)
    if jpeg.EOI not in tail:
        return Verdict(problem="truncated", detail="no end-of-image marker")
    return Verdict(kinds=_jpeg_kinds(frame, head))


def _jpeg_kinds(frame: jpeg.Frame, head: bytes) -> tuple[str, ...]:
    colours = {1: ("grey",), 4: ("CMYK",)}.get(frame.components, ())
    return ("JPEG", *colours, *(["progressive"] if frame.progressive else []), *(["EXIF-rotated"] if _rotated(head) else []))


def _rotated(head: bytes) -> bool:
    """Tell whether EXIF data in the first bytes asks for another orientation than the stored one."""
    at = head.find(b"Exif\0\0")
    if at < 0:
        return False
    exif = Image.Exif()
    try:
        exif.load(head[at:])
        return bool(exif.get(0x0112, 1) != 1)
    except Exception:  # PIL raises anything on broken EXIF data, which does no harm here
        return False


def _judge_other(head: bytes, read: Callable[[], bytes]) -> Verdict:
    if head.startswith(b"GIF8"):
        return Verdict(problem="GIF", detail="not a JPEG, PNG, BMP, PPM, TIFF or WebP image")
    try:
        with Image.open(BytesIO(read()), formats=image.FORMATS) as opened:
            alpha = ["alpha"] if "A" in opened.getbands() or "transparency" in opened.info else []
            kinds = (str(opened.format), *alpha)
            image.check_kind(opened)
        return Verdict(kinds=kinds)
    except UnidentifiedImageError as error:
        return Verdict(problem="text" if _is_text(head) else "no image", detail=image.describe(error))
    except ValueError as error:
        return Verdict(problem="unsupported", detail=str(error))
    except Exception as error:  # PIL's decoders raise anything on broken files
        return Verdict(problem="corrupt data", detail=image.describe(error))


def _is_text(head: bytes) -> bool:
    try:
        return "\0" not in head[: image.HEAD - 4].decode("utf-8")
    except UnicodeDecodeError:
        return False


def _decode(data: Bytes, verdict: Verdict) -> Verdict:
    """Decode an image whose header is good; of JPEGs only an eighth of each side, which reads all of the data."""
    try:
        if "JPEG" not in verdict.kinds:
            image.read_rgb(BytesIO(data.data))
            return verdict
        # Strict: libjpeg only warns of garbage and of holes, paints something, and PIL and DALI pass that on silently.
        space = "CMYK" if "CMYK" in verdict.kinds else "GRAY"
        simplejpeg.decode_jpeg(
            data, space, fastdct=True, fastupsample=True, min_height=1, min_width=1, min_factor=8, strict=True
        )
    except Exception as error:  # decoders raise anything on broken files
        detail = image.describe(error)
        problem = "truncated" if "remature end of JPEG" in detail or "truncated" in detail else "corrupt data"
        return Verdict(problem=problem, detail=detail)
    return verdict
