"""Files of weights: safetensors out and in, PyTorch's own format in, and loading them into a network strictly.

Nothing here runs code out of a file.
"""

import mmap
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import CheckpointError, TransientError
from pipeline.files import write_atomically
from pipeline.retry import may_pass

T = TypeVar("T")
State = dict[str, Tensor]
_COMPILED = "_orig_mod"
_DISTRIBUTED = "module."
_HOLDERS = ("ema", "model", "state_dict")
"""Where files that hold more than weights have them; of a checkpoint with averaged weights it is these that count."""
_SHOWN = 3  # names of each kind in an error, which is one line


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel and torch.compile, in whatever order they were put on."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif hasattr(model, _COMPILED):
            model = model.get_submodule(_COMPILED)
        else:
            return model


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained numbers: of parameters, not of buffers such as running means."""
    return sum(p.numel() for p in model.parameters())


def save(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write parameters and buffers to a safetensors file, whole or not at all; `metadata` goes into its header.

    Raises:
        UsageError: if the file can't be written.
    """
    # Copies: safetensors wants contiguous tensors that share no memory, and weights may be channels-last or tied.
    state = {
        _plain(name): tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in unwrap(model).state_dict().items()
    }
    # Not save_file: it makes files that only their owner can read, and has its own kind of error for a full disk.
    data = safetensors.torch.save(state, dict(metadata))
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def load_state(path: Path) -> State:
    """Read the tensors of a .safetensors, .pt or .pth file by name, onto the CPU.

    Prefixes that DistributedDataParallel and torch.compile leave on names are taken off, and of a checkpoint that
    holds more than weights, those under `ema` (averaged), `model` or `state_dict` are returned.

    Raises:
        CheckpointError: if the file is missing, broken or holds no weights.
    """
    return load_with_content(path)[0]


def load_with_content(path: Path) -> tuple[State, Mapping[str, Any]]:
    """Read what `load_state` reads, and all that the file holds beside it, in one go.

    Raises:
        CheckpointError: as `load_state` does.
    """
    if path.suffix == ".safetensors":
        content: Any = _read(path, lambda: safetensors.torch.load_file(path))
    elif path.suffix in (".pt", ".pth"):
        content = _read(path, lambda: _load(path))
    else:
        raise CheckpointError(f"{path}: weights are read from .safetensors, .pt and .pth files; give one of these")
    return _strip(_weights(content, path)), content


def load_metadata(path: Path) -> dict[str, str]:
    """Read the texts that `save` wrote into the header of a safetensors file.

    Raises:
        CheckpointError: if the file is missing or broken.
    """

    def header() -> dict[str, str]:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})

    return _read(path, header)


def load_into(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a network, wrapped or not: every name and shape must match, else nothing is changed.

    Counts of batches seen by batch norm may be missing, as in files from before PyTorch 0.4.1.

    Args:
        model: The network, changed in place.
        state: Tensors by name.
        where: What errors call the source of `state`, such as its path.

    Raises:
        CheckpointError: saying how the weights and the network differ.
    """
    check_fit(model, state, where)
    network = unwrap(model)
    names = {_plain(name): name for name in network.state_dict()}
    # A plain dict has no version, so that PyTorch fills in missing batch counts.
    network.load_state_dict({names[name]: tensor for name, tensor in state.items()})


def check_fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights whose names or shapes are not the network's, as `load_into` does, and load nothing.

    Raises:
        CheckpointError: saying how the weights and the network differ.
    """
    ours = {_plain(name): t.shape for name, t in unwrap(model).state_dict().items()}
    problem = _difference(ours, {name: t.shape for name, t in state.items()})
    if problem:
        raise CheckpointError(f"{where}: {problem}")


def _difference(ours: Mapping[str, torch.Size], theirs: Mapping[str, torch.Size]) -> str:
    """Return how the shapes of a network and of a file differ and the remedy, or an empty text."""
    missing = [name for name in ours if name not in theirs and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in theirs if name not in ours]
    reshaped = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    if not (missing or unexpected or reshaped):
        return ""
    if not missing and not unexpected and _is_head(reshaped, ours, theirs):
        old, new = theirs[reshaped[0]][0], ours[reshaped[0]][0]
        return f"made for {old} classes, and this model has {new}; use the classes it was trained on, or another file"
    shapes = [f"{name} ({_by(theirs[name])}, here {_by(ours[name])})" for name in reshaped]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    differences = ", ".join(f"{kind} {_some(found)}" for kind, found in kinds if found)
    return f"made for another model: {differences}; set the model.* keys to those it was trained with, or use another file"


def _is_head(reshaped: list[str], ours: Mapping[str, torch.Size], theirs: Mapping[str, torch.Size]) -> bool:
    """Whether all that differs is the number of outputs of linear layers, and in the same way."""
    changes = {(theirs[name][:1], ours[name][:1]) for name in reshaped}
    linear = all(len(ours[name]) == len(theirs[name]) <= 2 and ours[name][1:] == theirs[name][1:] for name in reshaped)
    return linear and len(changes) == 1


def _by(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return " ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _plain(name: str) -> str:
    """Return a parameter's name without what torch.compile puts into it, at the front or within."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _strip(state: State) -> State:
    """Return the tensors under the names that the network itself gives them."""
    plain = {_plain(name): tensor for name, tensor in state.items()}
    while all(name.startswith(_DISTRIBUTED) for name in plain):
        plain = {name.removeprefix(_DISTRIBUTED): tensor for name, tensor in plain.items()}
    return plain


def _weights(content: Any, path: Path) -> State:
    """Return the tensors by name among what a file holds."""
    places = [content.get(key) for key in _HOLDERS] + [content] if isinstance(content, Mapping) else []
    for found in places:
        if isinstance(found, Mapping) and found and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in found.items()):
            return dict(found)
    raise CheckpointError(
        f"{path}: holds no weights (tensors by name, or such under `model` or `state_dict`); use another file"
    )


def check_whole(path: Path) -> None:
    """Refuse a file of torch.save that is damaged, or that would take more memory than its size: it is not loaded for that.

    Raises:
        CheckpointError: if it is missing, no regular file, damaged, or not as torch.save writes files.
        TransientError: if it can't be read for a reason that may pass.
    """
    _read(path, lambda: _check_archive(path))


def _load(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        _check_archive(path)
    else:  # as torch.save wrote it before PyTorch 1.6
        _check_pickle(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(path: Path) -> None:
    """Look at sizes before anything is read, then at the checksums, which torch.load does not look at."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if (
            any(m.compress_type != zipfile.ZIP_STORED for m in members)
            or sum(m.file_size for m in members) > path.stat().st_size
        ):
            raise ValueError(
                "compressed or overlapping parts"
            )  # torch.save writes none, and a small file may unfold to terabytes
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} is damaged")
    _check_pickle(path)


def _check_pickle(path: Path) -> None:
    """Refuse the one call that torch.load allows a file and that takes memory at will."""
    with path.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as view:
        if view.find(b"bytearray") >= 0:
            raise ValueError("a bytearray")


def _read(path: Path, read: Callable[[], T]) -> T:
    """Return what `read` reads, and turn its errors into one that names the file."""
    if path.exists() and not path.is_file():  # to open a pipe would wait for somebody who writes into it
        raise CheckpointError(f"{path}: a directory, a pipe or a device, and no regular file; give a file of weights")
    try:
        path.open("rb").close()
        return read()
    except OSError as error:
        if may_pass(error):
            raise TransientError(f"{path}: can't be read: {error.strerror}; try again") from error
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}; check the path") from error
    except Exception as error:  # on damaged bytes torch.load raises a dozen unrelated kinds of error
        kind = type(error).__name__
        raise CheckpointError(
            f"{path}: cut short, damaged or not a file of weights ({kind}); copy or export it again"
        ) from error
