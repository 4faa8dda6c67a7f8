"""A local tracking store whose makers are killed at random moments. `STORE_KILLS=100` kills 100 (`-s --timeout 3000`)."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from pipeline.track.journal import Journal
from pipeline.track.shipper import sync
from pipeline.track.store import revision

KILLS = int(os.environ.get("STORE_KILLS", "6"))
# Makes the first store itself, so that everything is imported and its time is known. Then it forks a process for each address
# that it reads; each further line has it wait for that process, whose id is nobody else's until then.
MAKERS = """
import os, sys, time
import mlflow.store.tracking.sqlalchemy_store
from pipeline.track.tracker import connect
connect(sys.argv[1] + "warm.db", make=True)
began = time.monotonic()
connect(sys.argv[1] + "timed.db", make=True)
print(time.monotonic() - began, flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        connect(line.strip(), make=True)
        os._exit(0)
    print(pid, flush=True)
    sys.stdin.readline()
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Makers:
    """Starts processes that make a store."""

    def __init__(self, process):
        self._process = process
        self.last_s = float(process.stdout.readline())

    def start(self, folder):
        return int(self._ask(f"sqlite:///{folder / 'mlflow.db'}"))

    def end(self):
        """Wait for the process and return its status."""
        return int(self._ask(""))

    def _ask(self, line):
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


@pytest.fixture
def makers(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", MAKERS, f"sqlite:///{tmp_path}/"], text=True, **pipes) as process:
        yield Makers(process)
        process.stdin.close()


def test_no_kill_leaves_a_store_that_cant_be_used(makers, tmp_path):
    moments = random.Random(0)
    folders = [tmp_path / str(kill) for kill in range(KILLS)]
    killed, broken = 0, []
    for folder in folders:
        pid = makers.start(folder)
        time.sleep(moments.uniform(0, makers.last_s))  # this moment is what is drawn
        os.kill(pid, signal.SIGKILL)
        killed += makers.end() != 0
    assert {revision(folder / "mlflow.db") for folder in folders} <= {None, revision(tmp_path / "warm.db")}
    for folder in folders if "STORE_KILLS" in os.environ else folders[:1]:
        makers.start(folder)
        if makers.end() != 0 or list(folder.glob("*.broken*")):
            broken.append(folder.name)
    print(f"{KILLS} makers, {killed} of them killed before they were done, {len(broken)} stores broken")
    assert broken == []
    run_dir = folders[0] / "run"
    run_dir.mkdir()
    with Journal(run_dir) as journal:
        journal.event("run", uid="a", name="a", config={}, plan={}, tags={}, resumed_from_step=None)
        journal.metrics(1, {"loss": 1.0})
    assert sync(run_dir, f"sqlite:///{folders[0] / 'mlflow.db'}", "tests").points == 1
    assert {path.name for path in folders[0].iterdir()} == {"mlflow.db", "mlflow.db.lock", "run"}
