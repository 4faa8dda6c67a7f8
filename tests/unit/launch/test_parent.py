"""The parent of a sweep: how it ends, and that it and its members find each other in MLflow in any order."""

import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from launch import parent, sweep
from pipeline.compare.select import Place, find
from pipeline.errors import UsageError
from pipeline.track.journal import Journal
from pipeline.track.runs import list_runs, read_run
from pipeline.track.shipper import sync

DEAD = "http://127.0.0.1:1"


def make(tmp_path: Path, uri: str = DEAD) -> sweep.Sweep:
    overrides = [f"run.root={tmp_path / 'runs'}", f"track.uri={uri}", "track.experiment=tests", "seed=0..1"]
    return sweep.make(Path("configs/demo.yaml"), overrides, "two", "grid", None)


def member(found: sweep.Sweep, index: int, tags: dict[str, str], status: str = "FINISHED") -> Path:
    directory = found.run_dir(index)
    directory.mkdir(parents=True, exist_ok=True)
    with Journal(directory) as journal:
        own = tags | {"sweep.member": str(index)}
        journal.event("run", uid=f"m{index}", name=f"two-{index}", config={}, plan={}, tags=own, resumed_from_step=None)
        journal.metrics(1, {"val/top1": 0.5})
        journal.event("status", status=status, reason="")
    return directory


@pytest.mark.parametrize("first", ["parent", "members"])
def test_a_sweep_goes_on_without_a_tracker_and_is_delivered_later(
    first: str, tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = make(tmp_path)
    tags = sweep.begin(found, "RUNNING")
    made = parent.directory(found.folder)
    assert tags == {"sweep": "two", "sweep.parent": read_run(made).uid}
    said = capsys.readouterr().err
    assert said.startswith("warning: tracking: http://127.0.0.1:1: ") and f"pipeline sync {made}" in said
    assert said.count("\n") == 1
    directories = [member(found, 0, tags), made, member(found, 1, tags)]
    ids = {d: sync(d, uri, "tests").run_id for d in (directories if first == "members" else sorted(directories, reverse=True))}
    client = MlflowClient(uri)
    for directory in (found.run_dir(0), found.run_dir(1)):
        assert client.get_run(ids[directory]).data.tags["mlflow.parentRunId"] == ids[made]
    parent.settle(found.folder)
    sync(made, uri, "tests")
    assert client.get_run(ids[made]).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("statuses", "number", "codes", "expected"),
    [
        (["FINISHED", "FINISHED"], None, {0: 0, 1: 0}, "FINISHED"),
        (["FINISHED", "SCHEDULED"], signal.SIGTERM, {0: 0, 1: 75}, "SCHEDULED"),
        (["FINISHED", "SCHEDULED"], None, {1: 75}, "SCHEDULED"),
        (["FINISHED", "KILLED"], signal.SIGINT, {1: 75}, "KILLED"),
        (["FINISHED"], signal.SIGTERM, {0: 0, 1: 75}, "SCHEDULED"),
        (["FINISHED", "FAILED"], None, {0: 0, 1: 1}, "FAILED"),
        (["FINISHED", "RUNNING"], None, None, "SCHEDULED"),
        (["FINISHED", "FINISHED"], None, None, "FINISHED"),
    ],
)
def test_only_a_sweep_whose_members_have_all_finished_has_finished(
    statuses: list[str], number: int | None, codes: dict[int, int] | None, expected: str, tmp_path: Path
) -> None:
    found = make(tmp_path)
    tags = sweep.begin(found, "RUNNING")
    for index, status in enumerate(statuses):
        member(found, index, tags, status)
    parent.settle(found.folder, number, codes)
    made = parent.directory(found.folder)
    assert read_run(made).status == expected
    (shown,) = (run for run in list_runs(found.folder) if run.is_parent)
    assert shown.tags["sweep.members"] == "2"
    assert len(find([str(found.folder)], Place(tmp_path, source="journal"))) == len(statuses)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"configs": 3}', '{"configs": []}', '{"configs": [3]}', "\x00"])
def test_a_damaged_list_of_members_is_one_line(text: str, tmp_path: Path) -> None:
    found = make(tmp_path)
    found.folder.mkdir(parents=True)
    (found.folder / "sweep.json").write_text(text)
    with pytest.raises(UsageError, match=r"sweep.json: does not say what its members were; choose another --name"):
        sweep.remember(found)
