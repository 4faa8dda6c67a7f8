"""Journals and MLflow stores for the tests of this room."""

import subprocess
import sys
from collections import Counter

import pytest

from pipeline.track.journal import Journal


@pytest.fixture
def begin():
    """Append the "run" line that every run begins with."""

    def write(journal: Journal, uid: str = "a1", **changes) -> None:
        fields = {"name": "demo", "config": {"optim.lr": 0.1, "run.name": ""}, "plan": {"total_steps": 50}}
        journal.event("run", uid=uid, **(fields | {"tags": {"host": "here"}, "resumed_from_step": None} | changes))

    return write


@pytest.fixture
def stored(uri):
    """Ask MLflow, by a client of its own, for the one run with a uid and for how often it holds each (metric, step)."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)

    def ask(uid: str = "a1", experiment: str = "tests"):
        place = client.get_experiment_by_name(experiment)
        (run,) = client.search_runs([place.experiment_id], f"tags.`run.uid` = '{uid}'")
        histories = [client.get_metric_history(run.info.run_id, key) for key in run.data.metrics]
        return run, Counter((point.key, point.step) for history in histories for point in history)

    ask.client = client
    return ask


@pytest.fixture
def child():
    """Start Python on a script with a pipe to speak to it; it is killed at the end of the test."""
    started = []

    def start(script: str, *arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-c", script, *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
