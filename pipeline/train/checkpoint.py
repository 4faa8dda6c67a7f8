"""Checkpoints: everything that a run needs to go on, written so that a crash can't leave half a file.

Files hold tensors and plain values only and are read with `weights_only=True`. Not here: when to save (`engine`).
"""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import CheckpointError
from pipeline.files import write_atomically

FORMAT = 1
_NAME = re.compile(r"^step-(\d{9})\.pt$")


@dataclass(frozen=True)
class Store:
    """The checkpoints of one run: the newest few by step, and the best."""

    folder: Path
    keep: int = 2

    @property
    def best(self) -> Path:
        """Path of the checkpoint with the best validation result."""
        return self.folder / "best.pt"

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write the state after `step` steps and delete all but the newest `keep`.

        Raises:
            UsageError: if the directory can't be written to.
        """
        path = self.folder / f"step-{step:09d}.pt"
        write_atomically(path, lambda temporary: torch.save({"format": FORMAT, **state}, temporary))
        for old in self.steps()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def save_best(self, state: dict[str, Any]) -> None:
        """Write the state as the best one.

        Raises:
            UsageError: if the directory can't be written to.
        """
        write_atomically(self.best, lambda temporary: torch.save({"format": FORMAT, **state}, temporary))

    def steps(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*.pt") if _NAME.match(p.name))

    def newest(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        return next(reversed(self.steps()), None)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: if it is missing, truncated, or no checkpoint of this pipeline.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; look for step-*.pt in a run's checkpoints folder")
    try:
        if (damaged := zipfile.ZipFile(path).testzip()) is not None:  # torch.load does not look at the checksums
            raise ValueError(f"{damaged} is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file raises almost anything: RuntimeError, EOFError, KeyError, UnpicklingError
        raise CheckpointError(
            f"{path}: truncated, damaged or not a checkpoint; delete it to go on from an older one ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this pipeline (format {FORMAT}); weights alone belong to `eval`")
    return state
