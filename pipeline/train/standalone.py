"""Evaluation of a file of weights on its own, outside training."""

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import units
from pipeline.config import Config, load, loads
from pipeline.data.dataset import quarantine
from pipeline.data.index import Index, open_index
from pipeline.data.loader import Normalize, eval_loader
from pipeline.errors import CheckpointError, DataError
from pipeline.model import weights, zoo
from pipeline.train import checkpoint
from pipeline.train.evaluate import evaluate, views
from pipeline.train.precision import autocast_type, place
from pipeline.train.rundir import AVERAGED_WEIGHTS, CHECKPOINTS, WEIGHTS
from pipeline.world import World, from_env, join


@dataclass(frozen=True)
class Request:
    """What to evaluate on which images; `config` for weights that do not hold their own."""

    source: Path
    data: Path
    overrides: tuple[str, ...] = ()
    config: Path | None = None


@dataclass(frozen=True)
class Trained:
    """Weights by name with the configuration they were trained by, and their classes if the file tells."""

    path: Path
    cfg: Config
    state: Mapping[str, Tensor]
    classes: tuple[str, ...] | None


def evaluate_file(request: Request) -> dict[str, Any] | None:
    """Evaluate on every image of `data/val`; return the result on rank 0, None on the others.

    Raises:
        PipelineError: on every rank, if the file, its configuration and the data do not fit together.
    """
    with join(from_env()) as world:
        trained = world.together(lambda: read(request))
        index = world.main_first(lambda: open_index(request.data, "val", trained.cfg.data.cache))
        model = world.together(lambda: _model(trained, index, world))
        cfg = trained.cfg
        bad = world.together(lambda: quarantine(index, "val", cfg))
        with closing(eval_loader(cfg, world, index, bad)) as batches:
            found = evaluate(
                views(model, cfg.eval),
                batches,
                Normalize(cfg.data.mean, cfg.data.std, world.device, next(model.parameters()).dtype),
                world=world,
                expected=partial(bad.good_images, world),
                autocast=autocast_type(cfg.train, world.device),
            )
    if not world.is_main:
        return None
    return {"checkpoint": str(trained.path), "data": str(request.data), **found, "count": int(found["count"])}


def read(request: Request) -> Trained:
    """Read weights and their configuration from a run directory, a checkpoint, or a file of weights.

    Raises:
        CheckpointError: if the file is missing, broken, or has no configuration and none is given.
        ConfigError: if the configuration can't be used.
    """
    path = _file(request.source)
    about: Mapping[str, Any] = {}
    if path.suffix == ".safetensors":
        state, about = weights.load_state(path), _of_header(weights.load_metadata(path), path)
    else:
        state, content = weights.load_with_content(path)
        about = content if content.get("format") == checkpoint.FORMAT else {}
    _check(about, path)
    if request.config is not None:
        cfg = load(request.config, request.overrides)
    elif "config" in about:
        cfg = _of_data(loads(about["config"], str(path), request.overrides), request)
    else:
        raise CheckpointError(
            f"{path}: does not hold its configuration; give one with --config configs/resnet50/nvidia_90ep.yaml"
        )
    names = about.get("class_names")
    return Trained(path, cfg, state, tuple(names) if names else None)


def _of_header(header: Mapping[str, str], path: Path) -> Mapping[str, Any]:
    try:
        return {**header, "class_names": json.loads(header.get("class_names", "null"))}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: class_names in its header is no JSON; export it again") from error


def _check(about: Mapping[str, Any], path: Path) -> None:
    """Refuse what a file says of itself if it is not as this pipeline writes it.

    Raises:
        CheckpointError: naming the field.
    """
    names = about.get("class_names")
    if not isinstance(about.get("config", ""), str):
        raise CheckpointError(f"{path}: config is no text; give a configuration with --config, or use another file")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(f"{path}: class_names is no list of names; use another file")


def _of_data(cfg: Config, request: Request) -> Config:
    """Return the configuration without the list of bad images of other data than is evaluated on."""
    places = (cfg.data.root, cfg.data.stage_to, cfg.data.stage_from)
    roots = [Path(str(place).removeprefix("file://")).expanduser().resolve() for place in places if place]
    if request.data.expanduser().resolve() in roots or any(key.startswith("data.quarantine=") for key in request.overrides):
        return cfg
    if cfg.data.quarantine:
        text = f"{request.data} is other data than was trained on, whose list {cfg.data.quarantine} is not used"
        print(f"note: {text}; data.quarantine=FILE gives another", file=sys.stderr)
    return cfg.model_copy(update={"data": cfg.data.model_copy(update={"quarantine": None})})


def _file(source: Path) -> Path:
    """Return the file to read: of a run directory the final weights (the averaged ones if any), else the newest checkpoint."""
    if not source.exists():
        raise CheckpointError(f"{source}: no such file or directory; give a run directory or a file of weights")
    if not source.is_dir():
        return source
    for name in (AVERAGED_WEIGHTS, WEIGHTS):
        if (source / name).is_file():
            return source / name
    newest = checkpoint.Store(source / CHECKPOINTS).newest()
    if newest is None:
        raise CheckpointError(f"{source}: no {WEIGHTS} and no checkpoint in it; give a run directory or a file of weights")
    return newest


def _model(trained: Trained, index: Index, world: World) -> torch.nn.Module:
    if trained.classes is not None and trained.classes != index.classes:
        only = sorted(set(index.classes) ^ set(trained.classes))
        raise DataError(
            f"{index.folder}: {units.count(len(index.classes), 'class', 'classes')}, but {trained.path} was trained on "
            f"{len(trained.classes)}, and they differ in {', '.join(only[:3])}; use data with the same class folders"
        )
    model = zoo.build(trained.cfg.model, len(index.classes))
    weights.load_into(model, trained.state, str(trained.path))
    return place(model, trained.cfg.train, world.device)


def render(found: Mapping[str, Any]) -> str:
    """Return the result for people."""
    return (
        f"{found['checkpoint']} on {found['data']}: top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%}, "
        f"loss {found['loss']:.4f}, {units.count(found['count'], 'image')}"
    )
