"""Starting from trained weights: which are taken over, which part of the network stays as it is."""

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model import weights, zoo

_STEM = ("conv1", "bn1")


def check(cfg: Config) -> None:
    """Refuse a `finetune` section that can't work, before any process group or data is opened.

    Raises:
        ConfigError: if a part to freeze is unknown, nothing is left to train, or the last layer is to be kept and the file
            has none.
        CheckpointError: if the file can't be read, or all but its last layer does not fit the network.
    """
    if cfg.finetune.weights is None:
        return
    with torch.device("meta"):
        model = zoo.build(cfg.model, 2)
    _freeze(cfg, model)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("finetune.freeze: leaves nothing to train, as it names the whole network; leave a part out")
    there = weights.load_state(cfg.finetune.weights)
    missing = [name for name in _head(model) if name not in there]
    if cfg.finetune.head == "keep" and missing:
        raise ConfigError(
            f"finetune.head: {cfg.finetune.weights} has no {missing[0]} to keep; use finetune.head=new, or weights with a head"
        )
    weights.check_fit(model, _with_own_head(model, there), str(cfg.finetune.weights))  # how many classes is not known yet


def start(cfg: Config, model: nn.Module) -> None:
    """Load the weights to start from, if any, and freeze what is to stay as it is.

    Raises:
        CheckpointError: if the file's weights do not fit the network.
    """
    path = cfg.finetune.weights
    if path is None:
        return
    state: Mapping[str, Tensor] = weights.load_state(path)
    if cfg.finetune.head == "new":
        state = _with_own_head(model, state)
    try:
        weights.load_into(model, state, str(path))
    except CheckpointError as error:
        if "classes" in str(error):
            raise CheckpointError(f"{error} (or finetune.head=new for other classes)") from error
        raise
    _freeze(cfg, model)


def _freeze(cfg: Config, model: nn.Module) -> None:
    for part in frozen(cfg, model):
        part.requires_grad_(False)


def hold(cfg: Config, model: nn.Module) -> None:
    """Keep the frozen parts in evaluation mode while the rest trains: their batch-norm statistics stay too."""
    for part in frozen(cfg, model):
        part.eval()


def frozen(cfg: Config, model: nn.Module) -> list[nn.Module]:
    """Return the parts of the network that `finetune.freeze` names.

    Raises:
        ConfigError: naming the nearest parts, if there is no such part.
    """
    known = dict(model.named_modules())
    names: list[str] = []
    for name in cfg.finetune.freeze:
        names += _STEM if name == "stem" and set(_STEM) <= known.keys() else [name]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, [n for n in known if n], 2, 0.5) or [n for n, _ in model.named_children()]
            raise ConfigError(f"finetune.freeze: the network has no part {name!r}; did you mean {' or '.join(near)}?")
    return [known[name] for name in names]


def _with_own_head(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights in `state` with the last layer of `model` in place of theirs."""
    ours, head = model.state_dict(), set(_head(model))
    return {name: t for name, t in state.items() if name not in head} | {name: ours[name] for name in head}


def _head(model: nn.Module) -> list[str]:
    """Return the names of the last linear layer's parameters."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [f"{linear[-1]}.{name}" for name, _ in model.get_submodule(linear[-1]).named_parameters()] if linear else []
