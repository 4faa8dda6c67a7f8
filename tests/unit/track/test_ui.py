import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from urllib.parse import parse_qs, unquote

import pytest

from pipeline.errors import UsageError
from pipeline.track import commands, ui
from pipeline.track.cursor import Cursor
from pipeline.track.journal import Journal
from pipeline.track.runs import list_runs
from pipeline.track.shipper import sync


def test_links():
    assert ui.link("http://h:1/", ["3"], []) == "http://h:1/#/experiments/3/runs?workflowType=machine_learning"
    assert ui.link("http://h:1", ["3"], ["r"]) == "http://h:1/#/experiments/3/runs/r"
    assert ui.link("http://h:1", [], []) == "http://h:1/#/experiments"
    query = parse_qs(ui.link("http://h:1", ["3", "4"], ["r", "s"]).partition("?")[2])
    assert {key: json.loads(unquote(values[0])) for key, values in query.items()} == {
        "runs": ["r", "s"],
        "experiments": ["3", "4"],
    }


def test_the_interface_of_a_store_answers_on_this_machine_only_and_ends_with_ctrl_c(tmp_path, begin, uri):
    with Journal(tmp_path) as journal:
        begin(journal)
    run_id = sync(tmp_path, uri, "tests").run_id
    command = [sys.executable, "-m", "pipeline", "ui", "demo", "--root", str(tmp_path), "--uri", uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as interface:
        try:
            link = interface.stdout.readline().strip()
            base, _, page = link.partition("/#/")
            assert base.startswith("http://127.0.0.1:") and page.endswith(f"/runs/{run_id}")
            with urllib.request.urlopen(f"{base}/ajax-api/2.0/mlflow/runs/get?run_id={run_id}", timeout=60) as answer:
                assert json.load(answer)["run"]["info"]["run_name"] == "demo"
            os.killpg(interface.pid, signal.SIGINT)
            assert interface.wait(60) == 0
        finally:
            if interface.poll() is None:
                os.killpg(interface.pid, signal.SIGKILL)


def test_what_cant_be_opened(tmp_path, uri):
    with pytest.raises(UsageError, match="no such database; train something first"):
        ui.serve(f"sqlite:///{tmp_path / 'nothing.db'}", str, print)
    with (
        socket.create_server((ui.HOST, 0)) as other,
        pytest.raises(UsageError, match=r"--port \d+: can't listen there: Address already in use; choose another"),
    ):
        ui.serve(uri, str, print, other.getsockname()[1])
    with pytest.raises(UsageError, match="check the address"):
        ui.places(uri, ["nobody"])


def test_runs_are_opened_in_the_store_that_they_are_in(tmp_path, begin):
    for name, server, run_id in (("a", "http://one", "r1"), ("b", "http://one", "r2"), ("c", "http://two", "r3")):
        (tmp_path / name).mkdir()
        with Journal(tmp_path / name) as journal:
            begin(journal, uid=name)
        Cursor(server, "e", run_id).save(tmp_path / name)
    runs = list_runs(tmp_path)
    assert commands._own_store(["r1", "r2"], runs) == "http://one"
    assert commands._own_store(["r1", "r3"], runs) is None and commands._own_store([], runs) is None
