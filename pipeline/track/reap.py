"""Closing runs in MLflow whose process is gone without a word."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, UsageError
from pipeline.redact import redact
from pipeline.track import mapping
from pipeline.track.journal import JOURNAL
from pipeline.track.lock import in_use
from pipeline.track.shipper import first_run, sync
from pipeline.track.tracker import connect


@dataclass(frozen=True)
class Reaped:
    """A run that MLflow took for running and that was closed; `silent_s` seconds after its last sign of life.

    `problem` says, in one line, why its journal could not be brought into MLflow; it is closed all the same.
    """

    run_id: str
    name: str
    status: str
    silent_s: float
    problem: str | None = None


def reap(uri: str, after_s: float) -> list[Reaped]:
    """Close every run of ours in the store that has given no sign of life for `after_s` seconds; return those.

    Signs of life are a held lock on the run directory, a line in its journal, and the heartbeat that the shipper sends.
    A run whose journal is at hand is brought up to date from it and so gets the status that stands there.

    Raises:
        UsageError: if the store can't be read.
        ConfigError: as `connect` does.
    """
    from mlflow.entities import ViewType

    try:
        client = connect(uri)
        ids = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ACTIVE_ONLY)]
        running = client.search_runs(ids, "attributes.status = 'RUNNING'", max_results=1000)
        now = time.time()
        # a sign from the future is one from now: it was rounded up, or another host's clock is ahead
        silent = [(run, max(0.0, now - _last_sign(run))) for run in running if mapping.UID in run.data.tags and not _lives(run)]
        return [_close(client, uri, run, seconds) for run, seconds in silent if seconds >= after_s]
    except PipelineError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{redact(uri)}: {redact(reason)[:300]}; check the address (--uri)") from error


def _directory(run: Any) -> Path | None:
    """Return the run's directory if this machine sees it, and it has not become another run's since."""
    path = Path(run.data.tags.get(mapping.RUN_DIR, ""))
    if not path.is_absolute():
        return None
    try:
        began = first_run(path / JOURNAL)
    except OSError:
        return None
    return path if began is not None and began.get("uid") == run.data.tags[mapping.UID] else None


def _lives(run: Any) -> bool:
    directory = _directory(run)
    try:
        return directory is not None and in_use(directory)
    except OSError:  # a lock that can't be looked at says nothing; the heartbeat does
        return False


def _last_sign(run: Any) -> float:
    """Return when the run was last heard of, unix seconds."""
    signs: list[float] = [run.info.start_time / 1000, float(run.data.tags.get(mapping.HEARTBEAT, 0))]
    directory = _directory(run)
    if directory is not None:
        signs.append((directory / JOURNAL).stat().st_mtime)
    return max(signs)


def _close(client: Any, uri: str, run: Any, silent_s: float) -> Reaped:
    run_id, directory = run.info.run_id, _directory(run)
    problem = None if directory is None else _sync(directory, uri, client.get_experiment(run.info.experiment_id).name)
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_tag(run_id, mapping.REASON, f"no sign of life for {silent_s:.0f} s")
        client.set_terminated(run_id, "FAILED")
    return Reaped(run_id, run.info.run_name, client.get_run(run_id).info.status, silent_s, problem)


def _sync(directory: Path, uri: str, experiment: str) -> str | None:
    """Bring a run's journal into MLflow; return what keeps it from there: one bad directory must not hold up the others."""
    try:
        sync(directory, uri, experiment)
    except (PipelineError, OSError) as error:
        return redact(str(error).splitlines()[0])
    return None
