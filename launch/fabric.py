"""Preflight over all nodes at once, under srun or torchrun: what each finds, whether they agree, how fast they exchange."""

import os
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from launch import preflight
from pipeline.config import Config
from pipeline.findings import Finding, as_json
from pipeline.track.identity import new_uid, versions
from pipeline.units import count, size
from pipeline.world import World, join

_PROBE_BYTES = 64 * 2**20
_ROUNDS = 5
_LOOKS = 3


def run(cfg: Config, world: World, partition: str | None) -> list[Finding]:
    """Check this world's nodes; return what was found on all of them, the same on every rank.

    Raises:
        WorldError: if the processes can't form a group.
        PeerLost: if one of them does not come within `launch.join_timeout_s`, or goes.
    """
    with join(world, backend=cfg.dist.backend, timeout_s=cfg.launch.join_timeout_s) as joined:
        here = as_json(preflight.run(cfg, partition, 1)) if joined.is_main else None
        first: list[dict[str, Any]] = joined.from_main(here)
        reports = [one for one in joined.gather(_report(cfg, joined)) if one["local_rank"] == 0]
        return [*(Finding(**one) for one in first), *judge(reports), exchange(joined)]


def _report(cfg: Config, world: World) -> dict[str, Any]:
    """Return what this process's node is like; a collective."""
    place = preflight.existing(cfg.run.dir or cfg.run.root)
    mark = place / world.from_main(f".preflight-{new_uid()}")
    refused = world.from_main(_leave(mark) if world.is_main else "")
    seen = mark.exists()
    now = _clock(world)
    if world.is_main:
        mark.unlink(missing_ok=True)
    failed = preflight.unfit(cfg)
    if refused:
        failed.append(refused)
    elif not seen:
        failed.append(f"does not see {place} as the first node does; choose a run.root on a shared file system")
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    return {"node": node, "local_rank": world.local_rank, "time": now, "versions": versions(), "failed": failed}


def _clock(world: World) -> float:
    """Return the time at a moment that all processes share; a collective.

    It is read anew where they disagree: a process that stood still for a moment is no clock that is wrong.
    """
    for _ in range(_LOOKS):
        world.barrier()
        now = time.time()
        every = world.gather(now)
        if max(every) - min(every) <= preflight.CLOCKS_S:
            break
    return now


def _leave(mark: Path) -> str:
    """Leave a mark for the other nodes; return why that can't be done, or nothing."""
    try:
        mark.touch()
    except OSError as error:
        return f"{mark.parent}: can't write there: {error.strerror}; choose another run.dir or run.root"
    return ""


def judge(reports: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Compare the nodes: a finding for each that is unfit, or one that says that they agree."""
    clocks = [one["time"] for one in reports]
    bad = preflight.problems(reports, clocks)
    if bad:
        return [Finding(f"node {node}", "failed", said) for node, said in bad.items()]
    apart = max(clocks) - min(clocks)
    names = ", ".join(one["node"] for one in reports)
    said = f"{count(len(reports), 'node')} ({names}): the same versions, data and run directory; clocks within {apart:.1f} s"
    return [Finding("nodes", "ok", said)]


def exchange(world: World) -> Finding:
    """Measure the all-reduce of 64 MiB of fp32: its median time, and the bus bandwidth.

    The bus bandwidth is 2 (n - 1) / n of the bytes over the time, which no hardware exceeds whatever n is.
    Source: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
    """
    tensor = torch.zeros(_PROBE_BYTES // 4, device=world.device)
    took = []
    for _ in range(1 + _ROUNDS):
        world.barrier()
        start = time.perf_counter()
        float(world.sum_(tensor)[0])  # reading waits for the GPU
        took.append(time.perf_counter() - start)
    middle = statistics.median(took[1:])  # the first one makes the connections
    bus = 2 * (world.size - 1) / world.size * _PROBE_BYTES / middle
    said = f"{size(_PROBE_BYTES)} over {world.size} processes in {1e3 * middle:.1f} ms, bus bandwidth {bus / 1e9:.2f} GB/s"
    return Finding("all-reduce", "ok", said)
