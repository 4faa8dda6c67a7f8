"""The training processes of one node, under torchrun's elastic agent: started, restarted, signalled, and their outcome."""

import json
import logging
import math
import os
import shlex
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsSpecs, Std
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from launch import network, worker
from launch.early import NOTHING_RAN
from pipeline import cpus
from pipeline.errors import Stopped, TransientError
from pipeline.track.identity import TAGS, typed
from pipeline.train import failure
from pipeline.train.preemption import SIGNALS

_REQUEUE = Stopped.exit_code


@dataclass(frozen=True)
class Group:
    """Who trains together: `min_nodes` to `max_nodes` nodes of `nproc` processes that meet at `endpoint` (HOST:PORT)."""

    nproc: int
    min_nodes: int = 1
    max_nodes: int = 1
    endpoint: str = ""
    is_host: bool | None = None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    max_restarts: int = 0
    join_timeout_s: float = 600
    logs: Path | None = None
    run_dir: Path | None = None


def processes(wanted: int | None) -> int:
    """Return how many processes a node runs: as asked, else one for each GPU, else one."""
    return wanted or max(1, torch.cuda.device_count())


def run(group: Group, arguments: Sequence[str]) -> int:
    """Run `python -m pipeline train ARGUMENTS` in this node's processes until they end for good.

    Signals go on to every process. Returns 0 (done), 75 (stopped on request), 2 (bad input), 70 (would fail again), or the
    code of the first process that failed once too often; one that a signal killed counts as 128 + signal, and 69 is
    trouble that may pass.

    Raises:
        UsageError: if the endpoint can't be used.
        TransientError: if the nodes don't come together within `join_timeout_s`.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the workers say what went wrong
    with tempfile.TemporaryDirectory(prefix="launch-") as folder, _signals(Path(folder)) as stopping:
        try:
            with _environment(group, Path(folder)) as address:
                _launch(group, address, arguments)
        except ChildFailedError as error:
            return _REQUEUE if stopping else _exit_code(error, group)
        except SignalException:
            print(NOTHING_RAN, file=sys.stderr, flush=True)
            return _REQUEUE
        except (RendezvousError, ConnectionError) as error:
            raise TransientError(
                f"{group.endpoint or 'localhost'}: the nodes did not come together: {_said(error)}; "
                "check that every node was started, with the same endpoint and number of nodes; "
                f"launch.join_timeout_s ({group.join_timeout_s:g}) is how long they are waited for"
            ) from error
        return _outcome(worker.outcomes(Path(folder)))


def _said(error: Exception) -> str:
    """Return an error's first line; torch's RendezvousTimeoutError has none, for which its name has to do."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _launch(group: Group, address: str | None, arguments: Sequence[str]) -> None:
    """Run the workers; the first node at the endpoint's address is its host, and others on the same machine are not.

    Raises:
        ConnectionError: if the host does not answer within the time to join.
    """
    here = group.max_nodes > 1 and group.is_host is None and network.is_here(group.endpoint)
    for is_host in (True, False) if here else (bool(group.is_host),):
        if group.max_nodes > 1 and not is_host:  # torch waits for it too, but in C++, where no signal is acted on
            network.await_answer(group.endpoint, group.join_timeout_s)
        try:
            elastic_launch(_config(group, address, is_host), sys.executable)("-u", "-P", "-m", "launch.worker", *arguments)
        except RendezvousConnectionError:
            if not (here and is_host):
                raise
        else:
            return


def _config(group: Group, address: str | None, is_host: bool) -> LaunchConfig:
    configs: dict[str, object] = {"join_timeout": math.ceil(group.join_timeout_s)}
    if group.max_nodes > 1:  # torch would compare host names, which several addresses may have
        configs["is_host"] = is_host
    return LaunchConfig(
        min_nodes=group.min_nodes,
        max_nodes=group.max_nodes,
        nproc_per_node=group.nproc,
        run_id=group.run_id,
        rdzv_backend="c10d",
        rdzv_endpoint=group.endpoint or "localhost:0",
        rdzv_configs=configs,
        max_restarts=group.max_restarts,
        local_addr=address,
        logs_specs=_logs(group.logs),
        log_line_prefix_template="[${rank}] ",
        signals_to_handle="SIGQUIT",  # the others are forwarded: the agent must not act on them before the workers have
    )


def _logs(folder: Path | None) -> LogsSpecs:
    if folder is None:
        return DefaultLogsSpecs()
    folder.mkdir(parents=True, exist_ok=True)
    return DefaultLogsSpecs(log_dir=str(folder), tee=Std.ALL)


@contextmanager
def _environment(group: Group, folder: Path) -> Iterator[str | None]:
    """Set what the workers inherit; yield this node's address among several nodes."""
    address = None
    if group.max_nodes > 1:
        address = network.own_address(group.endpoint)
        # Without it gloo asks for the host's name, which on many hosts means the loopback interface.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", network.interface_of(address))
    # Else the workers of a restart share a store with those before them, and find the addresses of the dead in it.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpus.available() // group.nproc)))
    os.environ[worker.FOLDER], os.environ[worker.AGENT] = str(folder), str(os.getpid())
    tags = json.loads(os.environ.get(TAGS, "{}"))
    os.environ[TAGS] = json.dumps({"command": shlex.join(typed(sys.argv))} | tags)  # a job knows what submitted it
    # The workers import what this process does, wherever they are started; `-P` keeps the working directory out.
    code = str(Path(__file__).resolve().parents[1])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = code + (os.pathsep + before if before else "")
    try:
        yield address
    finally:
        os.environ.pop(worker.FOLDER)
        os.environ.pop(worker.AGENT)
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@contextmanager
def _signals(folder: Path) -> Iterator[list[int]]:
    """Pass signals on to the workers for the time of the `with` block; yield the list of those that came.

    They are ignored from then on: one that comes when the outcome is known must not change the exit code.
    """
    came: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        workers = worker.ask_to_stop(folder)
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if not workers and not worker.outcomes(folder):  # waiting for the other nodes, at first or again: nothing to save
            raise SignalException("stopped while there were no workers", signal.Signals(number))

    for number in SIGNALS:
        signal.signal(number, forward)
    try:
        yield came
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _outcome(codes: Sequence[int]) -> int:
    """Return what the processes that ended for good have in common: a failure before a stop before success."""
    return next((code for code in (*failure.FOR_GOOD, _REQUEUE) if code in codes), 0)


def _exit_code(error: ChildFailedError, group: Group) -> int:
    """Return the code of the process that is the reason; one that died of a signal counts as 128 + signal, as in a shell.

    That is one which would fail again, here or (`run_dir`) on another node; then the first that did not merely lose its peers.
    """
    failures = sorted(error.failures.values(), key=lambda found: found.timestamp)
    codes = [found.exitcode if found.exitcode >= 0 else 128 - found.exitcode for found in failures]
    elsewhere = failure.for_good(group.run_dir, group.run_id) if group.run_dir else None
    known = [*codes, *([elsewhere.code] if elsewhere else [])]
    reasons = [*(code for code in failure.FOR_GOOD if code in known), *(c for c in codes if c != TransientError.exit_code)]
    return reasons[0] if reasons else TransientError.exit_code
