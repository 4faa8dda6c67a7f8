"""One experiment of an MLflow store, and the calls that bring a run into it; the only module that writes to MLflow."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import UsageError
from pipeline.track import mapping, registry
from pipeline.track.cursor import POINTS_PER_CALL, Point
from pipeline.track.journal import Record, milliseconds
from pipeline.track.refusal import for_good, one_line
from pipeline.track.store import ready
from pipeline.track.uri import refuse_network_disk, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "model"
"""Folder of a run's artifacts that holds its MLflow model."""
_log = logging.getLogger(__name__)
UPLOAD_TIMEOUT_S = 300
_NAME_LENGTH = 300  # characters of what was refused that a message shows
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

    `make` makes a sqlite database that is missing; one that is there is mended or upgraded where it must be.

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
    with ready(database) if database is not None else nullcontext():
        return MlflowClient(tracking_uri=uri)


class Tracker:
    """One experiment of one MLflow store. Every method may raise whatever MLflow raises.

    What the store refuses for good, such as a value out of its range, is left out and named in `refused`, with the reason.
    `unsure` says whether a run was asked for without an answer, so that another one may still appear.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        """Connect; make the store and the experiment if they are missing."""
        self.refused: dict[str, str] = {}
        self.unsure = False
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

        Searching first is what keeps the run single: a server too slow to answer has made it all the same, or makes it later.
        """
        found = self.settle(record["uid"])
        if found is not None:
            return found
        tags, name = {mapping.UID: record["uid"]}, mapping.text(record["name"])
        try:
            return str(self._client.create_run(self._experiment_id, milliseconds(record), tags, name).info.run_id)
        except Exception:
            self.unsure = True
            raise

    def settle(self, uid: str, run_id: str | None = None) -> str | None:
        """Return the id of the one run with a uid, None if there is none, and delete empty others, which earlier requests made.

        The one is `run_id` where it is among them, else the one that holds most.
        """

        def rank(run: Any) -> tuple[bool, int, str]:
            return run.info.run_id == run_id, len(run.data.metrics) + len(run.data.params), run.info.run_id

        found = self._client.search_runs([self._experiment_id], f"tags.`{mapping.UID}` = '{uid}'")
        *others, best = sorted(found, key=rank) or [None]
        for run in others:
            if not run.data.metrics and not run.data.params:
                self._client.delete_run(run.info.run_id)
        return None if best is None else str(best.info.run_id)

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
        for batch in _batches(metrics, POINTS_PER_CALL):
            self._send(run_id, batch, lambda some: self._client.log_batch(run_id, metrics=some), lambda m: f"metric {m.key}")

    def _send(self, run_id: str, items: list[Any], send: Callable[[Any], object], called: Callable[[Any], str]) -> None:
        """Send items together; where the store refuses them, by halves, until it has all but those that it refuses alone."""
        try:
            if items:
                send(items)
        except Exception as error:
            if not for_good(error):
                raise
            if len(items) == 1:
                self.heartbeat(run_id)  # a store that refuses this too refuses everything, as one does whose run was deleted
                self.refused[called(items[0])[:_NAME_LENGTH]] = one_line(error)
                return
            middle = len(items) // 2
            for half in (items[:middle], items[middle:]):
                self._send(run_id, half, send, called)

    def describe(self, run_id: str, record: Record, run_dir: Path) -> None:
        """Store what a "run" record says; params that a restart has changed keep their value and get a tag."""
        from mlflow.entities import Param, RunTag

        there = self._client.get_run(run_id).data.params
        params = mapping.params(record)
        new = [Param(key, value) for key, value in params.items() if key not in there]
        tags = mapping.tags(record, run_dir) | mapping.changes(there, params)
        for batch in _batches(new):
            self._send(run_id, batch, lambda some: self._client.log_batch(run_id, params=some), lambda p: f"param {p.key}")
        for batch in _batches([RunTag(key, value) for key, value in tags.items()]):
            self._send(run_id, batch, lambda some: self._client.log_batch(run_id, tags=some), lambda t: f"tag {t.key}")
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
        self._send(
            run_id, inputs, lambda some: self._client.log_inputs(run_id, some), lambda found: f"data set {found.dataset.name}"
        )

    def status(self, run_id: str, record: Record) -> None:
        """Set the run's status and the reason for it; one without takes that of an earlier status away."""
        self._send(run_id, [record], lambda _: self._status(run_id, record), lambda _: f"status {record['status']}")

    def _status(self, run_id: str, record: Record) -> None:
        if record.get("reason"):
            self._client.set_tag(run_id, mapping.REASON, mapping.tag(record["reason"]))
        elif mapping.REASON in self._client.get_run(run_id).data.tags:
            self._client.delete_tag(run_id, mapping.REASON)
        if record["status"] == "RUNNING":
            self._client.update_run(run_id, "RUNNING")
        else:
            self._client.set_terminated(run_id, record["status"], milliseconds(record))

    def failed(self, run_id: str, what: Sequence[str]) -> None:
        """Tell in a tag what the store did not take; nothing takes the tag away."""
        if what:
            self._client.set_tag(run_id, mapping.FAILED, mapping.tag("\n".join(what)))
        elif mapping.FAILED in self._client.get_run(run_id).data.tags:
            self._client.delete_tag(run_id, mapping.FAILED)

    def heartbeat(self, run_id: str) -> None:
        """Tell that the run lives. It raises where the store does not answer or takes nothing for this run."""
        self._client.set_tag(run_id, mapping.HEARTBEAT, f"{time.time():.0f}")

    def warn(self, run_id: str, record: Record) -> None:
        """Set what a "warning" record says as a tag, named after its step."""
        key = f"warning.step_{record['step']}"
        self._send(
            run_id, [key], lambda _: self._client.set_tag(run_id, key, mapping.tag(record["text"])), lambda _: f"tag {key}"
        )

    def artifact(self, run_id: str, record: Record, run_dir: Path) -> None:
        """Upload a file or folder; one that is no longer there is passed over with a warning."""
        path = run_dir / record["path"]
        if not path.is_file() and not path.is_dir():  # a pipe would be read for ever
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


@contextmanager
def _patience() -> Iterator[None]:
    """Let a request take the time of an upload: the server answers only once it has stored the whole file."""
    usual = os.environ[_TIMEOUT]  # set before any thread started: to replace its value is safe, to add one would not be
    os.environ[_TIMEOUT] = str(max(int(usual), UPLOAD_TIMEOUT_S))
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = usual


def _batches(items: list[Any], size: int = 100) -> Iterator[list[Any]]:
    """Yield lists as long as one call may carry params or tags. Source: mlflow.org/docs/latest/rest-api.html#log-batch."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
