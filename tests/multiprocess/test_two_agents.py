"""Two nodes on one host, each with an elastic agent of its own: what happens to one while the other is done already."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

SHORT = ("train.epochs=20st", "schedule.warmup=5st", "train.checkpoint_every=10st", "eval.every=20st", "dist.timeout_s=60")


@dataclass
class Nodes:
    """Two nodes of two processes that train together in `run_dir`."""

    command: list[str]
    run_dir: Path
    agents: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self) -> None:
        for _ in range(2):
            self.agents.append(
                subprocess.Popen(
                    self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
                )
            )

    def journal(self) -> str:
        try:
            return (self.run_dir / "journal.jsonl").read_text()
        except OSError:
            return ""

    def until(self, met: Callable[[], bool]) -> None:
        while not met():
            assert all(agent.poll() is None for agent in self.agents), self.outcome()
            time.sleep(0.005)

    def outcome(self) -> tuple[list[int], str]:
        """Wait for the end; return the agents' exit codes, and what they said."""
        said = [agent.communicate(timeout=120)[0] for agent in self.agents]
        return [agent.returncode for agent in self.agents], "\n".join(said)


@pytest.fixture
def nodes(trainer: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    run_dir = tmp_path / "run"
    more = getattr(request, "param", ())
    command = trainer.command(*SHORT, f"run.dir={run_dir}", "launch.max_restarts=2", "track.model=true", *more)
    training = command[command.index("train") + 1 :]
    how = ["--nnodes=2", "--nproc-per-node=2", f"--rdzv-endpoint={endpoint}"]
    found = Nodes([sys.executable, "-m", "launch", "torchrun", *training, *how], run_dir)
    found.start()
    trainer.started += found.agents
    yield found


def test_a_request_to_stop_that_comes_when_all_is_done_changes_nothing(nodes: Nodes) -> None:
    nodes.until(lambda: '"FINISHED"' in nodes.journal())
    while any(agent.poll() is None for agent in nodes.agents):
        for agent in nodes.agents:
            agent.send_signal(signal.SIGUSR2)
        time.sleep(0.02)
    codes, said = nodes.outcome()
    assert codes == [0, 0], said
    assert nodes.journal().count('"FINISHED"') == 1


def test_rank_0_killed_while_it_writes_the_results_comes_back(nodes: Nodes) -> None:
    nodes.until(lambda: "model.safetensors" in nodes.journal())
    holder = re.search(r"\d+", (nodes.run_dir / "run.lock").read_text())
    assert holder
    os.kill(int(holder[0]), signal.SIGKILL)
    codes, said = nodes.outcome()
    assert codes == [0, 0], said
    statuses = [line["status"] for line in map(json.loads, nodes.journal().splitlines()) if line["kind"] == "status"]
    assert statuses[-1] == "FINISHED"


def listens(agent: subprocess.Popen[str]) -> bool:
    return any(one.status == psutil.CONN_LISTEN for one in psutil.Process(agent.pid).net_connections())


def workers(agent: subprocess.Popen[str]) -> list[psutil.Process]:
    return [one for one in psutil.Process(agent.pid).children() if alive(one)]


def alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def until(met: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not met():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.mark.parametrize("nodes", [["train.epochs=100000st"]], indirect=True)
def test_a_killed_agent_takes_its_workers_along_and_the_other_one_can_be_stopped(nodes: Nodes) -> None:
    nodes.until(lambda: '"metrics"' in nodes.journal())
    left, gone = sorted(nodes.agents, key=lambda agent: not listens(agent))  # the node with the endpoint must stay
    theirs = workers(gone)
    assert len(theirs) == len(workers(left)) == 2
    gone.kill()
    until(lambda: not any(map(alive, theirs)), "the killed agent's workers train on")
    until(lambda: not workers(left), "the other node's workers did not notice")
    left.send_signal(signal.SIGTERM)  # it waits for the other node again
    assert left.wait(timeout=60) == 75
