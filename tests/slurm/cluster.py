"""A real SLURM on this machine, in a folder and on ports of its own: munged, slurmctld, and a slurmd for each node."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEEDS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
INSTALL = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge iproute2"
FAKE_GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
PATIENT_S = 180

CONFIG = """
ClusterName=tests
SlurmctldHost={host}({address})
SlurmctldPort={port}
FirstJobId={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
JobRequeue=1
KillWait=30
SlurmdTimeout=10
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=5 MaxTime=60
PartitionName=low Nodes=ALL PriorityTier=1 GraceTime=60 MaxTime=60
PartitionName=abrupt Nodes=ALL PriorityTier=1 GraceTime=0 MaxTime=60
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF MaxTime=60
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=8 Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket=8 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:4"
)


def missing() -> str:
    """Return why no cluster can be started here, and what would help; empty if it can."""
    if os.geteuid() != 0:
        return "a cluster of one's own needs root"
    absent = [name for name in NEEDS if shutil.which(name) is None]
    return f"{', '.join(absent)} not found; {INSTALL}" if absent else ""


def free_ports(n: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def until(met: Callable[[], Any], what: str, patience_s: float = PATIENT_S) -> Any:
    """Wait for a condition and return what it returned."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := met():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {patience_s:g} s for {what}")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Network:
    """A host for each node: network namespaces on one bridge, each with an address, a host name and cables of its own."""

    names: tuple[str, ...]
    own: str = field(default_factory=lambda: f"n{os.getpid()}")

    def address(self, name: str = "") -> str:
        """The address of a node, or of this machine."""
        return f"10.78.0.{self.names.index(name) + 1 if name else 254}"

    def _space(self, name: str) -> str:
        return f"{self.own}-{name}"

    def start(self) -> None:
        ip("link", "add", self.own, "type", "bridge")
        ip("addr", "add", f"{self.address()}/24", "dev", self.own)
        ip("link", "set", self.own, "up")
        known = "".join(f"{self.address(name)} {name}\n" for name in self.names)
        for number, name in enumerate(self.names):
            space = self._space(name)
            ip("netns", "add", space)
            etc = Path("/etc/netns") / space  # `ip netns exec` lays it over /etc
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address()} {socket.gethostname()}\n{known}")
            ip("link", "add", f"{self.own}v{number}", "type", "veth", "peer", "name", "cable", "netns", space)
            ip("link", "set", f"{self.own}v{number}", "master", self.own, "up")
            ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "cable")
            ip("-n", space, "link", "set", "cable", "up")
            ip("-n", space, "link", "set", "lo", "up")

    def inside(self, name: str, *command: str) -> list[str]:
        """The command that runs `command` on a node."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
        return ["ip", "netns", "exec", self._space(name), *named, *command]

    def cable(self, name: str, state: str) -> None:
        """Pull a node's cable (`down`), or plug it in again (`up`)."""
        ip("link", "set", f"{self.own}v{self.names.index(name)}", state)

    def remove(self) -> None:
        for name in self.names:
            space = self._space(name)
            found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
            for pid in found.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            subprocess.run(["ip", "netns", "del", space], check=False)
            shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)
        subprocess.run(["ip", "link", "del", self.own], check=False)


@dataclass
class Cluster:
    """Two nodes on this host, or on hosts of their own where there is a network."""

    folder: Path
    names: tuple[str, ...] = ("node1", "node2")
    env: dict[str, str] = field(default_factory=dict)
    network: Network | None = None

    def start(self) -> None:
        self._munge()
        ctld, *ports = free_ports(1 + len(self.names))
        host = socket.gethostname().split(".")[0]
        here = self.network.address() if self.network else "127.0.0.1"
        nodes = "\n".join(
            NODE.format(name=name, host=name, address=self.network.address(name), port=port)
            if self.network
            else NODE.format(name=name, host=host, address=here, port=port)
            for name, port in zip(self.names, ports, strict=True)
        )
        self._configure(CONFIG.format(host=host, address=here, port=ctld, folder=self.folder, nodes=nodes))
        self._run("slurmctld", "-f", str(self.folder / "slurm.conf"))
        for name in self.names:
            self.start_node(name)
        until(self._idle, "the nodes to be idle")

    def _munge(self) -> None:
        self.folder.chmod(0o755)
        key = self.folder / "munge"
        key.mkdir(mode=0o700)
        (key / "key").write_bytes(os.urandom(128))
        (key / "key").chmod(0o400)
        paths = [
            f"--{k}={key / v}"
            for k, v in (("key-file", "key"), ("log-file", "log"), ("pid-file", "pid"), ("seed-file", "seed"))
        ]
        self._run("munged", "--force", f"--socket={self.folder / 'munge.socket'}", *paths)

    def _configure(self, text: str) -> None:
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={path}\n" for path in FAKE_GPUS))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start_node(self, name: str) -> None:
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        command = ["slurmd", "-N", name, "-f", str(self.folder / "slurm.conf")]
        self._run(*(self.network.inside(name, *command) if self.network else command))

    def kill_node(self, name: str) -> None:
        """Kill a node's daemon and all that it runs at once."""
        doomed = [int((self.folder / f"slurmd-{name}.pid").read_text())]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                environment = (path.parent / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if {f"SLURMD_NODENAME={name}".encode(), f"SLURM_CONF={self.env['SLURM_CONF']}".encode()} <= set(environment):
                doomed.append(int(path.parent.name))
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | self.env, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)

    def _idle(self) -> bool:
        return self.ask("sinfo", "-h", "-p", "main", "-o", "%D %T").split() == [str(len(self.names)), "idle"]

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | self.env, check=False)
        return done.stdout if done.returncode == 0 else ""

    def job(self, job_id: str) -> dict[str, str]:
        lines = self.ask("scontrol", "show", "job", "-o", job_id).splitlines()
        return dict(part.partition("=")[::2] for part in lines[0].split()) if lines else {"JobState": "GONE"}

    def wait(self, job_id: str, *states: str, patience_s: float = PATIENT_S) -> dict[str, str]:
        """Wait until a job is in one of the states."""

        def met() -> dict[str, str] | None:
            found = self.job(job_id)
            return found if found["JobState"] in states else None

        try:
            return until(met, f"job {job_id} to be {' or '.join(states)}", patience_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.job(job_id)}") from None

    def launch(self, *arguments: object, expect: int = 0) -> str:
        """Run `python -m launch` and return what it prints."""
        command = [sys.executable, "-m", "launch", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | self.env, check=False)
        assert done.returncode == expect, (done.stdout, done.stderr)
        return done.stdout if expect == 0 else done.stderr

    def clear(self) -> None:
        """Cancel everything and wait for an empty queue."""
        self.ask("scancel", "--user=root")
        until(lambda: not self.ask("squeue", "-h"), "an empty queue")

    def stop(self) -> None:
        self.ask("scancel", "--user=root")
        try:
            until(lambda: not self.ask("squeue", "-h"), "an empty queue", 40)
        finally:
            for pid_file in (*self.folder.glob("slurmd-*.pid"), self.folder / "slurmctld.pid", self.folder / "munge" / "pid"):
                stop(pid_file)


def stop(pid_file: Path) -> None:
    """End a daemon and wait until it is gone."""
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, 15)
    except (OSError, ValueError):
        return
    until(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in status(pid), f"{pid_file.stem} to end", 20)


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"


def journal(run_dir: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


TRAINING = (
    "data.resolution=16", "eval.resize=18", "eval.crop=16",
    "model.name=resnet", "model.block=basic", "model.n_blocks=[1, 1]",
    "model.n_channels=[8, 16]", "model.first_kernel_size=3", "batch.global=32", "batch.micro=8", "eval.batch=64",
    "data.threads=1", "train.precision=fp64", "train.epochs=160st", "schedule.warmup=20st",
    "train.checkpoint_every=50st", "eval.every=160st",
    "train.log_every=1", "dist.timeout_s=60", "track.drain_s=30", "track.model=false", "track.pictures=false",
)  # fmt: skip


@dataclass
class Training:
    """A submitted training and what became of it."""

    cluster: Cluster
    name: str
    run_dir: Path
    job_id: str

    @classmethod
    def submit(cls, cluster: Cluster, digits: Path, shared: Path, name: str, more: tuple[str, ...]) -> "Training":
        run_dir = shared / "runs" / name
        overrides = (
            *TRAINING,
            f"run.dir={run_dir}",
            f"run.name={name}",
            f"data.root={digits}",
            f"track.uri=sqlite:///{shared}/mlflow.db",
        )
        shape = () if "--nodes" in more else ("--nodes", "2", "--gpus-per-node", "2", "--time", "30")
        found = json.loads(cluster.launch("slurm", "configs/base.yaml", *overrides, *shape, *more, "--json"))
        assert found["run_dir"] == str(run_dir)
        return cls(cluster, name, run_dir, found["job"])

    def step(self) -> int:
        return max((line["step"] for line in journal(self.run_dir) if line["kind"] == "metrics"), default=0)

    def reaches(self, step: int) -> None:
        self.until(lambda: self.step() >= step, f"step {step}")

    def until(self, met: Callable[[], Any], what: str, patience_s: float = PATIENT_S) -> Any:
        try:
            return until(met, what, patience_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.cluster.job(self.job_id)}\n{self.log()}") from None

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted((self.run_dir / "launch" / "jobs").glob("*.out")))

    def statuses(self) -> list[tuple[str, str]]:
        return [(line["status"], line.get("reason") or "") for line in journal(self.run_dir) if line["kind"] == "status"]

    def requeues(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in (self.run_dir / "launch" / "requeues.jsonl").read_text().splitlines()]
        except OSError:
            return []

    def resumed(self) -> list[int]:
        """The steps at which starts went on."""
        return [line["resumed_from_step"] for line in journal(self.run_dir) if line["kind"] == "run"][1:]

    def finished(self, patience_s: float = 240) -> None:
        """Wait for the end of the training and of its job."""
        self.until(lambda: ("FINISHED", "") in self.statuses(), f"{self.name} to finish", patience_s)
        self.until(lambda: self.cluster.job(self.job_id)["JobState"] == "COMPLETED", f"job {self.job_id} to be completed")

    def pids(self, module: str) -> list[int]:
        """The processes of this training that run a module."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if module in words and any(str(self.run_dir) in word for word in words):
                found.append(int(path.parent.name))
        return found
