"""Which runs a command line means: directories, ids, names and tags, found in journals first and in MLflow then."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pipeline.compare.read import RunData, read_journal
from pipeline.compare.store import Store
from pipeline.config.schema import Track
from pipeline.errors import UsageError
from pipeline.track.journal import JOURNAL
from pipeline.track.mapping import MEMBER, SWEEP
from pipeline.track.runs import RunInfo, list_runs
from pipeline.track.uri import sqlite_path, tracking_uri

Source = Literal["auto", "journal", "mlflow"]
_SHORTEST_ID = 6


@dataclass(frozen=True)
class Place:
    """Where to look for runs: directories below `root`, and an MLflow store (None: the one of runs in `root`).

    `metrics` are those that are read from the store besides the usual ones.
    """

    root: Path = Path("runs")
    uri: str | None = None
    experiments: tuple[str, ...] = ()
    source: Source = "auto"
    metrics: tuple[str, ...] = ()

    @cached_property
    def everything(self) -> list[RunInfo]:
        """The runs below `root` whatever their experiment, oldest first."""
        return list_runs(self.root) if self.source != "mlflow" else []

    @cached_property
    def journals(self) -> list[RunInfo]:
        """The runs below `root` in the experiments, oldest first."""
        return [r for r in self.everything if not self.experiments or _experiment(r) in self.experiments]

    @cached_property
    def store(self) -> Store | None:
        """The MLflow store, None if it is not to be asked, or nobody has named one and there is none.

        Raises:
            UsageError: if an experiment is neither there nor in a journal, or the store can't be read.
            ConfigError: if its address is none.
        """
        if self.source == "journal":
            return None
        uri = tracking_uri(Track(uri=self.uri), self.root)
        database = sqlite_path(uri)
        if self.uri is None and self.source == "auto" and database is not None and not database.is_file():
            return None
        return Store(uri, self.experiments, self.metrics, here=[_experiment(run) for run in self.everything])


def find(texts: Sequence[str], place: Place) -> list[RunData]:
    """Return the runs that are meant, each once, in the order given; without texts, all runs of the experiments.

    Raises:
        UsageError: if a text means no run, or what it means can't be read.
    """
    found = [run for text in texts for run in _in_order(_meant(text, place))] if texts else _in_order(_all(place))
    firsts: dict[str, RunData] = {}
    for run in found:
        firsts.setdefault(run.uid, run)
    return list(firsts.values())


def _in_order(runs: list[RunData]) -> list[RunData]:
    """Return the runs with the members of each sweep together, by their numbers: the first value comes first."""
    places: dict[str, int] = {}
    for i, run in enumerate(runs):
        places.setdefault(run.tags.get(SWEEP, run.uid), i)
    return sorted(runs, key=lambda run: (places[run.tags.get(SWEEP, run.uid)], _member(run)))


def _member(run: RunData) -> int:
    number = run.tags.get(MEMBER, run.name.rpartition("-")[2])  # older members have their number in the name only
    return int(number) if SWEEP in run.tags and number.isdecimal() else 0


def _all(place: Place) -> list[RunData]:
    """Return the runs of the experiments: those with a journal here, then those that only MLflow knows."""
    known = sorted({_experiment(run) for run in place.everything} - {""})
    for name in place.experiments if place.store is None else ():
        if name not in known:
            hint = f"there are {', '.join(known)}" if known else "give the --root or --uri of its runs"
            raise UsageError(f"--experiment {name}: no such experiment {_looked(place)}; {hint}")
    here = [read_journal(run.run_dir) for run in place.journals if run.uid and not run.is_parent]
    there = place.store.all(without={run.uid for run in here}) if place.store else []
    if not here and not there:
        raise UsageError(f"--experiment {', '.join(place.experiments)}: holds no run {_looked(place)}; train something first")
    return [*here, *there]


def _experiment(run: RunInfo) -> str:
    return str(run.config.get("track.experiment", ""))


def _meant(text: str, place: Place) -> list[RunData]:
    directory = Path(text)
    a_path = "/" in text or text.startswith(".")
    is_folder = text != "" and _is_folder(directory)
    if is_folder and (a_path or (directory / JOURNAL).is_file()):
        return _below(directory) if place.source != "mlflow" else _shipped(directory, place)
    here = _trainings([run for run in place.journals if run.uid and _matches(run, text)])
    if here:
        return [read_journal(run.run_dir) for run in here]
    # What happens to be called like a run hides it only if there are runs in it.
    if is_folder and any(run.uid for run in list_runs(directory)):
        return _below(directory) if place.source != "mlflow" else _shipped(directory, place)
    there = place.store.find(text) if place.store else []
    if there:
        return there
    raise UsageError(f"{text}: no such run {_looked(place)}; {_hint(place.journals)}")


def _is_folder(directory: Path) -> bool:
    """Return whether a path is a folder."""
    try:
        return directory.is_dir()
    except OSError:  # a name too long for a path is none
        return False


def _below(directory: Path) -> list[RunData]:
    if (directory / JOURNAL).is_file() and not (run := read_journal(directory)).is_parent:
        return [run]
    found = [read_journal(run.run_dir) for run in _trainings([run for run in list_runs(directory) if run.uid])]
    if not found:
        raise UsageError(f"{directory}: holds no run; give a run directory, or a folder of them")
    return found


def _shipped(directory: Path, place: Place) -> list[RunData]:
    """Return what MLflow has of the runs in a directory."""
    ids = [run.uid for run in _trainings([run for run in list_runs(directory) if run.uid])]
    found = [run for uid in ids for run in (place.store.find(uid) if place.store else [])]
    if not found:
        raise UsageError(f"{directory}: none of its runs is {_looked(place)}; python -m pipeline sync RUN_DIR brings them")
    return found


def _trainings(runs: list[RunInfo]) -> list[RunInfo]:
    """Return the runs without the parents of sweeps; where there are only parents, their members, which lie beside them."""
    trained = [run for run in runs if not run.is_parent]
    return trained or [run for one in runs for run in list_runs(one.run_dir.parent) if run.uid and not run.is_parent]


def _matches(run: RunInfo, text: str) -> bool:
    if text.startswith("tag:"):
        key, _, value = text.removeprefix("tag:").partition("=")
        return run.tags.get(key) == value
    by_id = len(text) >= _SHORTEST_ID and any((name or "").startswith(text) for name in (run.uid, run.mlflow_run_id))
    return by_id or text in (run.name, run.run_dir.name)


def _looked(place: Place) -> str:
    stores = [] if place.store is None else [place.store.uri]
    return "in " + " and ".join([*([str(place.root)] if place.source != "mlflow" else []), *stores])


def _hint(runs: Iterable[RunInfo]) -> str:
    names = list(dict.fromkeys(run.name for run in runs))[-5:]
    return f"there are {', '.join(names)}" if names else "give a directory, an id, a name or tag:KEY=VALUE"
