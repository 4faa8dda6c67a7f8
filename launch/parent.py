"""The parent of a sweep: a run without a training, whose journal says how its members are; MLflow shows them under it."""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import Config, as_tree, digest, flat
from pipeline.errors import PipelineError, Stopped
from pipeline.redact import redact
from pipeline.track.cursor import Cursor
from pipeline.track.identity import new_uid
from pipeline.track.journal import JOURNAL, Journal
from pipeline.track.mapping import MEMBERS, PARENT, SWEEP
from pipeline.track.runs import list_runs, read_run
from pipeline.track.uri import tracking_uri

_MOST = 100  # members that the parent's configuration lists


def directory(folder: Path) -> Path:
    """Return the directory of the parent of the sweep in a folder."""
    return folder / "parent"


def begin(folder: Path, name: str, cfg: Config, members: Sequence[Sequence[str]], status: str) -> dict[str, str]:
    """Make the parent once, note that the sweep is running or scheduled, and return the tags of its members.

    A tracker that can't be reached is warned of: `sync` brings the parent there later, and its members are put under it.

    Raises:
        PipelineError: if the folder can't be written.
    """
    made, tags = directory(folder), {SWEEP: name}
    made.mkdir(parents=True, exist_ok=True)
    if not (made / JOURNAL).is_file():
        config = flat(as_tree(cfg)) | {f"sweep.{n}": " ".join(one) for n, one in enumerate(members[:_MOST])}
        about = tags | {"config.digest": digest(cfg), MEMBERS: str(len(members))}
        with Journal(made) as journal:
            journal.event("run", uid=new_uid(), name=name, config=config, plan={}, tags=about, resumed_from_step=None)
    if Cursor.load(made) is None:
        Cursor(redact(tracking_uri(cfg.track, cfg.run.root)), cfg.track.experiment).save(made)
    _note(made, status, "")
    run_id = _deliver(made, tracking_uri(cfg.track, cfg.run.root))
    linked = {"mlflow.parentRunId": run_id} if run_id else {}
    return tags | {PARENT: read_run(made).uid} | linked


def settle(folder: Path, number: int | None = None, codes: Mapping[int, int] | None = None) -> None:
    """Note how the members are, as far as their directories tell, in the parent's journal and in MLflow.

    `number` is the signal that ended the sweep, `codes` the exit codes of the members that have ended.
    """
    made = directory(folder)
    if not (made / JOURNAL).is_file():
        return
    parent, found = read_run(made), [run.status for run in list_runs(folder) if not run.is_parent]
    total, done = int(parent.tags.get(MEMBERS, len(found))), found.count("FINISHED")
    if done >= total:
        status = "FINISHED"
    elif number == signal.SIGINT:
        status = "KILLED"
    elif codes is None or number is not None or Stopped.exit_code in codes.values():
        status = "SCHEDULED"
    else:
        status = "FAILED"
    if parent.status != status:
        _note(made, status, "" if done >= total else f"{done} of {total} members have finished")
        _deliver(made, None)


def _note(made: Path, status: str, reason: str) -> None:
    with Journal(made) as journal:
        journal.event("status", status=status, reason=reason)


def _deliver(made: Path, uri: str | None) -> str | None:
    """Bring the parent into MLflow; return its id there, None if it can't be reached."""
    from pipeline.track.shipper import sync

    try:
        return sync(made, uri, None).run_id
    except PipelineError as error:
        later = f"later: python -m pipeline sync {made}"
        print(f"warning: tracking: {error}; the sweep goes on ({later})", file=sys.stderr, flush=True)
        return None
