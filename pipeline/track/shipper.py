"""Bring a run's journal into MLflow exactly once, in the background of a training or afterwards.

It must neither make the training wait nor raise into it. Not here: MLflow's own calls (`pipeline.track.tracker`).
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.schema import Track
from pipeline.errors import PipelineError, UsageError
from pipeline.output import printable
from pipeline.redact import redact
from pipeline.track.cursor import CURSOR, Cursor, Piece, aside, pieces
from pipeline.track.journal import JOURNAL, Record, read
from pipeline.track.lock import FileLock
from pipeline.track.refusal import one_line, unreachable
from pipeline.track.runs import read_run
from pipeline.track.tracker import UPLOAD_TIMEOUT_S, Tracker, set_environment
from pipeline.track.uri import sqlite_path, tracking_uri

__all__ = ["Shipper", "SyncResult", "first_run", "sync", "tracking_uri"]
_log = logging.getLogger(__name__)
_POLL_S = 1.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_HEARTBEAT_S = 60.0
_SILENT_S = 5.0
_SLOW_S = 60.0
_NAMED = 100
"""Refused tags, params and metrics that a run names; there may be more."""


class _Delivery:
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
        tracker.failed(str(self.cursor.run_id), [*map(_failure, self.cursor.failed), *refused])


class Shipper:
    """A background thread that follows the journal of a training in this process into MLflow.

    While the store is down or slow it tries again, after a second at first and after half a minute at most, and goes on
    where it failed. It warns once when the store is lost and once when it is back.
    """

    def __init__(self, run_dir: Path, uri: str, experiment: str) -> None:
        """Touch neither MLflow nor the network yet; `start` does, in the background, and needs the journal to be there."""
        self._delivery = _Delivery(run_dir, uri, experiment)
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._drained = False
        self._lost = False
        self._told = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-shipper", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="mlflow-watcher", daemon=True)

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id, once it is known."""
        return self._delivery.cursor.run_id

    @property
    def lost(self) -> bool:
        """Whether the store could not be reached when it was tried last."""
        return self._lost

    def start(self) -> None:
        """Start to follow the journal."""
        set_environment()
        try:
            self._delivery.settle()
        except UsageError as error:
            _log.warning("tracking: %s; training goes on, and `sync` tries again", error)
        self._thread.start()
        self._watcher.start()

    def close(self, drain_s: float, waiting: Callable[[], object] = lambda: None) -> bool:
        """Ship what is left, for `drain_s` seconds at most, and return whether everything is in MLflow, each file too.

        What is not is brought there by `sync`. `waiting` is called if it takes longer than a few seconds. Calling it before
        `start` ships nothing.
        """
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(min(drain_s, _SILENT_S))
            if self._thread.is_alive() and drain_s > _SILENT_S:
                waiting()
                self._thread.join(drain_s - _SILENT_S)
        self._abandoned.set()
        self._over.set()
        return self._drained

    def _work(self) -> None:
        try:
            pause = 0.0
            while not self._abandoned.is_set():
                last = self._closing.is_set()
                if self._pass(last):
                    if last:
                        self._drained = not self._abandoned.is_set() and not self._delivery.cursor.failed
                        return
                    pause = 0.0
                    self._closing.wait(_POLL_S)
                else:
                    pause = min(max(_FIRST_PAUSE_S, 2 * pause), _LONGEST_PAUSE_S)
                    (self._abandoned if last else self._closing).wait(pause)
        finally:
            self._delivery.end()

    def _watch(self) -> None:
        """Warn of a store that never completes an answer: a request's time limit starts anew with each byte that arrives."""
        while not self._over.wait(_POLL_S):
            if self._delivery.silent_s > _SLOW_S:
                self._lose(f"no whole answer for {self._delivery.silent_s:.0f} s")

    def _lose(self, why: str) -> None:
        known, self._lost = self._lost, True
        if not known:
            uri = redact(self._delivery.uri)
            _log.warning("tracking: %s: %s; training goes on and the journal keeps everything", uri, why)

    def _pass(self, last: bool) -> bool:
        """Ship what there is; return whether that worked."""
        shown = redact(self._delivery.uri)
        try:
            self._delivery.advance(self._abandoned.is_set, again=last)
            self._delivery.heartbeat()
        except Exception as error:
            self._lose(one_line(error))
            return False
        finally:
            self._delivery.rest()
        if self._lost:
            _log.warning("tracking: %s is back and has got everything up to here", shown)
        self._lost = False
        if self._delivery.cursor.failed and not self._told:
            self._told = True
            reason = _failure(self._delivery.cursor.failed[0])
            _log.warning("tracking: %s does not take %s; the rest goes on, and `sync` tries this again", shown, reason)
        return True


@dataclass(frozen=True)
class SyncResult:
    """What `sync` did: where the run is in MLflow (without credentials) and how many metric points were sent."""

    run_dir: Path
    uri: str
    experiment: str
    run_id: str
    points: int


def sync(run_dir: Path, uri: str | None = None, experiment: str | None = None) -> SyncResult:
    """Ship what is left of a run's journal, now; a run that died without a word is marked FAILED in MLflow.

    Without `uri` and `experiment`, into those that the run was started with. Another `uri` does not change which these are.

    Raises:
        UsageError: if there is no run, another process ships it, or the store refuses or can't be reached. Of files that
            it does not take it is raised last, with all the rest in MLflow.
        ConfigError: if the address is none.
    """
    record = _run_to_sync(run_dir)
    place = _place(run_dir, record, uri)
    if experiment is None:
        saved = Cursor.load(run_dir)
        experiment = saved.experiment if saved else record["config"].get("track.experiment", "default")
    set_environment()
    delivery = _Delivery(run_dir, place, experiment, guest=uri is not None)
    try:
        _in_time(delivery)
        run = read_run(run_dir, whole=False)
        if run.status == "DIED":
            delivery.set_status({"t": run.updated, "status": "FAILED", "reason": "the process died without a last word"})
    except PipelineError:
        raise
    except Exception as error:
        raise UsageError(f"{redact(place)}: {one_line(error)}; check the address (track.uri) and sync again") from error
    finally:
        delivery.end()
    if delivery.cursor.failed:
        failed = delivery.cursor.failed
        raise UsageError(
            f"{redact(place)}: {len(failed)} of the run's files not stored, the rest is: {_failure(failed[0])}; "
            "mend that and sync again"
        )
    return SyncResult(run_dir, redact(place), experiment, str(delivery.cursor.run_id), delivery.shipped)


def _in_time(delivery: _Delivery) -> None:
    """Ship in a thread, which is left behind if the store never completes an answer.

    Raises:
        TimeoutError: in that case.
        Exception: what `advance` raises.
    """
    raised: list[Exception] = []

    def work() -> None:
        try:
            delivery.advance()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=work, name="mlflow-sync", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        if delivery.silent_s > _SLOW_S and thread.is_alive():
            raise TimeoutError(f"no whole answer for {delivery.silent_s:.0f} s")
    if raised:
        raise raised[0]


def first_run(journal: Path) -> Record | None:
    """Return the record that a run begins with, None if it died before.

    Raises:
        OSError: if the journal can't be read.
    """
    return next((record for record, _ in read(journal) if record["kind"] == "run"), None)


def _run_to_sync(run_dir: Path) -> Record:
    try:
        found = first_run(run_dir / JOURNAL)
    except OSError as error:
        raise UsageError(f"{run_dir}: can't read {JOURNAL}: {error.strerror}; give the directory of a run") from error
    if found is None:
        raise UsageError(f"{run_dir / JOURNAL}: the run died before it began; there is nothing to sync")
    return found


def _place(run_dir: Path, record: Record, uri: str | None) -> str:
    """Return the store to sync into: the given one, the one of last time, or what a training would choose now."""
    chosen = tracking_uri(Track(uri=uri), run_dir.parent)
    saved = Cursor.load(run_dir)
    # Saved addresses have lost their credentials; where the environment has the same one with them, that is the one.
    if uri is not None or (saved is not None and saved.uri == redact(chosen)):
        return chosen
    if saved is not None:
        return tracking_uri(Track(uri=saved.uri), run_dir.parent)
    return tracking_uri(Track(uri=record["config"].get("track.uri")), run_dir.parent)


def _failure(there: Record) -> str:
    """Return `PATH (REASON)` of a file that the store did not take."""
    return f"{there['event']['path']} ({there['reason']})"
