import os
import shutil
import time

import pytest

from pipeline.__main__ import main
from pipeline.errors import UsageError
from pipeline.track.journal import Journal
from pipeline.track.lock import RunLock
from pipeline.track.reap import reap
from pipeline.track.shipper import Shipper, sync

PATIENT_S = 120


def start(directory, begin, uri):
    """Leave a run behind that MLflow takes for running."""
    directory.mkdir(exist_ok=True)
    with RunLock(directory), Journal(directory) as journal:
        begin(journal, uid=directory.name, t=1.0)  # it began long ago
        journal.metrics(1, {"loss": 1.0})
        sync(directory, uri, "tests")


def age(directory, seconds):
    then = time.time() - seconds
    os.utime(directory / "journal.jsonl", (then, then))


def test_a_dead_run_is_closed_from_its_journal_and_living_ones_are_left(tmp_path, begin, uri, stored):
    for name in ("dead", "living", "fresh", "ended"):
        start(tmp_path / name, begin, uri)
    with Journal(tmp_path / "dead") as journal:
        journal.metrics(2, {"loss": 0.5})
    with Journal(tmp_path / "ended") as journal:
        journal.event("status", status="SCHEDULED", reason="preempted")
    for name in ("dead", "living", "ended"):
        age(tmp_path / name, 1000)
    with RunLock(tmp_path / "living"):
        found = reap(uri, after_s=500)
    assert sorted(run.status for run in found) == ["FAILED", "SCHEDULED"]
    assert all(run.silent_s > 900 for run in found)
    told = {name: stored(name)[0] for name in ("dead", "living", "fresh", "ended")}
    assert told["dead"].info.status == "FAILED" and told["dead"].data.metrics["loss"] == 0.5
    assert told["ended"].info.status == "SCHEDULED"
    assert told["living"].info.status == "RUNNING"
    assert told["fresh"].info.status == "RUNNING"
    assert {run.run_id for run in reap(uri, after_s=0)} == {told[name].info.run_id for name in ("living", "fresh")}


def test_a_run_whose_journal_is_elsewhere_goes_by_its_heartbeat(tmp_path, begin, uri, stored):
    directory = tmp_path / "away"
    directory.mkdir()
    before = time.time()
    with RunLock(directory), Journal(directory) as journal:
        begin(journal, uid="away", t=0)
        shipper = Shipper(directory, uri, "tests")
        shipper.start()
        deadline = time.monotonic() + PATIENT_S
        while shipper.run_id is None or "heartbeat" not in stored.client.get_run(shipper.run_id).data.tags:
            assert time.monotonic() < deadline, "no heartbeat came"
            time.sleep(0.05)
        assert shipper.close(PATIENT_S)
    run_id = shipper.run_id
    shutil.rmtree(directory)
    assert float(stored("away")[0].data.tags["heartbeat"]) >= int(before)
    assert reap(uri, after_s=3600) == []
    (found,) = reap(uri, after_s=0)
    assert (found.run_id, found.status) == (run_id, "FAILED")
    assert stored("away")[0].data.tags["status.reason"].startswith("no sign of life for")
    assert reap(uri, after_s=0) == []


def test_a_store_that_cant_be_reached():
    with pytest.raises(UsageError, match=r"^http://127.0.0.1:1: .*check the address"):
        reap("http://127.0.0.1:1", 0)


def test_an_empty_folder_stays_empty(tmp_path):
    with pytest.raises(UsageError, match=r"mlflow.db: no such database; train something first, or name a store with --uri"):
        reap(f"sqlite:///{tmp_path / 'mlflow.db'}", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_dead_run_whose_directory_another_run_took_over_is_closed(tmp_path, begin, uri, stored):
    directory = tmp_path / "first"
    start(directory, begin, uri)
    shutil.rmtree(directory)
    directory.mkdir()
    with RunLock(directory), Journal(directory) as journal:
        begin(journal, uid="second")
        sync(directory, uri, "tests")
        (found,) = reap(uri, after_s=500)
    assert found.run_id == stored("first")[0].info.run_id
    assert stored("first")[0].info.status == "FAILED"
    assert stored("second")[0].info.status == "RUNNING"


def test_a_bad_directory_costs_a_line_and_holds_up_no_other_run(tmp_path, begin, uri, stored, capsys):
    for name in ("one", "two", "three"):
        start(tmp_path / name, begin, uri)
    cursor = tmp_path / "two" / "mlflow.json"
    cursor.unlink()
    (tmp_path / "two" / "mlflow.json.tmp").mkdir()  # so that no cursor can be written
    with pytest.raises(SystemExit) as ended:
        main(["reap", "--uri", uri, "--after", "0"])
    told = capsys.readouterr()
    assert ended.value.code == 1
    assert len(told.out.splitlines()) == 3
    (line,) = told.err.splitlines()
    assert ": not brought up to date: " in line and "two" in line
    assert {stored(name)[0].info.status for name in ("one", "two", "three")} == {"FAILED"}
    with pytest.raises(SystemExit) as ended:
        main(["reap", "--uri", uri, "--after", "0"])
    assert ended.value.code == 0
