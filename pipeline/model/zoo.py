"""Networks by name: the paper's presets, `resnet` built from the configuration's keys, and any network of timm."""

import difflib
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pipeline.config.schema import Config, Model
from pipeline.errors import ConfigError
from pipeline.model.resnet import PRESETS, ResNet, Spec

_TIMM = "timm/"
_SPEC_SWITCHES = ("init", "zero_init_gamma", "blurpool", "drop_path", "prior_bias")
_SPEC_KEYS = ("n_blocks", "n_channels", "bottlenecks", "first_kernel_size", "shortcut")


def names() -> list[str]:
    """Return what `model.name` can be; `timm/NAME` stands for all of timm's."""
    return [*PRESETS, "resnet", f"{_TIMM}NAME"]


def check(model: Model) -> None:
    """Refuse a `model` section that can't be built, without building it.

    Raises:
        ConfigError: naming each key that is unknown, missing, or at odds with another.
    """
    if model.name.startswith(_TIMM):
        _timm_name(model)
    else:
        spec(model)


def check_sides(cfg: Config) -> None:
    """Refuse images of a size that a network of timm does not take, without computing anything.

    Raises:
        ConfigError: naming the size.
    """
    if not cfg.model.name.startswith(_TIMM):
        return
    for side in dict.fromkeys((cfg.resize.start or cfg.data.resolution, cfg.data.resolution, cfg.eval.crop)):
        try:
            with torch.device("meta"), torch.no_grad():
                build(cfg.model, 2).eval()(torch.empty(1, 3, side, side))
        except AssertionError as error:
            raise ConfigError(
                f"model.name: {cfg.model.name} can't take images of {side} pixels{f' ({error})' if str(error) else ''}; "
                "set data.resolution, resize.start and eval.crop to what it takes"
            ) from error
        except RuntimeError:  # not every network can be tried without its numbers
            return


def build(model: Model, num_classes: int) -> nn.Module:
    """Build the network of a `model` section, with random initial weights and `num_classes` outputs.

    Raises:
        ConfigError: as `check`, or if timm can't build the network this way.
    """
    if model.name.startswith(_TIMM):
        return _build_timm(model, num_classes)
    return ResNet(spec(model), num_classes)


def spec(model: Model) -> Spec:
    """Return what a preset's name or `resnet`, and the keys that are set, say of the network.

    Raises:
        ConfigError: naming each key that is unknown, missing, or at odds with another.
    """
    base = PRESETS.get(model.name) or _from_keys(model)
    changes: dict[str, Any] = {key: getattr(model, key) for key in _SPEC_KEYS if getattr(model, key) is not None}
    merged = replace(base, **changes, **{key: getattr(model, key) for key in _SPEC_SWITCHES})
    _check_block(model, merged)
    return replace(merged, shortcut=None) if model.block == "plain" else merged


def _from_keys(model: Model) -> Spec:
    if model.name != "resnet":
        raise ConfigError(f"model.name: {model.name!r} is unknown; {_nearest(model.name)}")
    if model.n_blocks is None or model.n_channels is None:
        missing = [f"model.{key}" for key in ("n_blocks", "n_channels") if getattr(model, key) is None]
        raise ConfigError(f"{', '.join(missing)}: needed for model.name=resnet; set one number for each feature-map size")
    return Spec(model.n_blocks, model.n_channels, model.bottlenecks)


def _check_block(model: Model, spec: Spec) -> None:
    """Refuse a kind of block that the other keys, or the preset, contradict."""
    if model.block == "bottleneck" and spec.bottlenecks is None:
        raise ConfigError("model.block: bottleneck needs model.bottlenecks, a width for each feature-map size; set it")
    if model.block in ("basic", "plain") and spec.bottlenecks is not None:
        cause = "model.bottlenecks" if model.bottlenecks else f"model.name={model.name}"
        raise ConfigError(f"model.block: {model.block} contradicts the bottlenecks of {cause}; change one of the two")
    if model.block == "plain" and model.shortcut is not None:
        raise ConfigError(f"model.shortcut: {model.shortcut} contradicts model.block=plain, which has none; remove one")


def _timm_name(model: Model) -> str:
    """Return timm's own name of the network, once it is known to exist and the other keys leave it alone."""
    import timm  # takes two seconds, which only those who use it should spend

    plain = {key: getattr(Model(), key) for key in ("block", *_SPEC_KEYS, "init", "blurpool", "prior_bias")}
    refused = [key for key, value in plain.items() if getattr(model, key) != value]
    if refused:
        remedy = " ".join(f"model.{key}={'null' if plain[key] is None else str(plain[key]).lower()}" for key in refused)
        keys = ", ".join(f"model.{key}" for key in refused)
        raise ConfigError(f"{keys}: timm decides this itself for model.name={model.name}; remove the key, or add {remedy}")
    name = model.name.removeprefix(_TIMM)
    # Only registered names: create_model would also take `hf-hub:...` and fetch it.
    if name not in timm.list_models() and name not in timm.list_pretrained():
        raise ConfigError(f"model.name: {model.name!r} is unknown to timm; {_nearest(model.name)}")
    return name


def _build_timm(model: Model, num_classes: int) -> nn.Module:
    """Build without pretrained weights; timm's zero gammas are the network's own choice unless they are switched off."""
    import timm

    name = _timm_name(model)
    options: dict[str, Any] = {} if model.zero_init_gamma else {"zero_init_last": False}
    if model.drop_path:
        options["drop_path_rate"] = model.drop_path
    try:
        built: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    except TypeError as error:
        if "drop_path_rate" in str(error):
            raise ConfigError(f"model.drop_path: {model.name} has no stochastic depth; remove the key") from error
        if "zero_init_last" not in str(error):
            raise
        raise ConfigError(f"model.zero_init_gamma: {model.name} has no such switch; remove the key") from error
    return built


def _nearest(name: str) -> str:
    """Return the hint for an unknown name: the nearest known ones."""
    import timm

    known = [*PRESETS, "resnet", *(_TIMM + other for other in timm.list_models())]
    near = difflib.get_close_matches(name, known, 3, 0.7)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names())}"
