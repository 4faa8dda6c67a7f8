"""The trained network as an MLflow model: an exported graph (`pt2`) with its signature, which any Python with torch can run."""

import contextlib
import copy
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.model import weights
from pipeline.train.state import State

_EXAMPLE = 2  # images: with one, the exported graph takes batches of one only


class Classifier(nn.Module):
    """The network with its normalisation inside: takes pixels as they are in files."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [batch, classes], of float32 [batch, 3, S, S] RGB pixels of 0 to 255."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits.float()


def save(state: State, path: Path) -> None:
    """Export the network as it is now, averaged where there is an average, to the folder `path`, in place of what is there.

    Raises:
        Exception: what torch.export and MLflow raise, for networks that can't be exported.
    """
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    size = state.cfg.eval.crop
    pixels = TensorSpec(np.dtype(np.float32), (-1, 3, size, size))
    logits = TensorSpec(np.dtype(np.float32), (-1, state.plan.classes))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet():
        mlflow.pytorch.save_model(
            _classifier(state),
            str(Path(folder) / "model"),
            signature=ModelSignature(Schema([pixels]), Schema([logits])),
            input_example=np.zeros((_EXAMPLE, 3, size, size), np.float32),
            pip_requirements=[f"torch=={version('torch').partition('+')[0]}", f"mlflow=={version('mlflow')}"],
            metadata={"classes": list(state.dataset.classes), "resize": state.cfg.eval.resize, "crop": size},
            serialization_format="pt2",
        )
        shutil.rmtree(path, ignore_errors=True)
        (Path(folder) / "model").replace(path)


def _classifier(state: State) -> Classifier:
    """Return a copy on the CPU in float32, contiguous, in evaluation mode: what torch.export takes."""
    kept = state.model if state.ema is None else state.ema.model
    model = copy.deepcopy(weights.unwrap(kept)).to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
    return Classifier(model, state.cfg.data.mean, state.cfg.data.std).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's hints for interactive users out of the log of a training."""
    before = logging.getLogger("mlflow").level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("mlflow").setLevel(before)
