"""A set of runs from one file: a configuration, and what each run changes in it."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import cpus
from pipeline.config import load
from pipeline.errors import ConfigError, Stopped, TrainingError
from pipeline.files import read_bytes
from pipeline.train.children import Children

_ENDS = {0: "done", Stopped.exit_code: "stopped"}


@dataclass(frozen=True)
class Sweep:
    """Runs by name, each with its overrides of one configuration."""

    config: Path
    runs: dict[str, tuple[str, ...]]


def read(path: Path) -> Sweep:
    """Read a file with `config:`, a path beside it, and `runs:`, lists of overrides by name; every run is checked.

    Raises:
        ConfigError: if the file, or a run's configuration, can't be used.
    """
    try:
        content: Any = yaml.safe_load(read_bytes(path).decode("utf-8"))
        runs = {str(name): tuple(map(str, overrides)) for name, overrides in content["runs"].items()}
        sweep = Sweep(path.parent / str(content["config"]), runs)
    except OSError as error:
        raise ConfigError(f"{path}: can't read the experiment: {error.strerror}; check the path") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: must have `config:`, a file, and `runs:`, lists of overrides by name") from error
    for name, overrides in sweep.runs.items():
        try:
            load(sweep.config, overrides)
        except ConfigError as error:
            raise ConfigError(f"{path}: runs: {name}: {error}") from error
    return sweep


def carry_out(sweep: Sweep, out: Path, overrides: tuple[str, ...], say: Callable[[str], None]) -> None:
    """Train every run into `out/NAME`, as many at once as there are cores; those that are finished already stay.

    Signals go on to the runs, which save; none is started after one.

    Raises:
        TrainingError: naming the first run that failed and its log, with that run's exit code.
        Stopped: if a signal came and no run failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    children = Children()

    def one(name: str) -> int:
        code = children.run(_command(sweep, name, out, overrides), out / f"{name}.log", environment)
        say(f"{name}: {_ENDS.get(code, f'failed, exit code {code}')}")
        return code

    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the runs share the cores; each alone would take all
    with children.forwarding(), ThreadPoolExecutor(cpus.available()) as pool:
        codes = dict(zip(sweep.runs, pool.map(one, sweep.runs), strict=True))
    for name, code in codes.items():
        if code not in _ENDS:
            error = TrainingError(f"{name}: ended with exit code {code}; its output is in {out / name}.log")
            error.exit_code = code
            raise error
    if Stopped.exit_code in codes.values():
        raise Stopped(f"{out}: stopped; the same command goes on with the runs that are not done")


def _command(sweep: Sweep, name: str, out: Path, overrides: tuple[str, ...]) -> list[str]:
    places = (f"run.dir={out / name}", f"run.name={name}")
    return [sys.executable, "-m", "pipeline", "train", str(sweep.config), *sweep.runs[name], *overrides, *places]
