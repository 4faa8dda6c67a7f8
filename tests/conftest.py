"""What every test shares: an isolated environment, the digits, and one way to start training processes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings

# Deadlines would make tests depend on what else the machine does.
settings.register_profile("shared", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("shared")

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "data.root={digits}",
    "data.resolution=16",
    "eval.resize=18",
    "eval.crop=16",
    "model.name=resnet",
    "model.block=basic",
    "model.n_blocks=[1, 1]",
    "model.n_channels=[8, 16]",
    "model.first_kernel_size=3",
    "batch.global=32",
    "batch.micro=8",
    "eval.batch=64",
    "track.enabled=false",
    "track.pictures=false",
    "track.model=false",
)
"""A training that takes milliseconds a step."""


@pytest.fixture(scope="session", autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests off the user's caches and trackers, and one process off the other's cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in list(os.environ):
            if name.startswith(("MLFLOW_", "SLURM_", "TORCHELASTIC_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, written once."""
    from pipeline.data import demo

    root = tmp_path_factory.mktemp("data") / "digits"
    demo.write(root)
    return root


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite database that MLflow has migrated once for all tests."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    from pipeline.track.tracker import Tracker, set_environment

    set_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised within SQLAlchemy when MLflow's tables are declared
        Tracker(f"sqlite:///{path}", "template")
    return path


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    """The address of a database of this test's own."""
    shutil.copyfile(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def kill_tree(pid: int) -> None:
    """Kill a process and all below it at once; torchrun's workers have sessions of their own."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    doomed = [pid]
    for one in doomed:
        doomed += children.get(one, [])
    for one in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


@dataclass
class Trainer:
    """Starts `pipeline train` on a tiny network, alone or under torchrun, as a user would."""

    digits: Path
    tmp: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, *overrides: str, world: int = 1, config: str = "configs/base.yaml") -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
        tiny = [text.format(digits=self.digits) for text in TINY]
        roots = [f"run.root={self.tmp / 'runs'}"]
        return [sys.executable, *launcher, "-m", "pipeline", "train", config, *tiny, *roots, *overrides]

    def start(self, *overrides: str, world: int = 1) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.command(*overrides, world=world),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.started.append(process)
        return process

    def run(self, *overrides: str, world: int = 1, expect: int = 0, timeout_s: float = 120) -> str:
        process = self.start(*overrides, world=world)
        output, _ = process.communicate(timeout=timeout_s)
        assert process.returncode == expect, output
        return output

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill it and its workers, with no chance to do anything about it."""
        kill_tree(process.pid)
        process.wait()

    def until(self, process: subprocess.Popen[str], met: Callable[[str], bool]) -> str:
        """Read the output until a line meets the condition."""
        assert process.stdout is not None
        seen = ""
        for line in process.stdout:
            seen += line
            if met(line):
                return seen
        raise AssertionError(f"ended with {process.wait()} before the condition was met:\n{seen}")


@pytest.fixture
def trainer(digits: Path, tmp_path: Path) -> Iterator[Trainer]:
    """One way to start training processes; whatever still runs afterwards is killed."""
    found = Trainer(digits, tmp_path)
    yield found
    for process in found.started:
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
