"""The record of a run while it lives: its journal, the shipper that brings it into MLflow, how it ended.

Only rank 0 keeps a record.
"""

import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.config import as_tree, digest, flat
from pipeline.config.schema import Track
from pipeline.errors import PipelineError, Stopped
from pipeline.redact import redact
from pipeline.track import identity
from pipeline.track.journal import Journal
from pipeline.track.shipper import Shipper
from pipeline.track.uri import tracking_uri
from pipeline.train import outcome, package
from pipeline.train.machines import Machines
from pipeline.train.metrics import score
from pipeline.train.precision import resolve
from pipeline.train.preemption import StopFlag
from pipeline.train.report import Reporter, say
from pipeline.train.rundir import RunDir
from pipeline.train.state import State

DRAIN_ON_STOP_S = 10.0
"""A stopped run waits no longer than this for the tracker: whoever asked is going to kill it."""
WAIT_FOR_LOST = 0.01
"""Share of its active time that a finished run waits for a tracker that is down; `sync` brings the rest later."""


class Record:
    """Keeps the journal from the start of training to its end, whatever the end is."""

    def __init__(self, state: State, run: RunDir, flag: StopFlag, machines: Machines, command: list[str]) -> None:
        self._state, self._run, self._flag, self._command = state, run, flag, command
        cfg = state.cfg  # the other ranks wait meanwhile, and no longer than dist.timeout_s
        self.journal = Journal(run.path, min(cfg.train.retry_s, cfg.dist.timeout_s / 2))
        self._first_batch = run.path / "pictures" / "first_batch.png"
        drawn = self._first_batch if state.cfg.track.pictures and run.fresh else None
        self.reporter = Reporter(state, self.journal, machines, drawn)
        self.uri = tracking_uri(state.cfg.track, state.cfg.run.root)
        self._shipper = Shipper(run.path, self.uri, state.cfg.track.experiment) if state.cfg.track.enabled else None
        self.shipped = False

    @property
    def mlflow_run_id(self) -> str | None:
        """The MLflow run, once there is one."""
        return self._shipper.run_id if self._shipper else None

    def __enter__(self) -> Self:
        state, cfg = self._state, self._state.cfg
        self.journal.event(
            "run",
            uid=self._run.uid,
            name=self._run.name,
            config=flat(as_tree(cfg)),
            plan=state.plan.as_dict(),
            tags=cfg.track.tags
            | identity.tags(state.world, digest(cfg), self._command)
            | {"precision": resolve(cfg.train, state.world.device)},
            datasets=outcome.datasets(state),
            resumed_from_step=None if self._run.fresh else state.step,
        )
        self.journal.event("status", status="RUNNING", reason="")
        self.artifact(self._run.path / "config.yaml", "config")
        for path in outcome.keep_origin(state, self._run.path):
            self.artifact(path, "config")
        if self._shipper:
            self._shipper.start()
        return self

    def artifact(self, path: Path, folder: str) -> None:
        """Have a file of the run directory uploaded into a folder of the run's artifacts."""
        self.journal.event("artifact", path=str(path.relative_to(self._run.path)), artifact_path=folder)

    def keep_model(self) -> None:
        """Export the network as an MLflow model, where that is wanted; one that can't be exported costs a warning."""
        cfg, place = self._state.cfg.track, self._run.mlflow_model
        if not cfg.model and not cfg.register_:
            return
        try:
            package.save(self._state, place)
        except Exception as error:  # torch.export raises anything on networks that it can't follow
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            say(f"warning: {place}: no MLflow model: {reason}; the weights are in {self._run.weights.name}")
            return
        told = {"register": cfg.register_, "metric": "val_top1", "value": score(self._state.val)}
        self.journal.event("model", path=place.name, **told)

    def keep_pictures(self) -> None:
        """Draw what came out, where that is wanted; what can't be drawn costs a warning."""
        if not self._state.cfg.track.pictures:
            return
        if self._first_batch.is_file():
            self.artifact(self._first_batch, "pictures")
        try:
            drawn = outcome.keep_pictures(self._state, self._run.path, self.journal.path)
        except Exception as error:  # drawing libraries raise anything, and a training is worth more than its pictures
            say(f"warning: no pictures: {type(error).__name__}: {error}")
            return
        for folder, files in drawn.items():
            for path in files:
                self.artifact(path, folder)

    def whereabouts(self) -> dict[str, str]:
        """Return where the run is to be found in MLflow, for the closing table."""
        if not self._shipper:
            return {"MLflow run": "not tracked (track.enabled=false)"}
        later = "" if self.shipped else f" (incomplete; later: python -m pipeline sync {self._run.path})"
        return {
            "MLflow run": f"{self.mlflow_run_id or 'none yet'}{later}",
            "MLflow UI": _ui_command(self.uri, self._state.cfg.run.root),
        }

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.reporter.close()
        status, reason = self._end(error)
        if error is not None:
            self.journal.retry_s = 0.0  # the others have left, and whoever started this process is going to kill it
        try:
            self.journal.event("status", status=status, reason=reason, step=self._state.step)
        except PipelineError:
            if error is None:  # else it is the first error that counts
                raise
        finally:
            self.journal.close()
        if self._shipper:
            drain_s = self._drain_s(stopped=error is not None)
            self.shipped = self._shipper.close(drain_s, lambda: say(f"MLflow is slow; waiting for it {drain_s:.0f} s at most"))

    def _drain_s(self, stopped: bool) -> float:
        """Return how long to wait for the tracker; one that is down is not worth more than a hundredth of the run."""
        longest = self._state.cfg.track.drain_s
        if stopped:
            longest = min(longest, DRAIN_ON_STOP_S)
        if self._shipper and self._shipper.lost:
            longest = min(longest, WAIT_FOR_LOST * self._state.clock.total_s)
        return longest

    def _end(self, error: BaseException | None) -> tuple[str, str]:
        if error is None:
            return "FINISHED", ""
        if isinstance(error, Stopped):
            return ("KILLED" if self._flag.signal == signal.SIGINT else "SCHEDULED"), str(error)
        if isinstance(error, KeyboardInterrupt):
            return "KILLED", "interrupted"
        return "FAILED", str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"


def _ui_command(uri: str, root: Path) -> str:
    """Return the command that opens MLflow's UI on a local store, or the address of a server."""
    if not uri.startswith("sqlite"):
        return redact(uri)
    beside = uri == tracking_uri(Track(), root, {})
    return f"{_short(Path(sys.executable))} -m pipeline ui {f'--root {_short(root)}' if beside else f'--uri {uri}'}"


def _short(path: Path) -> Path:
    """Return a path as it is written from the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
