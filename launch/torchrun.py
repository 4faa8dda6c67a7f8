"""Training processes on several nodes without a scheduler, each node started by hand with the same command.

Not here: what the processes do, and SLURM.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import agent
from pipeline.config import Config, load
from pipeline.errors import UsageError


@dataclass(frozen=True)
class Meeting:
    """How the nodes find each other, as on the command line."""

    nnodes: str = "1"
    nproc_per_node: int | None = None
    rdzv_endpoint: str | None = None
    rdzv_id: str = "train"


def run(config: str, overrides: Sequence[str], meeting: Meeting) -> int:
    """Run this node's part; return the exit code (see `agent.run`).

    Raises:
        UsageError: if the nodes could not meet, or would not find the same run directory.
    """
    return agent.run(group(load(Path(config), overrides), meeting), [config, *overrides])


def group(cfg: Config, meeting: Meeting) -> agent.Group:
    """Return who trains together.

    Raises:
        UsageError: naming the option that is missing or wrong.
    """
    found = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", meeting.nnodes)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if least > most:
        raise UsageError(f"--nnodes: {meeting.nnodes!r} is neither a number nor MIN:MAX; write 2 or 2:4")
    if most > 1 and meeting.rdzv_endpoint is None:
        raise UsageError("--rdzv-endpoint: missing; give HOST:PORT of one of the nodes, the same on all")
    if cfg.run.dir is None and (most > 1 or cfg.launch.max_restarts):
        raise UsageError("run.dir: not set; give one that every node sees: after a restart the training goes on from there")
    return agent.Group(
        nproc=agent.processes(meeting.nproc_per_node),
        min_nodes=least,
        max_nodes=most,
        endpoint=meeting.rdzv_endpoint or "",
        run_id=meeting.rdzv_id,
        max_restarts=cfg.launch.max_restarts,
    )
