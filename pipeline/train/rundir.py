"""The directory of a run: made, recognised, and compared with the configuration that wants to continue it."""

import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import Config, Kind, as_tree, flat, kind, to_yaml
from pipeline.errors import ConfigError, TransientError, UsageError
from pipeline.files import write_atomically
from pipeline.retry import may_pass
from pipeline.track.identity import new_uid
from pipeline.train.preemption import is_request

CHECKPOINTS = "checkpoints"
WEIGHTS, BEST_WEIGHTS, MLFLOW_MODEL = "model.safetensors", "best.safetensors", "mlflow_model"
AVERAGED_WEIGHTS = "model_ema.safetensors"
_OURS = ("run.lock", "config.yaml", "run.json", "STOP", "launch")

_STAMP = re.compile(r"-\d{8}-\d{6}-([0-9a-f]{6})$")
"""The end of a directory that `choose` named; the run's id begins with it, so that one is found by the other."""


@dataclass(frozen=True)
class RunDir:
    """A run's directory with its identity; `fresh` if it was made just now."""

    path: Path
    uid: str
    name: str
    fresh: bool

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def weights(self) -> Path:
        """The final weights."""
        return self.path / WEIGHTS

    @property
    def best_weights(self) -> Path:
        """The weights with the best validation result."""
        return self.path / BEST_WEIGHTS

    @property
    def mlflow_model(self) -> Path:
        """Folder of the final network as an MLflow model."""
        return self.path / MLFLOW_MODEL

    @property
    def averaged_weights(self) -> Path:
        """The final moving average of the weights, of runs that have one."""
        return self.path / AVERAGED_WEIGHTS


def choose(cfg: Config) -> Path:
    """Return `run.dir`, or a new directory under `run.root`; it exists afterwards.

    Raises:
        UsageError: if it holds something that is no run, or can't be made.
        TransientError: if it can't be made for a reason that may pass.
    """
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{new_uid()[:6]}"
    path = cfg.run.dir or cfg.run.root / f"{cfg.run.name or 'run'}-{stamp}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        foreign = [p.name for p in path.iterdir() if p.name not in _OURS and not p.match(".*.tmp")]
    except OSError as error:
        raise (TransientError if may_pass(error) else UsageError)(
            f"{path}: can't make the run directory: {error.strerror}; choose another run.dir or run.root"
        ) from error
    if foreign and not (path / "run.json").is_file():
        raise UsageError(f"{path}: is no run directory and not empty (it holds {foreign[0]!r}); choose a new or empty run.dir")
    return path


def tidy(path: Path) -> None:
    """Remove what a killed process left half-written, and a request to stop that was obeyed; the caller holds the lock."""
    stop = [p for p in (path / "STOP",) if p.is_file() and not is_request(p)]
    for leftover in (*path.glob(".*.tmp"), *(path / CHECKPOINTS).glob(".*.tmp"), *stop):
        leftover.unlink(missing_ok=True)


class _About(BaseModel):
    """What run.json holds."""

    model_config = ConfigDict(strict=True)

    uid: Annotated[str, Field(pattern=r"^[0-9a-zA-Z_-]{1,64}$")]
    name: str


def prepare(cfg: Config, path: Path) -> RunDir:
    """Recognise the run in `path`, or make it one; the caller holds its lock.

    Raises:
        UsageError: if the directory can't be written to.
        ConfigError: if the run there was started with another configuration.
    """
    if (path / "run.json").is_file():
        return _recognise(cfg, path)
    stamped = _STAMP.search(path.name)
    uid = new_uid()
    run = RunDir(path, stamped[1] + uid[len(stamped[1]) :] if stamped else uid, cfg.run.name or path.name, fresh=True)
    placed = cfg.model_copy(update={"run": cfg.run.model_copy(update={"dir": path.absolute()})})
    about = json.dumps({"uid": run.uid, "name": run.name, "created": time.time()})
    write_atomically(path / "config.yaml", lambda p: p.write_text(to_yaml(placed), encoding="utf-8"))
    write_atomically(path / "run.json", lambda p: p.write_text(about + "\n", encoding="utf-8"))
    return run


def _place(path: str | None) -> Path | None:
    return Path(path).expanduser().resolve() if path else None


def _recognise(cfg: Config, path: Path) -> RunDir:
    try:
        about = _About.model_validate_json((path / "run.json").read_bytes())
        before = flat(yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")))
        run = RunDir(path, about.uid, about.name, fresh=False)
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"{path}: run.json or config.yaml is unreadable ({reason}); choose a new run.dir") from error
    now = json.loads(json.dumps(flat(as_tree(cfg))))
    changed = [k for k in now if k in before and before[k] != now[k] and kind(k) is Kind.LEARNED]
    if changed and not cfg.run.allow_changes:
        shown = ", ".join(f"{k} was {before[k]}, is {now[k]}" for k in changed[:4]) + (", ..." if len(changed) > 4 else "")
        raise ConfigError(
            f"{path}: the run was started with another configuration ({shown}); "
            "use the same one, a new run.dir, or run.allow_changes=true"
        )
    if _place(before.get("data.quarantine")) not in (None, _place(now["data.quarantine"])):
        listed = f"data.quarantine was {before['data.quarantine']}, is {now['data.quarantine'] or 'not set'}"
        print(f"warning: {path}: {listed}; what only the former lists is trained on from now on", file=sys.stderr)
    return run
