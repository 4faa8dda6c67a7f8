"""`python -m launch torchrun` on two hosts: network namespaces joined by a cable that can be cut."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(400)
STEPS = ("train.epochs=160st", "schedule.warmup=20st", "train.checkpoint_every=50st", "eval.every=160st", "train.log_every=1")
HOW = ("train.precision=fp64", "data.threads=1", "launch.max_restarts=3")


def ip(*words: str) -> None:
    sys.modules["cluster"].ip(*words)


@dataclass
class Hosts:
    """Two namespaces with the addresses 10.77.0.1 and 10.77.0.2 at the ends of one cable."""

    names: tuple[str, str]
    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path) -> "Hosts":
        found = cls((f"left{os.getpid()}", f"right{os.getpid()}"), folder)
        for name in found.names:
            ip("netns", "add", name)
        left, right = found.names
        ip("link", "add", "cable", "netns", left, "type", "veth", "peer", "name", "cable", "netns", right)
        for number, name in enumerate(found.names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        return found

    def cut(self) -> None:
        ip("-n", self.names[1], "link", "set", "cable", "down")

    def inside(self, host: int) -> list[int]:
        """The processes on one host."""
        command = ["ip", "netns", "pids", self.names[host]]
        return [int(p) for p in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]

    def start(self, host: int, arguments: list[str]) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", self.names[host], sys.executable, "-u", *arguments]
        with self.log(host).open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, text=True, start_new_session=True)
        self.started.append(process)
        return process

    def log(self, host: int) -> Path:
        return self.folder / f"host{host}.log"

    def remove(self) -> None:
        for host, name in enumerate(self.names):
            for pid in self.inside(host):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ip("netns", "del", name)
        for process in self.started:
            process.wait()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    assert os.geteuid() == 0 and shutil.which("ip"), "needs root and iproute2"
    found = Hosts.make(tmp_path)
    yield found
    found.remove()


@dataclass
class Both:
    """The same training started on both hosts, one process each."""

    hosts: Hosts
    run_dir: Path
    command: list[str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @classmethod
    def start(cls, hosts: Hosts, trainer: Any, run_dir: Path, nnodes: str, *more: str, now: tuple[int, ...] = (0, 1)) -> "Both":
        _, _, _, _, *words = trainer.command(*STEPS, *HOW, *more, f"run.dir={run_dir}")
        place = ["--nnodes", nnodes, "--nproc-per-node", "1", "--rdzv-endpoint", "10.77.0.1:29411"]
        found = cls(hosts, run_dir, ["-m", "launch", "torchrun", *words, *place])
        for host in now:
            found.join(host)
        return found

    def join(self, host: int) -> None:
        self.processes.append(self.hosts.start(host, self.command))

    def step(self) -> int:
        try:
            text = (self.run_dir / "journal.jsonl").read_text()
        except OSError:
            return 0
        return max((int(n) for n in re.findall(r'"step": (\d+)', text)), default=0)

    def workers(self, host: int) -> list[int]:
        """The training processes on one host."""
        inside = subprocess.run(
            ["ip", "netns", "pids", self.hosts.names[host]], capture_output=True, text=True, check=True
        ).stdout
        return [int(p) for p in inside.split() if b"launch.worker" in Path(f"/proc/{p}/cmdline").read_bytes().split(b"\0")]

    def log(self) -> str:
        return "\n".join(f"host {n}: {self.hosts.log(n).read_text()}" for n in range(len(self.processes)))


def until(met: Any, what: str, both: Both) -> None:
    try:
        sys.modules["cluster"].until(met, what, 200)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{both.log()}") from None


def assert_same(a: Path, b: Path) -> None:
    """The same weights up to rounding: the number of processes changes what is added up first."""
    one, other = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert one.keys() == other.keys()
    far = {
        name: float((one[name] - other[name]).abs().max() / one[name].abs().max()) for name in one if "num_batches" not in name
    }
    assert max(far.values()) <= 1e-6, far


@pytest.fixture(scope="module")
def calm_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calm") / "run"


@pytest.fixture
def calm(trainer: Any, calm_run: Path) -> Path:
    """A training in one process: it learns what two hosts do."""
    if not calm_run.exists():
        trainer.run(*STEPS, *HOW, f"run.dir={calm_run}")
    return calm_run


def test_a_killed_worker_on_either_host(hosts: Hosts, trainer: Any, calm: Path, tmp_path: Path) -> None:
    both = Both.start(hosts, trainer, tmp_path / "run", "2")
    until(lambda: both.step() >= 60, "step 60", both)
    os.kill(both.workers(1)[0], signal.SIGKILL)
    until(lambda: all(p.poll() is not None for p in both.processes), "the end", both)
    assert [p.returncode for p in both.processes] == [0, 0], both.log()
    assert_same(tmp_path / "run", calm)


def test_a_killed_agent_leaves_the_other_host_to_go_on(hosts: Hosts, trainer: Any, calm: Path, tmp_path: Path) -> None:
    both = Both.start(hosts, trainer, tmp_path / "run", "1:2")
    until(lambda: both.step() >= 60, "step 60", both)
    for pid in hosts.inside(1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: both.processes[0].poll() is not None, "the other host to end", both)
    assert both.processes[0].returncode == 0, both.log()
    assert_same(tmp_path / "run", calm)


def test_a_cut_cable_names_who_is_silent(hosts: Hosts, trainer: Any, calm: Path, tmp_path: Path) -> None:
    both = Both.start(hosts, trainer, tmp_path / "run", "1:2", "dist.timeout_s=10")
    until(lambda: both.step() >= 60, "step 60", both)
    hosts.cut()
    until(lambda: both.processes[0].poll() is not None, "the host with the meeting point to end", both)
    assert both.processes[0].returncode == 0, both.log()
    said = both.log()
    assert re.search(r"error: rank \d \(host .*\) answered no more|lost the others and can't reach 10\.77\.0\.1", said), said
    assert_same(tmp_path / "run", calm)


def test_a_host_that_comes_later_is_taken_in(hosts: Hosts, trainer: Any, calm: Path, tmp_path: Path) -> None:
    both = Both.start(hosts, trainer, tmp_path / "run", "1:2", now=(0,))
    until(lambda: both.step() >= 20, "step 20", both)
    (worker,) = both.workers(0)
    os.kill(worker, signal.SIGSTOP)  # it would be done before the other host is there
    both.join(1)
    until(lambda: pending(worker, signal.SIGTERM), "the agent to make room for the other host", both)
    os.kill(worker, signal.SIGCONT)
    until(lambda: all(p.poll() is not None for p in both.processes), "the end", both)
    assert [p.returncode for p in both.processes] == [0, 0], both.log()
    assert "on 1 x cpu" in both.log() and "on 2 x cpu" in both.log()
    starts = [
        line for line in map(json.loads, (both.run_dir / "journal.jsonl").read_text().splitlines()) if line["kind"] == "run"
    ]
    assert starts[0]["resumed_from_step"] is None and starts[1]["resumed_from_step"] >= 20
    assert_same(tmp_path / "run", calm)


def pending(pid: int, number: signal.Signals) -> bool:
    """Whether a process has yet to take notice of a signal. Source: proc(5), ShdPnd."""
    (mask,) = re.findall(r"^ShdPnd:\s+(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return bool(int(mask, 16) >> (number - 1) & 1)
