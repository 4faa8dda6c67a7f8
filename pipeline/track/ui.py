"""MLflow's web interface on the store of some runs: started on this machine only, on a free port, with the right link."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from urllib.parse import quote

from pipeline.errors import PipelineError, UsageError
from pipeline.redact import redact
from pipeline.track.tracker import connect
from pipeline.track.uri import refuse_network_disk, sqlite_path

HOST = "127.0.0.1"
_PATIENCE_S = 120  # the first start on a new database takes seven seconds on two idle cores
_PAUSE_S = 0.1


def link(base: str, experiments: Sequence[str], runs: Sequence[str]) -> str:
    """Return the address of a page: two or more runs side by side, one run, an experiment's runs, or the start."""
    base = base.rstrip("/")
    if len(runs) > 1:
        named = "&".join(f"{key}={quote(json.dumps(list(ids)))}" for key, ids in (("runs", runs), ("experiments", experiments)))
        return f"{base}/#/compare-runs?{named}"
    if not experiments:
        return f"{base}/#/experiments"
    page = f"{base}/#/experiments/{experiments[0]}/runs"
    return f"{page}/{runs[0]}" if runs else f"{page}?workflowType=machine_learning"


def places(uri: str, run_ids: Sequence[str]) -> list[str]:
    """Return the ids of the experiments that hold the runs; without runs, that of the last updated experiment.

    Raises:
        UsageError: if the store can't be read or has no such run.
        ConfigError: if it is a sqlite database on a network file system.
    """
    try:
        client = connect(uri)
        if run_ids:
            return list(dict.fromkeys(str(client.get_run(run_id).info.experiment_id) for run_id in run_ids))
        found = client.search_experiments(order_by=["last_update_time DESC"], max_results=1)
    except PipelineError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{redact(uri)}: {redact(reason)[:300]}; check the address (--uri)") from error
    return [str(e.experiment_id) for e in found]


def serve(uri: str, page: Callable[[str], str], say: Callable[[str], None], port: int | None = None) -> None:
    """Start MLflow's interface on a local store, tell the link once it answers, and stay until it is interrupted.

    Raises:
        UsageError: if there is no such database, the port is taken, or the server ends or does not answer.
        ConfigError: if it lies on a network file system.
    """
    refuse_network_disk(uri)
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        raise UsageError(f"{database}: no such database; train something first, or name a store with --uri or --root")
    if port is not None:
        _refuse_taken(port)
    base = f"http://{HOST}:{port or free_port()}"
    server = _start(uri, base.rpartition(":")[2])
    try:
        print("starting MLflow's interface, which takes some seconds ...", file=sys.stderr, flush=True)
        _wait(server, base)
        say(page(base))
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()


def _start(uri: str, port: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", port, "--workers", "1"]
    # By the environment: a command line can be read by everybody on the machine, and an address may hold a password.
    settings = {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | settings)


def free_port() -> int:
    """Return a port that nobody listens on at the moment."""
    with socket.create_server((HOST, 0)) as found:
        return int(found.getsockname()[1])


def _refuse_taken(port: int) -> None:
    """Refuse a port on which another server would answer in the place of the one that can't start there."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise UsageError(
            f"--port {port}: can't listen there: {os.strerror(error.errno or 0)}; choose another or none"
        ) from error


def _wait(server: subprocess.Popen[bytes], base: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(_PAUSE_S)
    raise UsageError(f"{base}: MLflow's server did not start; try another --port, or `mlflow server` for its own words")
