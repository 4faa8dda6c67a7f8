"""Which samples of a split are known to be bad, and what stands in for them."""

import errno
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.data import order
from pipeline.data.index import Index
from pipeline.data.scan import NAMED, VERIFY, some
from pipeline.errors import DataError
from pipeline.files import read_bytes
from pipeline.units import count
from pipeline.world import World

FILE = "quarantine.tsv"
"""Name of a run's own list, in its directory."""
_TRIES = 256
_FAR_MORE = 64
"""Samples over the limit that a rank still reads."""
_HARDLY_ANY = 0.9
"""Share of bad samples at which that many tries may find no good one."""
_FIELDS = 4
_MOST_BYTES = 1 << 30  # of a list: 10 million bad images


@dataclass(frozen=True)
class Entry:
    """A line of a quarantine file: the split, the sample's number and name, and what is wrong with it."""

    split: str
    sample: int
    name: str
    reason: str

    def line(self) -> str:
        """Return the entry as a line of tab-separated values."""
        return "\t".join(map(_escape, (self.split, str(self.sample), self.name, self.reason))) + "\n"


# A name may hold the characters that separate fields and lines.
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _escape(text: str) -> str:
    return text.translate(_ESCAPES)


def _plain(text: str) -> str:
    """Return what `_escape` was given."""
    meant = {escaped: chr(char) for char, escaped in _ESCAPES.items()}
    return re.sub(r"\\.", lambda match: meant.get(match[0], match[0]), text)


class Quarantine:
    """The bad samples of a split: those known from the start, and those learned of meanwhile.

    `bad` holds their sorted numbers, int64[bad], `listed` those of them that lists named, and `unknown` what the lists named
    that is not in the index. What a list names does not count against `max_fraction`: the user wants it left out. `news` is
    what this rank has learned and the others have not been told (`share`).
    """

    def __init__(self, index: Index, split: str, max_fraction: float, lists: Iterable[Path] = ()) -> None:
        """Start with the samples whose header can't be read and those in lists of bad images.

        Raises:
            DataError: if a list can't be read, or there are too many bad images.
        """
        self._index, self._split, self._max_fraction = index, split, max_fraction
        self._file: Path | None = None
        self._reasons: dict[int, str] = {}
        self.bad: order.Ints = index.bad
        self.unknown: list[str] = []
        self.news: dict[int, str] = {}
        self._expected: set[int] = set()
        self._mended: order.Ints = np.empty(0, np.int64)
        for path in lists:
            self.unknown += self._take(path)
        self.listed = np.union1d(_numbers(self._reasons), index.listed)
        self._check()

    def count(self) -> int:
        """Return how many bad samples have been met so far, by any rank, as of the last `share`."""
        return len(self.bad) - len(self._expected)

    def good_images(self, world: World) -> int:
        """Return how many samples are good, as far as the ranks have come upon bad ones; all ranks call this together.

        Raises:
            DataError: as `share` does.
        """
        self.share(world)
        return len(self._index) - len(self.bad)

    def attach(self, file: Path) -> None:
        """Take over what an earlier start of the run learned, and remember in its file what is learned from now on.

        Raises:
            DataError: if the file can't be read, or there are too many bad images.
        """
        if file.is_file():
            self._take(file, torn=True)
        self._file = file
        if self._too_many(len(bad := self._unlisted())):  # what was mended since keeps its stand-in, but is no reason to stop
            self._mended = _numbers(sample for sample in bad.tolist() if not self._index.problem(sample))
            self._check()

    def note_unreadable(self) -> None:
        """Name the samples whose header can't be read, and note them in the run's file, unless a list or the file has them.

        Raises:
            DataError: if the file can't be written.
        """
        unlisted = np.setdiff1d(self._index.bad, self.listed).tolist()
        new = [self._entry(sample) for sample in unlisted if sample not in self._reasons]
        if not new or self._file is None:
            return
        _append(self._file, new)
        named = [f"{self._index.path(entry.sample)}: {entry.reason}" for entry in new[:NAMED]]
        more = f"; {self._file} lists all {len(new):,}" if len(new) > NAMED else ""
        tqdm.write(f"{count(len(new), f'bad {self._split} image')}, left out: {'; '.join(named)}{more}", file=sys.stderr)

    def expect(self, found: dict[int, str]) -> None:
        """Have others stand in for bad samples of batches to come; they count once `learn` is told of them.

        How far an executor works ahead depends on the world; what a run is stopped for must not.
        """
        self._expected |= found.keys() - set(self.bad.tolist())
        self._add(found)

    def learn(self, found: dict[int, str]) -> None:
        """Remember bad samples, with what is wrong with each, in the run's file too.

        Raises:
            DataError: if that can't be written.
        """
        known = set(self.bad.tolist()) - self._expected
        new = {sample: reason for sample, reason in found.items() if sample not in known}
        self._expected -= new.keys()
        self._add(new)
        self.news |= new
        if self._file is not None and new:
            _append(self._file, [self._entry(sample) for sample in new])

    @property
    def full(self) -> bool:
        """Whether this rank needs to read no further, as it knows of far more bad samples than the run bears.

        All ranks stop when it shares them, at the end of the step; what they have met by then is the same in any world
        unless it is far more.
        """
        bad = len(self._unlisted()) + len(self._expected)
        return self._too_many(bad) and (self._too_many(bad - _FAR_MORE) or bad > _HARDLY_ANY * len(self._index))

    def share(self, world: World) -> None:
        """Tell all ranks what each has learned; all call this together, and know the same afterwards.

        Raises:
            DataError: on every rank, if there are too many bad images by now; one names some of them.
        """
        found = {int(sample): reason for part in world.gather(self.news) for sample, reason in part.items()}
        self.news = {}
        self._expected -= found.keys()
        self._add(found)
        world.together(lambda: self._check(met=bool(found)))

    def replace(self, ids: order.Ints, positions: order.Ints, seed: int, epoch: int) -> order.Ints:
        """Return int64[B]: samples `ids`, with good ones in place of the bad, chosen by `(seed, epoch, position)` alone.

        The first good one of a sequence of random samples counts, so it does not matter when a bad one becomes known.

        Raises:
            DataError: if there is hardly a good sample.
        """
        places = np.flatnonzero(np.isin(ids, self.bad))
        if not len(places):
            return ids
        ids = ids.copy()
        numbers = order.draws(positions[places], seed, epoch, order.Stream.REPLACE, _TRIES)
        candidates = (numbers * len(self._index)).astype(np.int64)
        good = ~np.isin(candidates, self.bad)
        if not (good.any(axis=1).all() or self.full):
            raise DataError(f"{self._index.folder}: hardly any image is good; {VERIFY} says why")
        ids[places] = candidates[np.arange(len(places)), good.argmax(axis=1)]
        return ids

    def reason(self, sample: int) -> str:
        """Return what is wrong with a bad sample."""
        return self._reasons.get(sample) or self._index.reason(sample)

    def warn_of_unknown(self, path: Path, option: str = "data.quarantine") -> None:
        """Say which images of a list the split lacks; `option` is where the user named it."""
        # Not an error: the files may have been removed since, as they should be. But it may be another data set's list.
        if self.unknown:
            named = some([repr(name) for name in self.unknown])
            text = f"lists {count(len(self.unknown), 'image')} that {self._split} lacks: {named}"
            tqdm.write(f"warning: {option}: {path} {text}", file=sys.stderr)

    def good(self, ids: order.Ints) -> order.Ints:
        """Return those of the samples `ids` that are not known to be bad."""
        return ids[~np.isin(ids, self.bad)] if len(self.bad) else ids

    def _take(self, path: Path, *, torn: bool = False) -> list[str]:
        """Take over the entries of a list; return the names that are not in the index."""
        entries = [entry for entry in read(path, torn=torn) if entry.split == self._split]
        found = self._find(entries)
        self._add({sample: entry.reason for entry, sample in found.items()})
        return [entry.name for entry in dict.fromkeys(entries) if entry not in found]

    def _add(self, found: dict[int, str]) -> None:
        self.bad = np.union1d(self.bad, _numbers(found))
        self._reasons |= found

    def _entry(self, sample: int) -> Entry:
        return Entry(self._split, sample, self._index.name(sample), self.reason(sample))

    def _find(self, entries: list[Entry]) -> dict[Entry, int]:
        """Return the samples that entries mean, of those that there are; an entry's number is a hint, its name counts."""
        index = self._index
        found: dict[Entry, int] = {}
        others: dict[bytes, list[Entry]] = {}
        for entry in entries:
            name = os.fsencode(entry.name)
            if 0 <= entry.sample < len(index) and index.encoded_name(entry.sample) == name:
                found[entry] = entry.sample
            else:
                others.setdefault(name, []).append(entry)
        if others:  # one pass for all: searching for each takes hours for a long list of a large split
            lengths = np.diff(index.offsets)
            for sample in np.flatnonzero(np.isin(lengths, list(map(len, others)))).tolist():
                for entry in others.pop(index.encoded_name(sample), ()):
                    found[entry] = sample
                if not others:
                    break
        return found

    def _unlisted(self) -> order.Ints:
        return np.setdiff1d(self.bad, np.concatenate([self.listed, self._mended, _numbers(self._expected)]))

    def _too_many(self, bad: int) -> bool:
        return bad > self._max_fraction * len(self._index)

    def _check(self, *, met: bool = False) -> None:
        bad = self._unlisted()
        if not self._too_many(len(bad)):
            return
        known = [self._entry(sample) for sample in bad[:NAMED].tolist()]
        if met:
            named = [f"{self._index.path(entry.sample)}: {entry.reason}" for entry in known]
        else:
            named = [f"{entry.name} ({entry.reason})" for entry in known]
        if met and len(bad) == 1:
            raise DataError(f"{named[0]}; replace or remove this file and start again")
        more = len(bad) - len(named)
        listed = ", ".join(named) + (f" and {more:,} more" if more > 0 else "")
        noted = f" (all are listed in {self._file})" if self._file else ""
        raise DataError(
            f"{self._index.folder}: {count(len(bad), 'image')} of {len(self._index):,} can't be read: {listed}{noted}; "
            "replace or remove such files, list them for data.quarantine, or raise data.max_bad_fraction"
        )


def read(path: Path, *, torn: bool = False) -> list[Entry]:
    """Read a quarantine file; the last line may be cut off, as a process that was killed leaves it, with `torn` any line.

    Raises:
        DataError: if it can't be read or is something else.
    """
    try:
        lines = read_bytes(path.expanduser(), _MOST_BYTES).decode("utf-8", "surrogateescape").split("\n")[:-1]
        rows = [[_plain(text) for text in line.split("\t")] for line in lines]
        whole = [row for row in rows if len(row) == _FIELDS and row[1].isdecimal()] if torn else rows
        return [Entry(split, int(sample), name, reason) for split, sample, name, reason in whole]
    except OSError as error:
        raise DataError(f"data.quarantine: {path}: {error.strerror}; {VERIFY} --quarantine FILE makes one") from error
    except ValueError as error:
        raise DataError(f"data.quarantine: {path}: not a quarantine file; {VERIFY} --quarantine FILE makes one") from error


def _numbers(samples: Iterable[int]) -> order.Ints:
    return np.array(sorted(samples), np.int64)


def _append(path: Path, entries: list[Entry]) -> None:
    text = "".join(entry.line() for entry in entries).encode("utf-8", errors="surrogateescape")
    try:
        # One write to a file opened for appending: ranks that do so at once don't get into each other's lines.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":  # a killed process or a full disk cut the last line off
                text = b"\n" + text
            if os.write(fd, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror}); free space, or choose another run.dir") from error
