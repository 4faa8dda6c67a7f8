"""Training processes on several nodes without a scheduler, each node started by hand with the same command."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import agent
from pipeline.config import Config, check_world, load
from pipeline.errors import ConfigError, UsageError


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
        PipelineError: naming the option that is missing or wrong.
    """
    found = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", meeting.nnodes)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if least > most:
        raise UsageError(f"--nnodes: {meeting.nnodes!r} is neither a number nor MIN:MAX; write 2 or 2:4")
    if most > 1 and meeting.rdzv_endpoint is None:
        raise UsageError("--rdzv-endpoint: missing; give HOST:PORT of one of the nodes, the same on all")
    if cfg.run.dir is None and (most > 1 or cfg.launch.max_restarts):
        raise UsageError("run.dir: not set; give one that every node sees: after a restart the training goes on from there")
    nproc = agent.processes(meeting.nproc_per_node)
    _check_worlds(cfg, range(least, most + 1), nproc)
    return agent.Group(
        nproc=nproc,
        min_nodes=least,
        max_nodes=most,
        endpoint=meeting.rdzv_endpoint or "",
        run_id=meeting.rdzv_id,
        max_restarts=cfg.launch.max_restarts,
        join_timeout_s=cfg.launch.join_timeout_s,
        run_dir=cfg.run.dir,
    )


def _check_worlds(cfg: Config, nodes: Sequence[int], nproc: int) -> None:
    """Refuse numbers of nodes that can't share the batch: one that joins later would end a training that runs well.

    Raises:
        ConfigError: if there is but one number, and it can't.
        UsageError: if some of several can't, naming those that can.
    """
    if len(nodes) == 1:
        check_world(cfg, nodes[0] * nproc)
        return
    good = [n for n in nodes if _shares(cfg, n * nproc)]
    if len(good) < len(nodes):
        bad = ", ".join(str(n) for n in nodes if n not in good)
        can = f"of these only {', '.join(map(str, good))} can" if good else "none of these can"
        raise UsageError(
            f"--nnodes: {bad} nodes of {nproc} processes each can't share batch.global={cfg.batch.global_} in "
            f"micro-batches of {cfg.batch.micro}, {can}; give others, or change batch.global or batch.micro"
        )


def _shares(cfg: Config, size: int) -> bool:
    try:
        check_world(cfg, size)
    except ConfigError:
        return False
    return True
