"""Runs read from an MLflow store, as a comparison needs them."""

import json
import math
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from pipeline.compare.read import ACTIVE, AT_END, AT_EVALUATION, TRAINING, RunData, curves
from pipeline.errors import PipelineError, UsageError
from pipeline.redact import redact
from pipeline.track import mapping
from pipeline.track.curves import Points
from pipeline.track.mapping import MEMBERS, SWEEP, UID
from pipeline.track.tracker import connect
from pipeline.track.uri import sqlite_path

T = TypeVar("T")
_PAGE = 1000  # runs of one answer
_LARGEST = 1.7e308  # MLflow stores infinity as 1.797e308
_CURVES = ("val/", "train/loss", "perf/images_per_s", "perf/data_wait", ACTIVE, TRAINING, AT_EVALUATION, AT_END)
"""Names and beginnings of names of the metrics whose history is fetched: each costs a query over all runs."""


class Store:
    """The runs of an MLflow store, in the experiments named, or in all."""

    def __init__(
        self, uri: str, experiments: Sequence[str] = (), metrics: Sequence[str] = (), here: Sequence[str] = ()
    ) -> None:
        """Connect; `metrics` are fetched besides the usual ones, and experiments named in `here` need not be there.

        Raises:
            UsageError: if an experiment isn't there, or the store can't be reached.
        """
        self.uri, self._database, self._wanted = redact(uri), sqlite_path(uri), (*_CURVES, *metrics)
        self._client = self._ask(lambda: connect(uri))
        self._experiments = self._ask(lambda: self._ids(experiments, here))

    def find(self, text: str) -> list[RunData]:
        """Return the runs with that id, name, or tag (`tag:KEY=VALUE`), oldest first.

        Raises:
            UsageError: if the store can't be reached.
        """
        return self._ask(lambda: [self._read(run) for run in self._members(self._search(text))])

    def all(self, without: Collection[str] = ()) -> list[RunData]:
        """Return the runs of the experiments, oldest first, but those with the uids in `without`.

        Raises:
            UsageError: if the store can't be reached.
        """
        return self._ask(
            lambda: [self._read(run) for run in self._found("") if _uid(run) not in without and not _is_parent(run)]
        )

    def _ids(self, names: Sequence[str], here: Sequence[str]) -> list[str]:
        there = {e.name: str(e.experiment_id) for e in self._client.search_experiments()}
        known = {*there, *here} - {""}
        for name in names:
            if name not in known:
                raise UsageError(f"--experiment {name}: no such experiment in {self.uri}; there are {', '.join(sorted(known))}")
        return [there[name] for name in names if name in there] if names else list(there.values())

    def _found(self, query: str) -> list[Any]:
        """Return all runs that a query of MLflow finds in the experiments, oldest first."""
        found, token = [], None
        while self._experiments:
            page = self._client.search_runs(
                self._experiments, query, order_by=["attributes.start_time ASC"], page_token=token, max_results=_PAGE
            )
            found += page
            token = page.token
            if not token:
                break
        return found

    def _search(self, text: str) -> Iterator[Any]:
        if text.startswith("tag:"):
            key, _, value = text.removeprefix("tag:").partition("=")
            queries = [f"tags.`{mapping.name(key)}` = '{_quoted(value)}'"]
        else:
            shown = _quoted(text)
            queries = [f"attributes.run_id = '{shown}'", f"tags.`{UID}` = '{shown}'", f"attributes.run_name = '{shown}'"]
        for query in queries:
            found = self._found(query)
            if found:
                yield from found
                return

    def _members(self, runs: Iterable[Any]) -> Iterator[Any]:
        """Yield the runs, and for the parent of a sweep, where nothing else is there, its members."""
        found = list(runs)
        alone = all(map(_is_parent, found))
        for run in found:
            if not _is_parent(run):
                yield run
            elif alone:
                members = self._search(f"tag:{SWEEP}={run.data.tags.get(SWEEP, '')}")
                yield from (one for one in members if not _is_parent(one))

    def _read(self, run: Any) -> RunData:
        params = {key: _value(text) for key, text in run.data.params.items()}
        plan = {key.removeprefix("plan."): value for key, value in params.items() if key.startswith("plan.")}
        tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
        wanted = [key for key in run.data.metrics if key.startswith(self._wanted)]
        points = self._points(run.info.run_id, wanted)
        return RunData(
            name=run.info.run_name,
            uid=_uid(run),
            source=f"{self.uri} {run.info.run_id}",
            status=run.info.status,
            config={key: value for key, value in params.items() if not key.startswith("plan.")},
            plan=plan,
            tags=tags,
            curves=curves(points),
            worlds=((0.0, int(plan.get("world_size", 1))),),
            datasets=_digests(run),
        )

    def _points(self, run_id: str, keys: Sequence[str]) -> Points:
        if self._database is not None:
            return _from_database(self._database, run_id, keys)
        histories = ((key, self._client.get_metric_history(run_id, key)) for key in keys)
        return {key: _ordered((m.step, m.value) for m in history) for key, history in histories}

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except PipelineError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"{self.uri}: {redact(reason)[:300]}; check the address (--uri), or read journals only (--source journal)"
            ) from error


def _is_parent(run: Any) -> bool:
    return MEMBERS in run.data.tags


def _uid(run: Any) -> str:
    """Return the id that a run has in its journal; of a run that is not ours, MLflow's."""
    return str(run.data.tags.get(UID, run.info.run_id))


def _digests(run: Any) -> dict[str, str]:
    """Return the digests of the data sets that a run has read, by context."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return {tag.value: one.dataset.digest for one in inputs for tag in one.tags if tag.key == "mlflow.data.context"}


def _from_database(database: Path, run_id: str, keys: Sequence[str]) -> Points:
    """Read histories from a local database directly: MLflow's client makes an object of each point, several times slower.

    Source: the table `metrics` of mlflow/store/tracking/dbmodels/models.py.
    """
    marks = ",".join("?" * len(keys))
    value = "CASE is_nan WHEN 1 THEN NULL ELSE value END"
    query = f"SELECT key, step, {value} FROM metrics WHERE run_uuid = ? AND key IN ({marks})"
    found: dict[str, list[tuple[int, float]]] = {key: [] for key in keys}
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        for key, step, value in connection.execute(query, (run_id, *keys)):
            found[key].append((step, math.nan if value is None else value))
    return {key: _ordered(points) for key, points in found.items() if points}


def _ordered(points: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Return steps, rising, and values; of two values at a step one stays, and infinity is what MLflow made of it."""
    by_step = dict(points)
    steps = sorted(by_step)
    return steps, [math.copysign(math.inf, v) if abs(v) > _LARGEST else v for v in map(by_step.__getitem__, steps)]


def _quoted(text: str) -> str:
    if "'" in text or "`" in text:
        raise UsageError(f"{text!r}: quotes can't be searched for in MLflow; give the run's id")
    return text


def _value(text: str) -> Any:
    """Return a param as the configuration had it."""
    try:
        return json.loads(text)
    except ValueError:
        return text
