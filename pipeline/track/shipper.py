"""Bring a run's journal into MLflow exactly once, in the background of a training or afterwards.

It must neither make the training wait nor raise into it.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import Track
from pipeline.errors import PipelineError, UsageError
from pipeline.redact import redact
from pipeline.track.cursor import Cursor
from pipeline.track.delivery import Delivery, failure, first_run
from pipeline.track.journal import JOURNAL, Record
from pipeline.track.refusal import one_line
from pipeline.track.runs import read_run
from pipeline.track.tracker import set_environment
from pipeline.track.uri import tracking_uri

__all__ = ["Shipper", "SyncResult", "first_run", "sync", "tracking_uri"]
_log = logging.getLogger(__name__)
_POLL_S = 1.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_SILENT_S = 5.0
_SLOW_S = 60.0


class Shipper:
    """A background thread that follows the journal of a training in this process into MLflow.

    While the store is down or slow it tries again, after a second at first and after half a minute at most, and goes on
    where it failed. It warns once when the store is lost and once when it is back.
    """

    def __init__(self, run_dir: Path, uri: str, experiment: str) -> None:
        """Touch neither MLflow nor the network yet; `start` does, in the background, and needs the journal to be there."""
        self._delivery = Delivery(run_dir, uri, experiment)
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
            reason = failure(self._delivery.cursor.failed[0])
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
    delivery = Delivery(run_dir, place, experiment, guest=uri is not None)
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
            f"{redact(place)}: {len(failed)} of the run's files not stored, the rest is: {failure(failed[0])}; "
            "mend that and sync again"
        )
    return SyncResult(run_dir, redact(place), experiment, str(delivery.cursor.run_id), delivery.shipped)


def _in_time(delivery: Delivery) -> None:
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
