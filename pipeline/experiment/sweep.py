"""A set of runs from one file: a configuration, and what each run changes in it.

Not here: the runs themselves, which are processes of `pipeline train`, and what is drawn from them (`degradation`).
"""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import load
from pipeline.errors import ConfigError, TrainingError
from pipeline.files import read_bytes


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

    Raises:
        TrainingError: naming the first run that failed and its log.
    """
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        codes = dict(zip(sweep.runs, pool.map(lambda name: _train(sweep, name, out, overrides, say), sweep.runs), strict=True))
    for name, code in codes.items():
        if code:
            raise TrainingError(f"{name}: ended with exit code {code}; its output is in {out / name}.log")


def _train(sweep: Sweep, name: str, out: Path, overrides: tuple[str, ...], say: Callable[[str], None]) -> int:
    places = (f"run.dir={out / name}", f"run.name={name}")
    command = [sys.executable, "-m", "pipeline", "train", str(sweep.config), *sweep.runs[name], *overrides, *places]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the runs share the cores; each alone would take all
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    say(f"{name}: {'done' if code == 0 else f'failed, exit code {code}'}")
    return code
