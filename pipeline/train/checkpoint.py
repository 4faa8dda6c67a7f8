"""Checkpoints: everything that a run needs to go on, written so that a crash can't leave half a file.

Files hold tensors and plain values only and are read with `weights_only=True`.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import CheckpointError, TransientError, UsageError
from pipeline.files import write_atomically
from pipeline.model import weights

FORMAT = 1
DAMAGED = ".damaged"
"""What the names of damaged files end in; they are kept, for whoever wants to look at them."""
_STEP = re.compile(r"^step-(\d{9})\.pt$")
_BEST = re.compile(r"^best-(\d{9})-(-?\d+\.\d{6})\.pt$")
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}


@dataclass(frozen=True)
class Store:
    """The checkpoints of one run: the newest few by step, and the best.

    The best is a second name of a step's file (`best-STEP-SCORE.pt`), so that a score and its weights are never apart;
    `best.pt` is a third name of the newest of these. Those stay that a checkpoint which is still there knows as its best.
    """

    folder: Path
    keep: int = 2

    @property
    def best(self) -> Path:
        """Path of the checkpoint with the best validation result."""
        return self.folder / "best.pt"

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint after `step` steps."""
        return self.folder / f"step-{step:09d}.pt"

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write the state after `step` steps, and delete all but the newest `keep` and the bests that these know.

        Raises:
            TransientError, UsageError: if it can't be written, as `write_atomically` does.
        """
        path = self.path(step)
        write_atomically(path, lambda temporary: _write({"format": FORMAT, **state}, temporary))
        for old in self.steps()[: -self.keep]:
            old.unlink(missing_ok=True)
        oldest = _number(self.steps()[0])
        known = [best for best in self.bests() if _number(best) < oldest]  # a step's file is written before its evaluation
        for old in known[:-1]:
            old.unlink(missing_ok=True)
        return path

    def keep_best(self, step: int, score: float) -> None:
        """Make the checkpoint after `step` steps the best one, with its score.

        Raises:
            TransientError, UsageError: if that can't be done, as `write_atomically` does.
        """
        best = self.folder / f"best-{step:09d}-{score:.6f}.pt"
        _link(self.path(step), best)
        _link(best, self.best)

    def rewind(self, step: int, best_step: int | None) -> bool:
        """Make the bests what they were when the checkpoint after `step` steps was written, which knows `best_step`.

        Return whether the weights of that best one are there.

        Raises:
            TransientError, UsageError: as `keep_best` does.
        """
        bests = {_number(best): best for best in self.bests()}
        known = bests.get(-1 if best_step is None else best_step)
        if known is not None:
            _link(known, self.best)
        elif best_step is None:
            self.best.unlink(missing_ok=True)
        for number, best in bests.items():
            if number >= step and number != best_step:
                best.unlink(missing_ok=True)
        return known is not None or best_step is None

    def steps(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*.pt") if _STEP.match(p.name))

    def bests(self) -> list[Path]:
        """Return the checkpoints that are or were the best, oldest first."""
        return sorted(p for p in self.folder.glob("best-*.pt") if _BEST.match(p.name))

    def newest(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        return next(reversed(self.steps()), None)

    def newest_whole(self, say: Callable[[str], None]) -> Path | None:
        """Return the newest checkpoint that is not damaged, None if there never was one; set aside those that are.

        `say` is told what is wrong with each, in a line.

        Raises:
            CheckpointError: if all are damaged (a run must not begin anew without being asked to) or one may not be read.
            TransientError: if the files can't be read for a reason that may pass.
        """
        for path in sorted([*self.steps(), *self.bests()], key=lambda p: (_number(p), p.name), reverse=True):
            try:
                weights.check_whole(path)
            except CheckpointError as error:
                if isinstance(error.__cause__, PermissionError):
                    raise
                set_aside(path, str(error), say)
            else:
                return path
        if damaged := sorted(p.name for p in self.folder.glob(f"*{DAMAGED}")):
            raise CheckpointError(
                f"{self.folder}: every checkpoint is damaged ({', '.join(damaged[:4])}); put a whole one there, "
                "or start over with a new run.dir"
            )
        return None


def set_aside(path: Path, why: str, say: Callable[[str], None]) -> None:
    """Rename a damaged file, so that it is not read again, and say so.

    Raises:
        UsageError: if it can't be renamed.
    """
    kept = path.with_name(path.name + DAMAGED)
    try:
        path.replace(kept)
    except OSError as error:
        raise UsageError(f"{path}: is damaged and can't be renamed: {error.strerror}; remove it") from error
    say(f"warning: {why.partition('; ')[0]}; kept as {kept.name}")


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: if it is missing, damaged, or no checkpoint of this pipeline.
        TransientError: if it can't be read for a reason that may pass.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; look for step-*.pt in a run's checkpoints folder")
    try:
        weights.check_whole(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except TransientError:
        raise
    except Exception as error:  # a forged file raises almost anything: RuntimeError, EOFError, KeyError, UnpicklingError
        kind = type(error.__cause__ or error).__name__
        raise CheckpointError(
            f"{path}: truncated, damaged or not a checkpoint; delete it to go on from an older one ({kind})"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this pipeline (format {FORMAT}); weights alone belong to `eval`")
    return state


def _number(path: Path) -> int:
    """Return the step that a checkpoint's name tells."""
    return int(path.name.split("-")[1].removesuffix(".pt"))


def _write(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # given a path, torch would lose the reason why it can't be written
        torch.save(state, file)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, in place of what has that name now; where the file system has no links, copy it."""
    if not (target.exists() and target.samefile(source)):  # renaming one name of a file to another would do nothing
        write_atomically(target, lambda temporary: _second(source, temporary))


def _second(source: Path, temporary: Path) -> None:
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, temporary)
