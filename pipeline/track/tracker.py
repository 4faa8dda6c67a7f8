"""One experiment of an MLflow store, and the calls that bring a run into it; the only module that writes to MLflow.

Not here: when to call, and what to do when a call fails (`pipeline.track.shipper`).
"""

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import UsageError
from pipeline.track import mapping, registry
from pipeline.track.cursor import POINTS_PER_CALL, Point
from pipeline.track.journal import Record, milliseconds
from pipeline.track.lock import FileLock
from pipeline.track.uri import refuse_network_disk, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "model"
"""Folder of a run's artifacts that holds its MLflow model."""
_log = logging.getLogger(__name__)
_UPLOAD_TIMEOUT_S = 300
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
# With MLflow's own retries a call to a dead server takes four minutes; here the shipper is what tries again.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    _TIMEOUT: "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def set_environment() -> None:
    """Tell MLflow to be quick and quiet; what the user has set stays.

    Call it before threads start: changing the environment while another thread reads it is unsafe.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def connect(uri: str, *, make: bool = False) -> "MlflowClient":
    """Return a client of a store; the only place where one is made, so that no two processes set up a database at once.

    `make` makes a sqlite database that is missing.

    Raises:
        UsageError: if it is missing and not to be made.
        ConfigError: if a sqlite database lies on a network file system.
        Exception: what MLflow raises where the store can't be reached.
    """
    refuse_network_disk(uri)
    database = sqlite_path(uri)
    if not make and database is not None and not database.is_file():
        raise UsageError(f"{database}: no such database; train something first, or name a store with --uri or --root")
    set_environment()
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # importing MLflow has set it to INFO
    with _alone_in(database):
        return MlflowClient(tracking_uri=uri)


class Tracker:
    """One experiment of one MLflow store. Every method may raise whatever MLflow raises."""

    def __init__(self, uri: str, experiment: str) -> None:
        """Connect; make the store and the experiment if they are missing."""
        self._client = connect(uri, make=True)
        self._experiment_id = self._find_or_make(experiment, sqlite_path(uri))

    def _find_or_make(self, name: str, database: Path | None) -> str:
        """Return the id of an experiment; beside a sqlite database lie its artifacts."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            place = (database.parent / "mlartifacts").absolute().as_uri() if database else None
            try:
                return str(self._client.create_experiment(name, artifact_location=place))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def find_or_start(self, record: Record) -> str:
        """Return the id of the MLflow run with the uid of a "run" record, a new one if there is none.

        Searching first is what keeps the run single: a server too slow to answer has made it all the same.
        """
        query = f"tags.`{mapping.UID}` = '{record['uid']}'"
        found = self._client.search_runs([self._experiment_id], query, max_results=1)
        if found:
            return str(found[0].info.run_id)
        run = self._client.create_run(
            self._experiment_id, milliseconds(record), {mapping.UID: record["uid"]}, run_name=record["name"]
        )
        return str(run.info.run_id)

    def state(self, run_id: str, uid: str) -> Literal["there", "deleted", "missing"]:
        """Return what the store has of the run with this id; one with another uid is not it."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return "missing"
        if run.data.tags.get(mapping.UID) != uid:
            return "missing"
        return "deleted" if run.info.lifecycle_stage == "deleted" else "there"

    def points(self, run_id: str, points: tuple[Point, ...]) -> None:
        """Store metric points; one that is there already stays as it is."""
        from mlflow.entities import Metric

        metrics = [Metric(mapping.name(p.key), p.value, p.t_ms, p.step) for p in points]
        for start in range(0, len(metrics), POINTS_PER_CALL):
            self._client.log_batch(run_id, metrics=metrics[start : start + POINTS_PER_CALL])

    def describe(self, run_id: str, record: Record, run_dir: Path) -> None:
        """Store what a "run" record says; params that a restart has changed keep their value and get a tag."""
        from mlflow.entities import Param, RunTag

        there = self._client.get_run(run_id).data.params
        params = mapping.params(record)
        new = [Param(key, value) for key, value in params.items() if key not in there]
        tags = mapping.tags(record, run_dir) | mapping.changes(there, params)
        for batch in _batches(new):
            self._client.log_batch(run_id, params=batch)
        for batch in _batches([RunTag(key, value) for key, value in tags.items()]):
            self._client.log_batch(run_id, tags=batch)
        self._inputs(run_id, record.get("datasets", ()))
        self._client.update_run(run_id, "RUNNING")
        self._link(run_id, record)

    def _link(self, run_id: str, record: Record) -> None:
        """Put the members of a sweep under their parent, whichever of them comes here first."""
        own = record["tags"]
        if mapping.MEMBERS in own:
            members = self._client.search_runs([self._experiment_id], f"tags.`{mapping.PARENT}` = '{record['uid']}'")
            links = [(one.info.run_id, run_id) for one in members]
        elif mapping.PARENT in own:
            parents = self._client.search_runs([self._experiment_id], f"tags.`{mapping.UID}` = '{own[mapping.PARENT]}'")
            links = [(run_id, one.info.run_id) for one in parents]
        else:
            return
        for child, parent in links:
            self._client.set_tag(child, "mlflow.parentRunId", parent)

    def _inputs(self, run_id: str, datasets: Sequence[dict[str, Any]]) -> None:
        """Store the data sets that a run reads; one that is there already stays as it is."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    d["name"], d["digest"], "local", json.dumps({"uri": d["source"]}), profile=json.dumps(mapping.counts(d))
                ),
                [InputTag("mlflow.data.context", d["context"])],
            )
            for d in datasets
        ]
        if inputs:
            self._client.log_inputs(run_id, inputs)

    def status(self, run_id: str, record: Record) -> None:
        """Set the run's status and the reason for it; one without takes that of an earlier status away."""
        if record.get("reason"):
            self._client.set_tag(run_id, mapping.REASON, mapping.tag(str(record["reason"])))
        elif mapping.REASON in self._client.get_run(run_id).data.tags:
            self._client.delete_tag(run_id, mapping.REASON)
        if record["status"] == "RUNNING":
            self._client.update_run(run_id, "RUNNING")
        else:
            self._client.set_terminated(run_id, record["status"], milliseconds(record))

    def look(self, run_id: str) -> None:
        """Raise if the store does not answer."""
        self._client.get_run(run_id)

    def failed(self, run_id: str, what: Sequence[str]) -> None:
        """Tell in a tag which files the store did not take; none takes the tag away."""
        if what:
            self._client.set_tag(run_id, mapping.FAILED, mapping.tag("\n".join(what)))
        elif mapping.FAILED in self._client.get_run(run_id).data.tags:
            self._client.delete_tag(run_id, mapping.FAILED)

    def heartbeat(self, run_id: str) -> None:
        """Tell that the run lives."""
        self._client.set_tag(run_id, mapping.HEARTBEAT, f"{time.time():.0f}")

    def warn(self, run_id: str, record: Record) -> None:
        """Set what a "warning" record says as a tag, named after its step."""
        self._client.set_tag(run_id, f"warning.step_{record['step']}", mapping.tag(str(record["text"])))

    def artifact(self, run_id: str, record: Record, run_dir: Path) -> None:
        """Upload a file or folder; one that is no longer there is passed over with a warning."""
        path = run_dir / record["path"]
        if not path.exists():
            _log.warning("%s: no longer there and not brought into MLflow as an artifact", path)
            return
        with _patience():
            self._client.log_artifact(run_id, str(path), record.get("artifact_path") or None)

    def model(self, run_id: str, record: Record, run_dir: Path) -> None:
        """Upload an MLflow model into the artifacts, and register it where a name is given; again does no harm."""
        path = run_dir / record["path"]
        if not path.is_dir():
            _log.warning("%s: no longer there and not brought into MLflow as a model", path)
            return
        with _patience():
            self._client.log_artifacts(run_id, str(path), MODEL)
        if record.get("register"):
            registry.register(self._client, run_id, mapping.name(record["register"]), {record["metric"]: record["value"]})


def unreachable(error: BaseException | None) -> bool:
    """Return whether an error comes from the way to the store, so that trying again may help."""
    from requests.exceptions import ConnectionError as NoConnection
    from requests.exceptions import Timeout

    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError | NoConnection | Timeout):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _alone_in(database: Path | None) -> Iterator[None]:
    """Keep other processes from making the same sqlite database: several that start on a fresh one break it for good."""
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(database.with_name(database.name + ".lock"))
    try:
        lock.acquire(wait=True)
    except OSError:
        # Beside a database that may only be read nobody can make one either.
        if not database.is_file():
            raise
    try:
        # Of a file that is no database MLflow would make sure for a hundred seconds.
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")
        yield
    finally:
        lock.release()


@contextmanager
def _patience() -> Iterator[None]:
    """Let a request take the time of an upload: the server answers only once it has stored the whole file."""
    usual = os.environ[_TIMEOUT]  # set before any thread started: to replace its value is safe, to add one would not be
    os.environ[_TIMEOUT] = str(max(int(usual), _UPLOAD_TIMEOUT_S))
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = usual


def _batches(items: list[Any], size: int = 100) -> Iterator[list[Any]]:
    """Yield lists as long as one call may carry params or tags. Source: mlflow.org/docs/latest/rest-api.html#log-batch."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
