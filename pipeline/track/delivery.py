"""One journal on its way into one MLflow run: what is shipped next, what was, and what the store did not take."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.output import printable
from pipeline.redact import redact
from pipeline.track.cursor import CURSOR, Cursor, Piece, aside, pieces
from pipeline.track.journal import JOURNAL, Record, read
from pipeline.track.lock import FileLock
from pipeline.track.refusal import one_line, unreachable
from pipeline.track.tracker import UPLOAD_TIMEOUT_S, Tracker
from pipeline.track.uri import sqlite_path

_log = logging.getLogger(__name__)
_HEARTBEAT_S = 60.0
_NAMED = 100
"""Refused tags, params and metrics that a run names; there may be more."""


class Delivery:
    """One journal on its way into one MLflow run, from where the cursor file says that the last process came to.

    With `guest`, the run keeps the store that it is at home in, if it ever got there, and this one has a cursor of its own.
    """

    def __init__(self, run_dir: Path, uri: str, experiment: str, *, guest: bool = False) -> None:
        self.run_dir, self.uri, self.shipped = run_dir, uri, 0
        self._guest, self._file = guest, CURSOR
        self._remote = sqlite_path(uri) is None
        self._journal = run_dir / JOURNAL
        self._lock = FileLock(run_dir / f"{CURSOR}.lock")
        self._locked = False
        self._tracker: Tracker | None = None
        self._first: Record | None = None
        self._next_heartbeat = 0.0
        self._moved = math.inf
        self.cursor = Cursor(redact(uri), experiment)

    def advance(self, stop: Callable[[], bool] = lambda: False, *, again: bool = True) -> None:
        """Ship what stands complete in the journal, or up to the piece at which `stop` says so.

        With `again`, try once more what the store has refused to take.

        Raises:
            Exception: what MLflow and the file system raise; calling again goes on where it failed.
        """
        self._begin()
        self._first = record = self._first or first_run(self._journal)
        if record is None:
            return
        self._note_progress()
        if self._tracker is None:
            tracker = Tracker(self.uri, self.cursor.experiment)
            self._check(tracker, record)
            self._tracker = tracker  # only now: what fails above is done again
        if self.cursor.run_id is None:
            self._keep(replace(self.cursor, run_id=self._tracker.find_or_start(record)))
        if again:
            self._settle(self._tracker)
            self._retry(self._tracker)
        for piece in pieces(self._journal, self.cursor.offset, self.cursor.high_water):
            self._ship(self._tracker, piece)
            self._keep(self.cursor.after(piece))
            self.shipped += len(piece.points)
            self._note_progress()
            if stop():
                return

    @property
    def silent_s(self) -> float:
        """Seconds since a server answered last, or should have; negative while nothing is under way with one."""
        return time.monotonic() - self._moved

    def _note_progress(self, patience_s: float = 0.0) -> None:
        if self._remote:
            self._moved = time.monotonic() + patience_s

    def rest(self) -> None:
        """Note that nothing is under way."""
        self._moved = math.inf

    def heartbeat(self) -> None:
        """Tell MLflow, once a minute at most, that the run lives.

        Raises:
            Exception: what MLflow raises.
        """
        if self._tracker is None or self.cursor.run_id is None or time.monotonic() < self._next_heartbeat:
            return
        self._tracker.heartbeat(self.cursor.run_id)
        if self._tracker.unsure:
            self._settle(self._tracker)
        self._next_heartbeat = time.monotonic() + _HEARTBEAT_S

    def set_status(self, record: Record) -> None:
        """Give the MLflow run, once made, a status that stands in no journal."""
        if self._tracker is not None and self.cursor.run_id is not None:
            self._tracker.status(self.cursor.run_id, record)

    def end(self) -> None:
        """Let others ship this journal."""
        self._lock.release()
        self._locked = False

    def _begin(self) -> None:
        """Take the right to ship, and with it the cursor as its last holder left it."""
        if self._locked:
            return
        if not self._lock.acquire(wait=False):
            raise UsageError(
                f"{self.run_dir}: {self._lock.holder()} is bringing this run into MLflow; leave it to that process"
            )
        self._locked = True
        saved = Cursor.load(self.run_dir)
        if self._guest and saved is not None and saved.run_id is not None and saved.uri != self.cursor.uri:
            self._file = aside(self.cursor.uri)
            saved = Cursor.load(self.run_dir, self._file)
        if saved is not None and (saved.uri, saved.experiment) == (self.cursor.uri, self.cursor.experiment):
            # What MLflow has stays counted even where a power cut has taken it from the journal.
            self.cursor = saved if saved.fits(self._journal) else replace(saved, offset=0)

    def _check(self, tracker: Tracker, record: Record) -> None:
        """Begin anew where the store has lost the run that the cursor tells of, as one made afresh or from a backup has."""
        if self.cursor.run_id is None:
            return
        state = tracker.state(self.cursor.run_id, record["uid"])
        if state == "deleted":
            raise UsageError(
                f"{self.run_dir}: its run is deleted in {redact(self.uri)}; bring it back with "
                f"`mlflow runs restore --run-id {self.cursor.run_id}`"
            )
        if state == "missing":
            self.cursor = Cursor(self.cursor.uri, self.cursor.experiment)

    def _settle(self, tracker: Tracker) -> None:
        """Remove the runs that the store has made beside this one, since it answered too late to the request for it."""
        if self._first is not None:
            tracker.settle(self._first["uid"], self.cursor.run_id)

    def settle(self) -> None:
        """Note where a run that has been nowhere belongs, before MLflow has answered: `sync` then knows it.

        Raises:
            OSError: if the directory can't be written.
        """
        if Cursor.load(self.run_dir) is None:
            self._keep(self.cursor)

    def _keep(self, cursor: Cursor) -> None:
        try:
            cursor.save(self.run_dir, self._file)
        except OSError as error:
            raise UsageError(f"{self.run_dir / self._file}: can't write: {error.strerror}; make room, or remove it") from error
        self.cursor = cursor

    def _ship(self, tracker: Tracker, piece: Piece) -> None:
        run_id, event = str(self.cursor.run_id), piece.event
        tracker.points(run_id, piece.points)
        kind = event["kind"] if event else ""
        if event is None:
            pass
        elif kind == "run":
            tracker.describe(run_id, event, self.run_dir)
        elif kind == "status":
            tracker.status(run_id, event)
        elif kind == "warning":
            tracker.warn(run_id, event)
        else:
            reason = self._upload(tracker, event)
            if reason is not None and all(event != there["event"] for there in self.cursor.failed):
                self._note(tracker, [*self.cursor.failed, {"event": event, "reason": reason}])
        if tracker.refused:
            self._note_refused(tracker)

    def _upload(self, tracker: Tracker, event: Record) -> str | None:
        """Store a file, a folder or a model; return why the store does not take it: that must not hold up all the rest."""
        run_id = str(self.cursor.run_id)
        self._note_progress(UPLOAD_TIMEOUT_S)
        try:
            if event["kind"] == "model":
                tracker.model(run_id, event, self.run_dir)
            else:
                tracker.artifact(run_id, event, self.run_dir)
        except Exception as error:
            if unreachable(error):
                raise
            tracker.heartbeat(run_id)  # raises where it is the whole store that fails: that passes
            return one_line(error)
        return None

    def _retry(self, tracker: Tracker) -> None:
        if not self.cursor.failed:
            return
        tried = [there | {"reason": self._upload(tracker, there["event"])} for there in self.cursor.failed]
        self._note(tracker, [there for there in tried if there["reason"] is not None])
        self._keep(self.cursor)

    def _note(self, tracker: Tracker, failed: list[Record]) -> None:
        self.cursor = replace(self.cursor, failed=failed)
        self._tell(tracker)

    def _note_refused(self, tracker: Tracker) -> None:
        """Name what the store refuses for good: it is left out, and what comes behind it is not."""
        new = {what: reason for what, reason in tracker.refused.items() if what not in self.cursor.refused}
        for what, reason in new.items():
            _log.warning("tracking: %s refuses %s: %s; it is left out", redact(self.uri), printable(what), printable(reason))
        kept = [*self.cursor.refused.items(), *new.items()][:_NAMED]
        self.cursor = replace(self.cursor, refused=dict(kept))
        self._tell(tracker)
        tracker.refused.clear()

    def _tell(self, tracker: Tracker) -> None:
        refused = [f"{what} ({reason})" for what, reason in self.cursor.refused.items()]
        tracker.failed(str(self.cursor.run_id), [*map(failure, self.cursor.failed), *refused])


def first_run(journal: Path) -> Record | None:
    """Return the record that a run begins with, None if it died before.

    Raises:
        OSError: if the journal can't be read.
    """
    return next((record for record, _ in read(journal) if record["kind"] == "run"), None)


def failure(there: Record) -> str:
    """Return `PATH (REASON)` of a file that the store did not take."""
    return f"{there['event']['path']} ({there['reason']})"
