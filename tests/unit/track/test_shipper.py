import contextlib
import logging
import os
import queue
import re
import shutil
import signal
import socket
import threading
import time

import pytest

from pipeline.compare.read import read_journal
from pipeline.compare.store import Store
from pipeline.errors import ConfigError, UsageError
from pipeline.track import shipper as shipping
from pipeline.track import tracker
from pipeline.track.cursor import Cursor
from pipeline.track.journal import Journal, read
from pipeline.track.lock import FileLock, RunLock
from pipeline.track.reap import reap
from pipeline.track.runs import read_run
from pipeline.track.shipper import Shipper, sync
from pipeline.track.tracker import Tracker, connect
from pipeline.track.ui import places

PATIENT_S = 120


def once(metrics, steps):
    return {(metric, step): 1 for metric in metrics for step in steps}


def train(journal, steps):
    for step in steps:
        journal.metrics(step, {"train/loss": 1 / (step + 1), "perf/images_per_s": 100.0 + step})


def until(condition):
    """Wait for a condition of another thread."""
    deadline = time.monotonic() + PATIENT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met"
        time.sleep(0.01)


class Dripping:
    """A server that answers a byte each tenth of a second and never comes to the end of its headers."""

    def __init__(self):
        self._server, self._over, self.asked = socket.create_server(("127.0.0.1", 0)), threading.Event(), threading.Event()
        self.uri = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self._server.close()

    def _serve(self):
        self._server.settimeout(PATIENT_S)
        caller, _ = self._server.accept()
        with caller, contextlib.suppress(OSError):
            self.asked.set()
            caller.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self._over.wait(0.1):
                caller.sendall(b"x")


@pytest.fixture
def warned():
    """A queue of what the shipper says, to wait on."""
    said = queue.Queue()
    handler = logging.Handler()
    handler.emit = lambda record: said.put(record.getMessage())
    logger = logging.getLogger("pipeline.track")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def test_a_training_and_its_continuation_are_one_run_with_each_step_once(tmp_path, begin, uri, stored):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with Journal(tmp_path) as journal:
        begin(journal)
        shipper = Shipper(tmp_path, uri, "tests")
        shipper.start()
        journal.event("artifact", path="config.yaml", artifact_path="config")
        journal.event("artifact", path="gone.yaml", artifact_path="config")
        train(journal, range(20))
        journal.metrics(20, {"odd": float("nan"), "steep": float("inf")})
        journal.event("log", text="not for MLflow")
        journal.event("status", status="SCHEDULED", reason="out of time")
        assert shipper.close(PATIENT_S)
    run, counts = stored()
    assert (run.info.status, run.info.run_id) == ("SCHEDULED", shipper.run_id)
    assert run.data.tags["status.reason"] == "out of time"
    assert run.info.run_name == "demo"
    assert run.data.params == {"optim.lr": "0.1", "run.name": "", "plan.total_steps": "50"}
    assert run.data.tags["host"] == "here"
    files = stored.client.list_artifacts(run.info.run_id, "config")
    assert [file.path for file in files] == ["config/config.yaml"]
    assert (tmp_path / "mlartifacts").is_dir()

    with Journal(tmp_path) as journal:
        begin(journal, config={"optim.lr": 0.2, "new": 1}, resumed_from_step=15)
        shipper = Shipper(tmp_path, uri, "tests")
        shipper.start()
        train(journal, range(15, 30))
        assert shipper.close(PATIENT_S)
    run, counts = stored()
    assert run.info.status == "RUNNING"
    assert run.info.run_id == shipper.run_id
    assert run.data.params["optim.lr"] == "0.1"
    assert run.data.params["new"] == "1"
    assert run.data.tags["changed.optim.lr"] == "0.2"
    assert run.data.tags["resumed_from_step"] == "15"
    assert counts == once(["train/loss", "perf/images_per_s"], range(30)) | once(["odd", "steep"], [20])
    assert run.data.metrics["train/loss"] == 1 / 30


def test_a_crash_between_shipping_and_the_cursor_doubles_nothing(tmp_path, begin, uri, stored):
    with Journal(tmp_path) as journal:
        begin(journal)
        train(journal, range(10))
    sync(tmp_path, uri, "tests")
    before = Cursor.load(tmp_path)
    with Journal(tmp_path) as journal:
        train(journal, range(10, 20))
    assert sync(tmp_path).points == 20
    before.save(tmp_path)
    assert sync(tmp_path).points == 20
    (tmp_path / "mlflow.json").unlink()
    assert sync(tmp_path, uri, "tests").points == 40
    _, counts = stored()
    assert counts == once(["train/loss", "perf/images_per_s"], range(20))
    assert sync(tmp_path).points == 0


def test_a_journal_shortened_by_a_power_cut_doubles_nothing(tmp_path, begin, uri, stored):
    with Journal(tmp_path) as journal:
        begin(journal)
        train(journal, range(10))
        kept = journal.path.stat().st_size
        train(journal, range(10, 20))
    sync(tmp_path, uri, "tests")
    os.truncate(journal.path, kept)
    with Journal(tmp_path) as journal:
        train(journal, range(10, 15))
        sync(tmp_path)
        train(journal, range(15, 25))
    sync(tmp_path)
    _, counts = stored()
    assert counts == once(["train/loss", "perf/images_per_s"], range(25))


WRITER = """
import sys
from pathlib import Path
from pipeline.track.journal import Journal, read
journal, first = Journal(Path(sys.argv[1])), int(sys.argv[2])
fields = {"config": {}, "plan": {"total_steps": 50}, "tags": {}, "resumed_from_step": first or None}
journal.event("run", uid="a1", name="demo", **fields)
for step in range(first, 10**9):
    journal.metrics(step, {"train/loss": 1.0})
    print(step, flush=True)
"""


def test_a_writer_killed_and_restarted_leaves_each_step_once(tmp_path, uri, stored, child):
    for first in (0, 20, 30):
        writer = child(WRITER, tmp_path, first)
        while int(writer.stdout.readline()) < first + 40:
            pass
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        sync(tmp_path, uri, "tests")
    run, counts = stored()
    assert run.info.status == "FAILED"
    written = [record["step"] for record, _ in read(tmp_path / "journal.jsonl") if record["kind"] == "metrics"]
    assert len(written) > len(set(written))
    assert counts == once(["train/loss"], written)


def test_a_run_that_a_slow_server_made_all_the_same_is_found(tmp_path, begin, uri, stored):
    with Journal(tmp_path) as journal:
        begin(journal)
    record = {"t": 1.0, "uid": "a1", "name": "demo"}
    made = Tracker(uri, "tests").find_or_start(record)
    assert sync(tmp_path, uri, "tests").run_id == made
    assert stored()[0].info.run_id == made


def test_runs_that_a_slow_server_made_later_are_removed_but_none_that_holds_something(tmp_path, begin, uri, stored):
    with Journal(tmp_path) as journal:
        begin(journal)
        train(journal, range(3))
    run_id = sync(tmp_path, uri, "tests").run_id
    place = stored()[0].info.experiment_id
    late = [stored.client.create_run(place, 1, {"run.uid": "a1"}).info.run_id for _ in range(2)]
    assert sync(tmp_path).run_id == run_id
    assert stored()[0].info.run_id == run_id
    (tmp_path / "mlflow.json").unlink()
    stored.client.restore_run(late[0])
    assert sync(tmp_path, uri, "tests").run_id == run_id
    assert stored()[0].info.run_id == run_id
    stored.client.restore_run(late[1])
    stored.client.log_param(late[1], "somebody", "else's")
    sync(tmp_path)
    assert stored.client.get_run(late[1]).info.lifecycle_stage == "active"


def test_the_status_follows_the_journal(tmp_path, begin, uri, stored):
    for status in ("FINISHED", "FAILED", "KILLED", "SCHEDULED"):
        with Journal(tmp_path) as journal:
            begin(journal)
            journal.event("status", status=status, reason=None)
        sync(tmp_path, uri, "tests")
        assert stored()[0].info.status == status
    with RunLock(tmp_path), Journal(tmp_path) as journal:
        begin(journal)
        sync(tmp_path)
        assert stored()[0].info.status == "RUNNING"
    sync(tmp_path)
    assert stored()[0].info.status == "FAILED"


def test_no_secret_reaches_disk_or_mlflow(tmp_path, begin, uri, stored):
    with Journal(tmp_path) as journal:
        begin(journal, config={"track.uri": "http://me:hidden@host"}, tags={"command": "x track.uri=http://me:hidden@host"})
    assert Shipper(tmp_path, "http://me:hidden@127.0.0.1:1", "tests").close(0) is False
    with pytest.raises(UsageError) as caught:
        sync(tmp_path, "http://me:hidden@127.0.0.1:1", "tests")
    assert "http://***@127.0.0.1:1: " in str(caught.value)
    sync(tmp_path, uri, "tests")
    run, _ = stored()
    assert run.data.params["track.uri"] == "http://***@host"
    kept = [path.read_text(errors="ignore") for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".db"]
    assert "hidden" not in str(caught.value) + str(run.data) + "".join(kept)


def test_sync_without_an_address_goes_where_the_training_went(tmp_path, begin, uri, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_dir = tmp_path / "runs" / "one"
    run_dir.mkdir(parents=True)
    with Journal(run_dir) as journal:
        begin(journal, config={"track.uri": uri, "track.experiment": "from-config"})
        first = sync(run_dir)
        assert (first.uri, first.experiment) == (uri, "from-config")
        second = sync(run_dir, experiment="elsewhere")
        assert second.run_id != first.run_id
        assert sync(run_dir).experiment == "elsewhere"
        Cursor("http://***@127.0.0.1:1", "saved").save(run_dir)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hidden@127.0.0.1:1")
        with pytest.raises(UsageError, match=r"^http://\*\*\*@127.0.0.1:1: .*sync again$"):
            sync(run_dir)
        assert Cursor.load(run_dir).experiment == "saved"


def test_an_address_that_fails_leaves_the_cursor_and_another_one_leaves_the_runs_home(tmp_path, begin, uri, stored, template):
    with Journal(tmp_path) as journal:
        begin(journal)
        train(journal, range(5))
    home = sync(tmp_path, uri, "tests")
    before = Cursor.load(tmp_path)
    with pytest.raises(UsageError, match="check the address"):
        sync(tmp_path, "http://me:hidden@127.0.0.1:1")
    assert Cursor.load(tmp_path) == before
    shutil.copy(template, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert [sync(tmp_path, other).points for _ in range(2)] == [10, 0]
    with Journal(tmp_path) as journal:
        train(journal, range(5, 6))
    again = sync(tmp_path)
    assert (again.uri, again.run_id, again.points) == (uri, home.run_id, 2)
    assert sync(tmp_path, other).points == 2
    assert stored()[1] == once(["train/loss", "perf/images_per_s"], range(6))
    assert "hidden" not in "".join(path.read_text() for path in tmp_path.glob("*.json"))


def test_a_run_that_got_nowhere_is_at_home_where_it_first_arrives(tmp_path, begin, uri):
    with Journal(tmp_path) as journal:
        begin(journal)
        shipper = Shipper(tmp_path, "http://127.0.0.1:1", "tests")
        shipper.start()
        shipper.close(0)
        shipper._thread.join()
    assert Cursor.load(tmp_path).uri == "http://127.0.0.1:1"
    found = sync(tmp_path, uri)
    assert found.experiment == "tests"
    assert sync(tmp_path).uri == uri


def test_what_cant_be_synced_is_told_in_one_line(tmp_path, begin, uri):
    with pytest.raises(UsageError, match=r"can't read journal.jsonl: No such file"):
        sync(tmp_path, uri)
    with Journal(tmp_path) as journal:
        with pytest.raises(UsageError, match="died before it began"):
            sync(tmp_path, uri)
        begin(journal)
        journal.event("status", status="FINISHED")
    with pytest.raises(ConfigError, match="'nowhere' is not a tracking address"):
        sync(tmp_path, "nowhere")


def test_two_do_not_ship_the_same_run_at_once(tmp_path, begin, uri, warned):
    with Journal(tmp_path) as journal:
        begin(journal)
        shipper = Shipper(tmp_path, uri, "tests")
        shipper.start()
        second = Shipper(tmp_path, uri, "tests")
        while shipper.run_id is None:
            journal.event("log", text="wait")
        with pytest.raises(UsageError, match=f"pid {os.getpid()} on .* is bringing this run into MLflow"):
            sync(tmp_path, uri, "tests")
        second.start()
        assert "is bringing this run into MLflow" in warned.get(timeout=PATIENT_S)
        assert shipper.close(PATIENT_S)
        assert second.close(PATIENT_S)
        assert "is back" in warned.get(timeout=PATIENT_S)
        assert second.run_id == shipper.run_id


def test_a_server_that_accepts_and_never_answers_holds_up_nobody(tmp_path, begin, warned):
    with socket.create_server(("127.0.0.1", 0)) as server, Journal(tmp_path) as journal:
        begin(journal)
        shipper = Shipper(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}", "tests")
        shipper.start()
        caller, _ = server.accept()  # the shipper is in its first request now, and stays in it
        train(journal, range(100))
        assert shipper.close(0.1, pytest.fail) is False
        caller.close()
    assert warned.get(timeout=PATIENT_S).startswith("tracking: http://127.0.0.1:")
    shipper._thread.join()
    assert shipper.run_id is None
    assert warned.empty()


def test_a_server_that_is_waited_for_at_the_end_is_told_of(tmp_path, begin, monkeypatch):
    monkeypatch.setattr(shipping, "_SILENT_S", 0.05)
    told = []
    with socket.create_server(("127.0.0.1", 0)) as server, Journal(tmp_path) as journal:
        begin(journal)
        shipper = Shipper(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}", "tests")
        shipper.start()
        caller, _ = server.accept()
        assert shipper.close(0.1, lambda: told.append("slow")) is False
        caller.close()
    shipper._thread.join()
    assert told == ["slow"]


def test_a_file_that_cant_be_stored_holds_up_nothing_else_and_sync_tries_it_again(tmp_path, begin, uri, stored, warned):
    from mlflow.artifacts import list_artifacts

    (tmp_path / "mlartifacts").touch()  # not a folder
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    with Journal(tmp_path) as journal:
        begin(journal)
        shipper = Shipper(tmp_path, uri, "tests")
        shipper.start()
        for name in ("a.txt", "b.txt"):
            journal.event("artifact", path=name, artifact_path="config")
        train(journal, range(5))
        journal.event("status", status="FINISHED", reason="")
        assert shipper.close(PATIENT_S) is False
    assert "does not take a.txt (" in warned.get(timeout=PATIENT_S)
    assert warned.empty()
    run, counts = stored()
    assert run.info.status == "FINISHED"
    assert counts == once(["train/loss", "perf/images_per_s"], range(5))
    assert [line.split()[0] for line in run.data.tags["tracking.failed"].splitlines()] == ["a.txt", "b.txt"]
    with pytest.raises(
        UsageError, match=r"2 of the run's files not stored, the rest is: a.txt \(.*; mend that and sync again$"
    ):
        sync(tmp_path)
    (tmp_path / "mlartifacts").unlink()
    sync(tmp_path)
    run, _ = stored()
    assert "tracking.failed" not in run.data.tags
    found = list_artifacts(run_id=run.info.run_id, artifact_path="config", tracking_uri=uri)
    assert [file.path for file in found] == ["config/a.txt", "config/b.txt"]


def test_a_store_that_has_lost_the_run_gets_all_of_it_again(tmp_path, begin, uri, stored, template):
    with Journal(tmp_path) as journal:
        begin(journal)
        train(journal, range(5))
        journal.event("status", status="FINISHED", reason="")
    first = sync(tmp_path, uri, "tests")
    shutil.copy(template, tmp_path / "mlflow.db")
    again = sync(tmp_path)
    assert again.points == 10 and again.run_id != first.run_id
    run, counts = stored()
    assert (run.info.run_id, run.info.status) == (again.run_id, "FINISHED")
    assert counts == once(["train/loss", "perf/images_per_s"], range(5))
    stored.client.set_tag(again.run_id, "run.uid", "somebody else")
    assert sync(tmp_path).points == 10
    assert stored()[0].info.run_id != again.run_id


def test_a_run_deleted_in_mlflow_is_told_with_the_remedy(tmp_path, begin, uri, stored):
    with Journal(tmp_path) as journal:
        begin(journal)
    run_id = sync(tmp_path, uri, "tests").run_id
    stored.client.delete_run(run_id)
    with pytest.raises(UsageError, match=f"is deleted in .*; bring it back with `mlflow runs restore --run-id {run_id}`$"):
        sync(tmp_path)
    stored.client.restore_run(run_id)
    assert sync(tmp_path).run_id == run_id


def test_a_store_that_is_down_is_told_once_and_gets_all_when_it_is_back(tmp_path, begin, uri, stored, warned):
    database = tmp_path / "mlflow.db"
    hidden = database.rename(tmp_path / "hidden.db")
    database.mkdir()
    with Journal(tmp_path) as journal:
        begin(journal)
        shipper = Shipper(tmp_path, uri + "?timeout=1", "tests")
        shipper.start()
        train(journal, range(10))
        first = warned.get(timeout=PATIENT_S)
        assert "training goes on and the journal keeps everything" in first
        assert "\n" not in first
        database.rmdir()
        hidden.rename(database)
        assert "is back" in warned.get(timeout=PATIENT_S)
        train(journal, range(10, 20))
        assert shipper.close(PATIENT_S)
    assert warned.empty()
    assert stored()[1] == once(["train/loss", "perf/images_per_s"], range(20))


def test_closing_one_never_started_ships_nothing(tmp_path):
    assert Shipper(tmp_path, "http://127.0.0.1:1", "tests").close(PATIENT_S) is False
    assert list(tmp_path.iterdir()) == []


def test_what_a_training_warned_of_is_a_tag_cut_to_what_mlflow_takes(tmp_path, begin, uri, stored):
    with Journal(tmp_path) as journal:
        begin(journal)
        journal.event("warning", step=7, text="images/s fell " + "x" * 9000)
    sync(tmp_path, uri, "tests")
    assert stored()[0].data.tags["warning.step_7"] == ("images/s fell " + "x" * 9000)[:8000]


def test_the_reason_of_an_earlier_status_goes_with_it(tmp_path, begin, uri, stored):
    for status, reason in (("FAILED", "no room " + "x" * 9000), ("FINISHED", None)):
        with Journal(tmp_path) as journal:
            begin(journal)
            journal.event("status", status=status, reason=reason)
        sync(tmp_path, uri, "tests")
        assert stored()[0].data.tags.get("status.reason") == (reason and reason[:8000])


def test_nothing_connects_to_a_sqlite_database_on_a_network_disk(tmp_path, begin, uri, monkeypatch):
    def refuse(address):
        raise ConfigError(f"{address} lies on a network file system")

    monkeypatch.setattr(tracker, "refuse_network_disk", refuse)
    with Journal(tmp_path) as journal:
        begin(journal)
    for act in (lambda: sync(tmp_path, uri, "tests"), lambda: reap(uri, 0), lambda: places(uri, []), lambda: Store(uri)):
        with pytest.raises(ConfigError, match="lies on a network file system"):
            act()


def test_reading_waits_for_who_makes_the_database(tmp_path, uri):
    lock = FileLock(tmp_path / "mlflow.db.lock")
    lock.acquire(wait=True)
    reader = threading.Thread(target=connect, args=(uri,))
    reader.start()
    reader.join(0.5)
    waited = reader.is_alive()
    lock.release()
    reader.join(PATIENT_S)
    assert waited and not reader.is_alive()


def test_names_that_mlflow_does_not_take_are_mapped_and_keep_no_run_out(tmp_path, begin, uri, stored):
    with Journal(tmp_path) as journal:
        begin(journal, tags={"foo@bar": "1", "": "2", "x" * 300: "3", "half": "\ud800\0"}, config={"a#b": "\ud800"})
        train(journal, range(3))
    assert sync(tmp_path, uri, "tests").points == 6
    run, _ = stored()
    assert run.data.tags["foo_bar"] == "1" and run.data.tags["_"] == "2" and run.data.tags["x" * 250] == "3"
    assert run.data.tags["half"] == "??" and run.data.params["a_b"] == "?"


def test_what_a_store_refuses_holds_up_nothing_behind_it(tmp_path, begin, uri, stored, warned, monkeypatch):
    monkeypatch.setattr("pipeline.track.mapping._NOT_ALLOWED", re.compile("nothing"))
    dataset = {"digest": "d", "context": "training", "source": "here", "images": 1, "classes": 1}
    sets = [dataset | {"name": name} for name in ("good", "x" * 600, "fine")]
    with Journal(tmp_path) as journal:
        begin(journal, tags={"foo@bar": "1", "good": "1"}, config={"bad@": 1, "fine": 2}, datasets=sets)
        for step in range(30):
            journal.metrics(step, {"train/loss": 1.0, **({"odd@": 2.0} if step == 7 else {})})
        journal.event("status", status="FINISHED", reason="")
    assert [sync(tmp_path, uri, "tests").points for _ in range(2)] == [31, 0]  # which is done, with exit code 0
    run, counts = stored()
    assert run.info.status == "FINISHED"
    assert run.data.tags["good"] == "1" and run.data.params == {"fine": "2", "plan.total_steps": "50"}
    assert counts == once(["train/loss"], range(30))
    assert [found.dataset.name for found in run.inputs.dataset_inputs] == ["good", "fine"]
    named = ["param bad@", "tag foo@bar", "data set " + "x" * 291, "metric odd@"]
    assert [line.split(" (")[0] for line in run.data.tags["tracking.failed"].splitlines()] == named
    said = [warned.get(timeout=PATIENT_S) for _ in named]
    assert warned.empty()
    assert all(f" refuses {what}: " in text and "\n" not in text for what, text in zip(named, said, strict=True))
    (tmp_path / "mlflow.json").unlink()
    sync(tmp_path, uri, "tests")
    assert stored()[1] == counts


def test_a_run_deleted_in_the_middle_of_a_training_loses_nothing(tmp_path, begin, uri, stored, warned):
    with Journal(tmp_path) as journal:
        begin(journal)
        shipper = Shipper(tmp_path, uri, "tests")
        shipper.start()
        train(journal, range(5))
        until(lambda: shipper._delivery.cursor.offset == journal.path.stat().st_size)
        stored.client.delete_run(shipper.run_id)
        train(journal, range(5, 10))
        assert "must be in the 'active' state" in warned.get(timeout=PATIENT_S)
        stored.client.restore_run(shipper.run_id)
        assert shipper.close(PATIENT_S)
    assert stored()[1] == once(["train/loss", "perf/images_per_s"], range(10))
    assert "tracking.failed" not in stored()[0].data.tags


WRONG_LINES = [
    b"\0\0\0\n",
    b'{"t": 1, "kind": "metrics", "step": "7", "values": {}}\n',
    b'{"t": 1, "kind": "metrics", "step": 99999999999999999999, "values": {"train/loss": 1}}\n',
    b'{"t": 1e300, "kind": "metrics", "step": 3, "values": {"train/loss": 1}}\n',
    b'{"t": -5, "kind": "metrics", "step": 3, "values": {"train/loss": 1}}\n',
    b'{"t": 1, "kind": "metrics", "step": 3, "values": {"train/loss": [1]}}\n',
    b'{"t": 1, "kind": "status", "status": "DONE"}\n',
    b'{"t": 1, "kind": "run", "uid": "a1", "name": "x", "config": {}, "plan": {}, "tags": {}, "datasets": [{"name": 7}]}\n',
    b'{"t": 1, "kind": "run", "uid": "\' OR 1", "name": "x", "config": {}, "plan": {}, "tags": {}}\n',
    b'{"t": 1, "kind": "artifact", "path": 7}\n',
    b'{"t": 1, "kind": "artifact", "path": "../../../../etc/passwd"}\n',
    b'{"t": 1, "kind": "artifact", "path": "/etc/passwd"}\n',
    b'{"t": 1, "kind": "model", "path": "m", "register": {"x": 1}}\n',
    b'{"t": 1, "kind": "warning", "step": null}\n',
    b'{"t": 1, "kind": "log", "text": "' + b"x" * (5 << 20) + b'"}\n',
]


@pytest.mark.parametrize("line", WRONG_LINES, ids=range(len(WRONG_LINES)))
def test_a_wrong_line_costs_a_warning_and_nothing_behind_it(tmp_path, begin, uri, stored, line, caplog):
    with Journal(tmp_path) as journal:
        begin(journal)
        train(journal, range(3))
        with journal.path.open("ab") as file:
            file.write(line)
        train(journal, range(3, 6))
        journal.event("status", status="FINISHED", reason="")
    assert sync(tmp_path, uri, "tests").points == 12
    assert sync(tmp_path).points == 0
    run, counts = stored()
    assert (run.info.status, counts) == ("FINISHED", once(["train/loss", "perf/images_per_s"], range(6)))
    (message,) = caplog.messages
    assert message.startswith(f"{journal.path}: the line that ends at byte ") and len(message) < 400


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")], ids=["fifo", "dir", "zero"])
@pytest.mark.parametrize("name", ["journal.jsonl", "mlflow.json"])
def test_what_is_no_file_is_named_in_one_line(tmp_path, begin, uri, name, make, caplog):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    if name == "mlflow.json":
        with Journal(run_dir) as journal:
            begin(journal)
    make(run_dir / name)
    problem = r"(not a regular file|Is a directory)"
    if name == "journal.jsonl":
        for act in (lambda path: sync(path, uri), Journal, read_run, read_journal):
            with pytest.raises(UsageError, match=problem) as caught:
                act(run_dir)
            assert "\n" not in str(caught.value)
    elif make is os.mkdir:
        with pytest.raises(UsageError, match=r"mlflow.json: can't write: Is a directory; make room, or remove it$"):
            sync(run_dir, uri)
        shipper = Shipper(run_dir, uri, "tests")
        shipper.start()  # which raises nothing into the training
        assert shipper.close(0) is False
    else:
        assert sync(run_dir, uri).points == 0
        assert "damaged and taken for missing" in caplog.messages[0]
        assert sync(run_dir).uri == uri


def test_a_store_that_drips_its_answer_is_warned_of_and_holds_up_no_end(tmp_path, begin, warned, monkeypatch):
    monkeypatch.setattr(shipping, "_SLOW_S", 0.3)
    monkeypatch.setattr(shipping, "_POLL_S", 0.1)
    with Dripping() as server, Journal(tmp_path) as journal:
        begin(journal)
        shipper = Shipper(tmp_path, server.uri, "tests")
        shipper.start()
        assert "no whole answer for 0 s; training goes on" in warned.get(timeout=PATIENT_S)
        assert shipper.lost
        began = time.monotonic()
        assert shipper.close(1.0) is False
        assert time.monotonic() - began < 1.5
    shipper._thread.join(PATIENT_S)
    assert not shipper._thread.is_alive()


def test_sync_gives_a_store_up_that_drips_its_answer(tmp_path, begin, monkeypatch):
    monkeypatch.setattr(shipping, "_SLOW_S", 0.3)
    monkeypatch.setattr(shipping, "_POLL_S", 0.1)
    with Dripping() as server, Journal(tmp_path) as journal:
        begin(journal)
        with pytest.raises(UsageError, match=r"no whole answer for 0 s; check the address \(track.uri\) and sync again$"):
            sync(tmp_path, server.uri)


ENDS = """
import sys
from pathlib import Path
from pipeline.track.journal import Journal
from pipeline.track.shipper import Shipper
journal = Journal(Path(sys.argv[1]))
journal.event("run", uid="a1", name="demo", config={}, plan={}, tags={}, resumed_from_step=None)
shipper = Shipper(Path(sys.argv[1]), sys.argv[2], "tests")
shipper.start()
sys.stdin.readline()
print(shipper.close(1.0), flush=True)
"""


def test_a_process_whose_store_drips_its_answer_ends(tmp_path, child):
    with Dripping() as server:
        process = child(ENDS, tmp_path, server.uri)
        assert server.asked.wait(PATIENT_S)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "False\n"
        assert process.wait(10) == 0
