"""Journals of made-up runs, written as a training writes them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.track.journal import Journal

CONFIG = {"seed": 0, "optim.lr": 0.1, "run.name": "demo", "track.experiment": "default", "data.threads": 4}
PLAN = {"total_steps": 40, "steps_per_epoch": 10, "world_size": 2}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a run below `runs` that evaluated to `accuracies` every ten steps, at a second a step on two devices."""

    def make(
        name: str, accuracies: list[float], *, config: dict | None = None, tags: dict | None = None, end="FINISHED", **more
    ) -> Path:
        directory = tmp_path / "runs" / name
        directory.mkdir(parents=True)
        about = {"config": CONFIG | (config or {}), "plan": PLAN, "tags": {"host": "here"} | (tags or {})}
        with Journal(directory) as journal:
            journal.event("run", uid=f"{name.replace('/', '-')}-uid", name=name, **about, **more, resumed_from_step=None)
            for i, accuracy in enumerate(accuracies):
                step = 10 * (i + 1)
                speed = {"perf/images_per_s": 100.0 + i, "perf/data_wait": 0.1}
                journal.metrics(step, {"train/loss": 2.0 / step, "time/active_s": float(step)} | speed)
                journal.metrics(step, {"val/top1": accuracy, "val/loss": 1 - accuracy})
            if end:
                journal.event("status", status=end, reason="")
        return directory

    return make


@pytest.fixture
def sweep(tmp_path: Path, write: Callable[..., Path]) -> Path:
    """Write a sweep over two rates and three seeds as `launch sweep` does, whose last member started first."""
    folder = tmp_path / "runs" / "rates"
    members = [(lr, seed) for lr in (0.1, 0.2) for seed in range(3)]
    for i in reversed(range(len(members))):
        lr, seed = members[i]
        config = {"optim.lr": lr, "seed": seed, "run.name": f"rates-{i}", "run.dir": str(folder / f"{i:03d}")}
        tags = {"sweep": "rates", "sweep.member": str(i), "sweep.parent": "parent-uid"}
        write(f"rates/{i:03d}", [0.7 + (lr == 0.2) / 10 + seed / 100], config=config, tags=tags)
    (folder / "parent").mkdir()
    with Journal(folder / "parent") as journal:
        about = {"config": CONFIG | {"sweep.0": "optim.lr=0.1 seed=0"}, "plan": {}}
        journal.event("run", uid="parent-uid", name="rates", tags={"sweep": "rates", "sweep.members": "6"}, **about)
        journal.event("status", status="FINISHED", reason="")
    return folder
