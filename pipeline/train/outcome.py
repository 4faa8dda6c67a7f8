"""What is kept with a run besides its curves: what it was made from and with at its start, what came out at its end.

Only rank 0 keeps anything.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.index import Index
from pipeline.data.loader import Batch, eval_batch
from pipeline.files import write_text
from pipeline.track import curves, environment
from pipeline.train import pictures
from pipeline.train.state import State

_CODE = Path(__file__).resolve().parents[1]
ENVIRONMENT, DIFF, PLAN = "environment.json", "code.diff", "plan.json"
_FIRST = 16  # images of the first training batch


def datasets(state: State) -> list[dict[str, Any]]:
    """Return both splits as MLflow's data set inputs: name, digest, context, source and counts."""
    splits = {"training": state.dataset.train, "validation": state.dataset.val}
    return [
        {
            "name": f"{index.folder.parent.name}/{index.folder.name}",
            "digest": digest(index),
            "context": context,
            "source": str(index.folder),
            "images": len(index),
            "classes": len(index.classes),
        }
        for context, index in splits.items()
    ]


def digest(index: Index) -> str:
    """Return 16 hexadecimal digits that change with a split's names, labels, sizes or classes."""
    found = hashlib.blake2b(json.dumps(index.classes).encode(), digest_size=8)
    found.update(np.ascontiguousarray(index.names).data)
    for array in (index.labels, index.widths, index.heights):
        found.update(np.ascontiguousarray(array, np.int32).data)
    return found.hexdigest()


def keep_origin(state: State, run_dir: Path) -> list[Path]:
    """Write the environment, the plan and the code's uncommitted changes; return the files."""
    texts = {
        ENVIRONMENT: json.dumps(environment.describe(), indent=1) + "\n",
        PLAN: json.dumps(state.plan.as_dict(), indent=1) + "\n",
        DIFF: environment.diff(_CODE),
    }
    files = []
    for name, text in texts.items():
        if text is not None:
            write_text(run_dir / name, text)
            files.append(run_dir / name)
    return files


def keep_first_batch(batch: Batch, classes: tuple[str, ...], path: Path) -> None:
    """Draw the first training images of this process as they come from the loader: cropped, flipped, before normalising."""
    labels = [classes[label] for label in batch.labels[:_FIRST].tolist()]
    pictures.grid(batch.images[:_FIRST], labels, path)


def keep_errors(state: State, folder: Path) -> list[Path]:
    """Write the confusion matrix and the worst errors of the last evaluation; return the files.

    Raises:
        PipelineError: if a file can't be written or an image can't be read again.
    """
    found, classes = state.examined, state.dataset.classes
    files: list[Path] = []
    if found is not None and found.confusion is not None:
        files = [folder / "per_class.csv", folder / "confusion.png"]
        pictures.per_class(found.confusion, classes, files[0])
        pictures.confusion(found.confusion, classes, files[1])
    if found is not None and found.worst:
        batch = eval_batch(state.cfg, state.world, state.dataset.val, [error.sample for error in found.worst])
        captions = [f"{classes[e.predicted]}\nis {classes[e.label]}, loss {e.loss:.2f}" for e in found.worst]
        files.append(folder / "worst.png")
        pictures.grid(batch.images, captions, files[-1])
    return files


def keep_pictures(state: State, run_dir: Path, journal: Path) -> dict[str, list[Path]]:
    """Draw what came out of a run; return the files by the folder of artifacts that they belong in.

    Raises:
        PipelineError: if a picture can't be made.
        OSError: if the journal can't be read.
    """
    drawn = run_dir / "pictures" / "curves.png"
    pictures.curves(curves.collect(journal), drawn)
    return {"pictures": [drawn], "evaluation": keep_errors(state, run_dir / "evaluation")}
