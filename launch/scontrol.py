"""Questions and requests to SLURM, through its own commands; it needs no accounting (`sacct`).

It imports no torch, so that it is quick.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import TransientError, UsageError
from pipeline.retry import retry

_TIMEOUT_S = 60
BUSY_S = 600.0
"""Seconds that a job waits for a busy controller: a requeue must not be lost to a restart of it, which takes minutes."""
_REFUSED = re.compile(r"(?i)invalid|denied|not permitted|unrecognized|unknown|no such|not found|disabled|violates|already done")
"""What the controller answers where another try would be refused too. Source: slurm/src/common/slurm_errno.c"""
T = TypeVar("T")
ALIVE = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


@dataclass(frozen=True)
class Job:
    """What SLURM says of a job: GONE is one that it has forgotten."""

    job_id: str
    state: str = "GONE"
    reason: str = ""
    nodes: str = ""
    restarts: int = 0

    @property
    def alive(self) -> bool:
        """Whether it waits, runs or is about to do so again."""
        return self.state in ALIVE

    def cancelled(self, restart: int) -> bool:
        """Whether it ends for good on request, asked from within its start number `restart`.

        As long as its processes run, a job that ends is COMPLETING, whatever ends it: a requeue has been counted by
        then, and a time limit is named.
        """
        ending = self.state == "COMPLETING" and self.restarts == restart and self.reason != "TimeLimit"
        return self.state == "CANCELLED" or ending


def need_slurm() -> None:
    """Check that SLURM's commands are here.

    Raises:
        UsageError: if they are not.
    """
    missing = [name for name in ("sbatch", "srun", "scontrol", "scancel") if shutil.which(name) is None]
    if missing:
        raise UsageError(
            f"no SLURM on this machine ({', '.join(missing)} not found); submit from a login node, "
            "or train here with python -m launch local"
        )


def call(*command: str) -> str:
    """Return what a SLURM command prints.

    Raises:
        UsageError: with its own words, if it is refused, or is not here.
        TransientError: if the controller does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise TransientError(f"{command[0]}: no answer within {_TIMEOUT_S} s; is the controller (slurmctld) up?") from error
    except OSError as error:
        raise UsageError(f"{command[0]}: {error}; is SLURM installed here?") from error
    if done.returncode != 0:
        said = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip()) or "no reason given"
        kind = UsageError if _REFUSED.search(said) else TransientError
        raise kind(f"{' '.join(command[:3])}: {said.split('; ')[-1]}")
    return done.stdout


def insist(work: Callable[[], T], wait_s: float = BUSY_S) -> T:
    """Return what `work` asks of SLURM; as long as the controller does not answer, ask again for `wait_s` seconds.

    Raises:
        PipelineError: as `call` does.
    """

    def warn(error: Exception) -> None:
        print(f"warning: {error}; trying for {wait_s:g} s", file=sys.stderr, flush=True)

    return retry(work, wait_s, lambda error: isinstance(error, TransientError), warn)


def fields(text: str) -> dict[str, str]:
    """Return the `Key=value` pairs of what scontrol prints on one line."""
    return dict(re.findall(r"(\S+?)=(\S*)", text))


def job(job_id: str) -> Job:
    """Return the state of a job; SLURM forgets one some minutes after its end (`MinJobAge`).

    No id is that of a submission which sbatch refused: it is gone, while scontrol would answer with any job there is.

    Raises:
        UsageError: if SLURM gives no answer.
    """
    if not job_id:
        return Job(job_id)
    try:
        text = call("scontrol", "show", "job", "--oneliner", job_id)
    except UsageError as error:
        if "Invalid job id" in str(error):
            return Job(job_id)
        raise
    # Of an array the first line is the array itself or its newest member.
    return _job(job_id, fields(text.splitlines()[0]))


def jobs(wanted: Collection[str]) -> dict[str, Job]:
    """Return the state of each job, as `job` does, with one question to the controller for all of them.

    Raises:
        PipelineError: as `call` does.
    """
    if len(set(wanted)) < 2:
        return {one: job(one) for one in wanted}
    known: dict[str, dict[str, str]] = {}
    for row in map(fields, call("scontrol", "show", "job", "--oneliner").splitlines()):
        for name in _names(row):
            known.setdefault(name, row)
    return {one: _job(one, known.get(one, {})) for one in wanted}


def _names(row: Mapping[str, str]) -> list[str]:
    """Return the ids of a job: its own, and as one or more members of an array, `ArrayTaskId=3` or `1-4,7%2`."""
    array, parts = row.get("ArrayJobId"), row.get("ArrayTaskId", "").partition("%")[0].split(",")
    found = [re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part) for part in parts]
    ranges = [range(int(one[1]), int(one[2] or one[1]) + 1, int(one[3] or 1)) for one in found if one]
    return [row.get("JobId", ""), *(f"{array}_{n}" for numbers in ranges for n in numbers), *([array] if array else [])]


def _job(job_id: str, found: Mapping[str, str]) -> Job:
    return Job(
        job_id,
        state=found.get("JobState", "GONE").split("+")[0],
        reason=found.get("Reason", "").replace("None", ""),
        nodes=found.get("NodeList", "").replace("(null)", ""),
        restarts=int(found.get("Restarts", "0")),
    )


def partitions() -> dict[str, dict[str, str]]:
    """Return what scontrol says of each partition."""
    rows = (fields(line) for line in call("scontrol", "show", "partition", "--oneliner").splitlines())
    return {row["PartitionName"]: row for row in rows if "PartitionName" in row}


def gpus(gres: str) -> int:
    """Return the number of GPUs in a node's `Gres=`: `gpu:4`, `gpu:a100:8(S:0-1)`, `(null)`."""
    return sum(int(n) for n in re.findall(r"gpu(?::[^:,(]+)*?:(\d+)", gres))


def nodes(partition: str) -> dict[str, dict[str, str]]:
    """Return what scontrol says of each node of a partition."""
    rows = (fields(line) for line in call("scontrol", "show", "node", "--oneliner").splitlines())
    return {row["NodeName"]: row for row in rows if partition in row.get("Partitions", "").split(",")}


def config() -> dict[str, str]:
    """Return the settings of the cluster, such as `JobRequeue`."""
    return {
        k.strip(): v.strip() for k, _, v in (line.partition("=") for line in call("scontrol", "show", "config").splitlines())
    }
