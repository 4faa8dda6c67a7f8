"""The two splits of a data set, checked against each other."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.data import sources, synthetic
from pipeline.data.index import Index, open_index
from pipeline.data.quarantine import Quarantine
from pipeline.data.scan import some
from pipeline.errors import DataError
from pipeline.units import count
from pipeline.world import World

_LEAST_GOOD = 0.1
"""Of a training split; with fewer good ones, drawing stand-ins might fail hours into a run."""
_LAYOUT = "set it to a folder with train/<class>/* and val/<class>/*"


@dataclass(frozen=True)
class Dataset:
    """The indexes of both splits, and the classes that they share."""

    train: Index
    val: Index
    classes: tuple[str, ...]
    bad_train: Quarantine
    bad_val: Quarantine

    def remember_bad(self, file: Path, world: World) -> None:
        """Take over the bad images that an earlier start of a run met, and keep those met from now on in its file.

        Raises:
            DataError: if the file can't be read, or, on rank 0, not be written.
        """
        for bad in (self.bad_train, self.bad_val):
            bad.attach(file)
            if world.is_main:
                bad.note_unreadable()

    def bad_images(self) -> int:
        """Return how many images of both splits are known to be bad, to any rank of the run."""
        return self.bad_train.count() + self.bad_val.count()


def open_dataset(cfg: Config, world: World) -> Dataset:
    """Open the data set of a configuration; its indexes are made on first use, by rank 0.

    Raises:
        DataError: on every rank, if the data can't be used: the message names the folder or file and the remedy.
    """
    data = cfg.data
    if data.executor == "synthetic":
        train = synthetic.make_index("train", data.synthetic_train, data.synthetic_classes)
        val = synthetic.make_index("val", data.synthetic_val, data.synthetic_classes)
        return _dataset(train, val, cfg)
    root = world.together(lambda: _stage(cfg))
    dataset = world.main_first(lambda: _open(root, cfg))
    if world.is_main and data.quarantine:
        dataset.bad_train.warn_of_unknown(data.quarantine)
        dataset.bad_val.warn_of_unknown(data.quarantine)
    return dataset


def _stage(cfg: Config) -> Path | None:
    """Return the data root, after copying it to this node if that is asked for; every rank calls this, one a node copies."""
    data = cfg.data
    if data.stage_to is None:
        if data.stage_from is not None:
            raise DataError("data.stage_from: needs data.stage_to, the folder to copy to; set it, or data.root instead")
        return data.root
    from pipeline.data.stage import stage  # fsspec is needed for this only

    stage(data.stage_from or str(_check_root(data.root)), data.stage_to)
    return data.stage_to


def _open(given: Path | None, cfg: Config) -> Dataset:
    root = _check_root(given)
    train, val = (open_index(root, split, cfg.data.cache) for split in ("train", "val"))
    if train.classes != val.classes:
        raise DataError(f"{root}: {_difference(train.classes, val.classes)}; both need the same class folders")
    return _dataset(train, val, cfg)


def _dataset(train: Index, val: Index, cfg: Config) -> Dataset:
    return Dataset(train, val, train.classes, quarantine(train, "train", cfg), quarantine(val, "val", cfg))


def quarantine(index: Index, split: str, cfg: Config) -> Quarantine:
    """Return the quarantine of a split as the configuration says.

    Raises:
        DataError: if more images are bad than `data.max_bad_fraction`, or the list `data.quarantine` can't be read or leaves
            too few images.
    """
    lists = [cfg.data.quarantine] if cfg.data.quarantine else []
    found = Quarantine(index, split, cfg.data.max_bad_fraction, lists)
    if len(found.bad):
        _check_left(index, split, found.bad, "bad images and the list data.quarantine" if lists else "bad images")
    return found


def _check_left(index: Index, split: str, bad: NDArray[np.int64], who: str) -> None:
    left = len(index) - len(bad)
    least = max(1, len(index) * _LEAST_GOOD) if split == "train" else 1
    remedy = "mend images, take some off a list, or train on a data root without "
    if left < least:
        raise DataError(f"{index.folder}: {who} leave {left:,} of {count(len(index), 'image')}, too few; {remedy}the others")
    if split == "train":
        every, out = (np.bincount(labels, minlength=len(index.classes)) for labels in (index.labels, index.labels[bad]))
        gone = [index.classes[label] for label in np.flatnonzero((every > 0) & (every == out)).tolist()]
        if gone:
            raise DataError(
                f"{index.folder}: {who} leave no image of {count(len(gone), 'class', 'classes')} ({some(gone)}); "
                f"{remedy}{'this class' if len(gone) == 1 else 'these classes'}"
            )


def _check_root(root: Path | None) -> Path:
    if root is None:
        raise DataError(f"data.root: is not set; {_LAYOUT}")
    root = root.expanduser()
    if not root.is_dir():
        raise DataError(f"data.root: {root} is not a folder; {_LAYOUT}")
    if not any(root.iterdir()):
        raise DataError(f"data.root: {root} is empty; {_LAYOUT}")
    missing = [split for split in ("train", "val") if not sources.exists(root / split)]
    if missing:
        raise DataError(f"data.root: {root} has no folder {' and none '.join(missing)}; {_LAYOUT}")
    return root


def _difference(train: tuple[str, ...], val: tuple[str, ...]) -> str:
    parts = []
    for split, these, others in (("train", train, val), ("val", val, train)):
        only = sorted(set(these) - set(others))
        parts += [f"classes only in {split}: {some(only)}"] if only else []
    return "; ".join(parts)
