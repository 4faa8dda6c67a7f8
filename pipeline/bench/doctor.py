"""Whether this installation can train: each part that training needs does a little of its work here."""

import platform
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import cpus
from pipeline.findings import Finding
from pipeline.units import count, size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHARED_MEMORY_BYTES = 2**30
_TOLERANCE = 2
"""Steps of 255 between the executors, as everywhere (`data.reference`)."""


def examine() -> list[Finding]:
    """Return what each part did; a part that raised has failed, and the others are still looked at."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "torch": _torch,
        "exchange": _exchange,
        "images": _images,
        "mlflow": _mlflow,
        "shared memory": _shared_memory,
        "temporary files": _temporary,
    }
    return [_guarded(name, check) for name, check in checks.items()]


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a library that is broken raises anything, an ImportError above all
        lines = str(error).strip().splitlines() or [""]
        said = f"{type(error).__name__}: {lines[0]}; install anew with make install"
        return Finding(name, "failed", said)


def _python() -> Finding:
    cores = cpus.available()
    return Finding("python", "ok", f"{platform.python_version()} on {platform.machine()}, {count(cores, 'core')}")


def _torch() -> Finding:
    """Take a step of a convolution on each device, forward and backward, in channels-last."""
    import torch

    gpus = torch.cuda.device_count()
    for device in [torch.device("cpu"), *(torch.device("cuda", n) for n in range(gpus))]:
        layer = torch.nn.Conv2d(8, 8, 3, padding=1).to(device).to(memory_format=torch.channels_last)
        images = torch.ones(2, 8, 8, 8, device=device).to(memory_format=torch.channels_last)
        layer(images).square().mean().backward()
        if layer.weight.grad is None or not bool(layer.weight.grad.isfinite().all()):
            return Finding("torch", "failed", f"{torch.__version__}: a gradient on {device} is not finite; keep off it")
    if gpus:
        names = {torch.cuda.get_device_name(n) for n in range(gpus)}
        return Finding(
            "torch", "ok", f"{torch.__version__} with CUDA {torch.version.cuda}, {gpus} x {', '.join(sorted(names))}"
        )
    if shutil.which("nvidia-smi"):
        said = (
            f"{torch.__version__}: nvidia-smi is here, but torch sees no GPU; compare the driver with CUDA {torch.version.cuda}"
        )
        return Finding("torch", "warning", said)
    return Finding("torch", "ok", f"{torch.__version__} on the CPU (no GPU here)")


def _exchange() -> Finding:
    from pipeline.world import backends

    found = backends()
    return Finding("exchange", "ok" if found else "failed", ", ".join(found) or "this torch has neither gloo nor NCCL")


def _images() -> Finding:
    """Decode, crop and resize a photograph with the executor that training would take, and with the reference."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        for split in ("train", "val"):
            place = Path(folder) / split / "class"
            place.mkdir(parents=True)
            Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(place / "image.jpg", quality=95)
        ours, reference = (_batch(Path(folder), executor) for executor in ("auto", "reference"))
    apart = int(np.abs(ours.astype(int) - reference.astype(int)).max())
    try:
        decoder = f"DALI {version('nvidia-dali-cuda130')}"
    except PackageNotFoundError:
        decoder = "PIL"
    return Finding(
        "images",
        "ok" if apart <= _TOLERANCE else "failed",
        f"{decoder}; at most {apart} of 255 steps from PIL (up to {_TOLERANCE} are fine)",
    )


def _batch(root: Path, executor: str) -> "NDArray[np.uint8]":
    """Return the one image of a data set as evaluation sees it."""
    from pipeline.config import load
    from pipeline.data.loader import eval_batch, open_dataset
    from pipeline.world import from_env

    keys = [f"data.root={root}", f"data.executor={executor}", "data.threads=1", f"data.cache={root / 'cache'}"]
    cfg, world = load(None, keys), from_env({})
    found: NDArray[np.uint8] = eval_batch(cfg, world, open_dataset(cfg, world).val, [0]).images.cpu().numpy()
    return found


def _mlflow() -> Finding:
    """Keep a point in a store of its own, as tracking does."""
    from pipeline.track.tracker import Tracker, set_environment

    set_environment()
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        Tracker(f"sqlite:///{folder}/mlflow.db", "doctor")
    return Finding("mlflow", "ok", version("mlflow"))


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    free = shutil.disk_usage(place).free if place.is_dir() else 0
    if free >= _SHARED_MEMORY_BYTES:
        return Finding("shared memory", "ok", f"{size(free)} free in {place}")
    said = f"{place}: {size(free)} free; NCCL and loaders exchange through it: docker run --shm-size 8g"
    return Finding("shared memory", "warning", said)


def _temporary() -> Finding:
    place = tempfile.gettempdir()
    return Finding("temporary files", "ok", f"{size(shutil.disk_usage(place).free)} free in {place}")
