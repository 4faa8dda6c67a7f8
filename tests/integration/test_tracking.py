"""The journal's way into MLflow with real servers, real processes and real kills."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.track.cursor import Cursor
from pipeline.track.journal import Journal, read
from pipeline.track.shipper import Shipper, sync

PATIENT_S = 120


class Server:
    """A real `mlflow server` on a port that the system chose once and that it comes back on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = found.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.directory / 'server.db'}"]
        artifacts = ["--artifacts-destination", str(self.directory / "stored")]
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *place],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.directory,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )

    def wait(self) -> None:
        """Return once the server answers."""
        deadline = time.monotonic() + PATIENT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self.directory / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("server"))
    found.start()
    yield found
    found.kill()


def begin(journal, uid):
    journal.event("run", uid=uid, name=uid, config={"a": 1}, plan={"total_steps": 9}, tags={}, resumed_from_step=None)


def until(condition):
    """Wait for a condition of another thread or process."""
    deadline = time.monotonic() + PATIENT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met"
        time.sleep(0.05)


def held(uri, uid):
    """Return the one run with a uid and how often each (metric, step) is stored."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    place = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([place.experiment_id], f"tags.`run.uid` = '{uid}'")
    points = [point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)]
    return run, Counter((point.key, point.step) for point in points)


FIRST_USE = """
import sys
from pathlib import Path
from pipeline.track.journal import Journal
from pipeline.track.shipper import sync
run_dir, uid = Path(sys.argv[1]), sys.argv[2]
run_dir.mkdir()
with Journal(run_dir) as journal:
    journal.event("run", uid=uid, name=uid, config={"a": 1}, plan={"total_steps": 9}, tags={}, resumed_from_step=None)
    journal.metrics(1, {"loss": 1.0})
print("ready", flush=True)
sys.stdin.readline()
sync(run_dir, sys.argv[3], "tests")
"""


def test_two_processes_that_first_use_a_fresh_database_both_get_in(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [
        subprocess.Popen([sys.executable, "-c", FIRST_USE, str(tmp_path / uid), uid, uri], **pipes) for uid in ("one", "two")
    ]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert [text for pair in told for text in pair] == [""] * 4  # nor has MLflow chattered
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        experiments = database.execute("SELECT name FROM experiments WHERE name = 'tests'").fetchall()
        points = database.execute("SELECT name, key, step FROM runs JOIN metrics USING (run_uuid) ORDER BY name").fetchall()
    assert experiments == [("tests",)]
    assert points == [("one", "loss", 1), ("two", "loss", 1)]


def test_a_server_killed_and_restarted_has_each_step_once(server, tmp_path, caplog):
    server.wait()
    (tmp_path / "weights.bin").write_bytes(os.urandom(100_000))
    with Journal(tmp_path) as journal:
        begin(journal, "killed-server")
        shipper = Shipper(tmp_path, server.uri, "tests")
        shipper.start()
        for step in range(200):
            journal.metrics(step, {"loss": 1.0, "accuracy": 0.5})
        until(lambda: (Cursor.load(tmp_path) or Cursor("", "")).offset > 0)
        server.kill()
        for step in range(200, 400):
            journal.metrics(step, {"loss": 1.0, "accuracy": 0.5})
        until(lambda: "training goes on and the journal keeps everything" in caplog.text)
        server.start()
        for step in range(400, 600):
            journal.metrics(step, {"loss": 1.0, "accuracy": 0.5})
        journal.event("artifact", path="weights.bin", artifact_path="model")
        journal.event("status", status="FINISHED", reason=None)
        server.wait()
        assert shipper.close(PATIENT_S)
    assert "is back" in caplog.text
    assert len([r for r in caplog.records if r.name == "pipeline.track.shipper"]) == 2
    run, counts = held(server.uri, "killed-server")
    assert run.info.status == "FINISHED"
    assert counts == {(key, step): 1 for key in ("loss", "accuracy") for step in range(600)}
    (stored,) = server.directory.joinpath("stored").rglob("model/weights.bin")
    assert stored.read_bytes() == (tmp_path / "weights.bin").read_bytes()


TRAIN = """
import sys
from itertools import count
from pathlib import Path
from pipeline.track.journal import Journal
from pipeline.track.lock import RunLock
from pipeline.track.shipper import Shipper
run_dir, first, last = Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
RunLock(run_dir).acquire()
journal = Journal(run_dir)
fields = {"config": {"a": 1}, "plan": {"total_steps": 9}, "tags": {}, "resumed_from_step": first or None}
journal.event("run", uid="killed-trainer", name="killed-trainer", **fields)
shipper = Shipper(run_dir, sys.argv[2], "tests")
shipper.start()
for step in range(first, last) if last else count(first):
    journal.metrics(step, {"loss": 1.0})
    if not last:
        sys.stdin.read(1)
journal.event("status", status="FINISHED", reason=None)
print(shipper.close(120))
"""


def test_a_trainer_killed_and_restarted_leaves_one_run_with_each_step_once(server, tmp_path):
    server.wait()
    command = [sys.executable, "-c", TRAIN, str(tmp_path), server.uri]
    with subprocess.Popen([*command, "0", "0"], stdin=subprocess.PIPE, text=True) as trainer:
        trainer.stdin.write("." * 200)
        trainer.stdin.flush()
        until(lambda: "loss" in (Cursor.load(tmp_path) or Cursor("", "")).high_water)
        trainer.stdin.write("." * 200)  # some of these are on their way when it is killed
        trainer.stdin.flush()
        until(lambda: sum(record["kind"] == "metrics" for record, _ in read(tmp_path / "journal.jsonl")) > 300)
        trainer.kill()
    assert held(server.uri, "killed-trainer")[0].info.status == "RUNNING"
    sync(tmp_path)
    assert held(server.uri, "killed-trainer")[0].info.status == "FAILED"
    done = subprocess.run([*command, "100", "500"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
    run, counts = held(server.uri, "killed-trainer")
    assert run.info.status == "FINISHED"
    assert run.data.tags["resumed_from_step"] == "100"
    assert counts == {("loss", step): 1 for step in range(500)}


class Proxy(ThreadingHTTPServer):
    """Stands before a server and passes on what it gets; `create` does what a test wants with requests for a new run."""

    def __init__(self, server, create):
        super().__init__(("127.0.0.1", 0), Passer)
        self.behind, self.create, self.asked = server.uri, create, []
        self.uri = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Passer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(*self.forward())

    def do_POST(self):
        if not self.path.endswith("/runs/create"):
            self.answer(*self.forward())
        else:
            self.server.asked.append(None)
            with suppress(ConnectionError):
                self.server.create(self, len(self.server.asked))

    do_PATCH = do_DELETE = do_PUT = do_GET

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {key: value for key, value in self.headers.items() if key not in ("Host", "Content-Length")}
        request = urllib.request.Request(self.server.behind + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=PATIENT_S) as found:
                return found.status, found.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_run_whose_creation_had_no_answer_is_found_again(server, tmp_path):
    server.wait()

    def create(request, number):
        found = request.forward()
        if number > 1:
            request.answer(*found)

    with Proxy(server, create) as proxy, Journal(tmp_path) as journal:
        begin(journal, "unanswered")
        shipper = Shipper(tmp_path, proxy.uri, "tests")
        shipper.start()
        for step in range(10):
            journal.metrics(step, {"loss": 1.0})
        assert shipper.close(PATIENT_S)
        assert len(proxy.asked) == 1
    assert held(server.uri, "unanswered")[1] == {("loss", step): 1 for step in range(10)}


def test_a_run_that_is_made_after_its_successor_is_removed(server, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    server.wait()
    client = MlflowClient(tracking_uri=server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    answered = threading.Event()

    def create(request, number):
        if number == 1:
            answered.wait(PATIENT_S)  # long after its time is over
        request.answer(*request.forward())
        if number == 2:
            answered.set()

    def runs():
        place = client.get_experiment_by_name("tests")
        return client.search_runs([place.experiment_id], "tags.`run.uid` = 'late'") if place else []

    with Proxy(server, create) as proxy, Journal(tmp_path) as journal:
        begin(journal, "late")
        shipper = Shipper(tmp_path, proxy.uri, "tests")
        shipper.start()
        for step in range(10):
            journal.metrics(step, {"loss": 1.0})
        until(lambda: len(runs()) == 2)
        assert shipper.close(PATIENT_S)
        assert len(proxy.asked) == 2
    run, counts = held(server.uri, "late")
    assert run.info.run_id == shipper.run_id
    assert counts == {("loss", step): 1 for step in range(10)}
