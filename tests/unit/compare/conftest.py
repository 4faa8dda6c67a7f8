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
        name: str, accuracies: list[float], *, config: dict | None = None, tags: dict | None = None, end="FINISHED"
    ) -> Path:
        directory = tmp_path / "runs" / name
        directory.mkdir(parents=True)
        about = {"config": CONFIG | (config or {}), "plan": PLAN, "tags": {"host": "here"} | (tags or {})}
        with Journal(directory) as journal:
            journal.event("run", uid=f"{name}-uid", name=name, **about, resumed_from_step=None)
            for i, accuracy in enumerate(accuracies):
                step = 10 * (i + 1)
                speed = {"perf/images_per_s": 100.0 + i, "perf/data_wait": 0.1}
                journal.metrics(step, {"train/loss": 2.0 / step, "time/active_s": float(step)} | speed)
                journal.metrics(step, {"val/top1": accuracy, "val/loss": 1 - accuracy})
            if end:
                journal.event("status", status=end, reason="")
        return directory

    return make
