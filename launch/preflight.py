"""Checks before a training: can this node, and each node of a job, do what the configuration asks for?

Quick and harmless: it reads, and writes small files beside the run.
"""

import json
import os
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import scontrol
from launch.snapshot import PATIENCE_S, Folder, write_json
from pipeline.config import Config
from pipeline.errors import PipelineError, TransientError, UsageError
from pipeline.findings import Finding
from pipeline.redact import redact
from pipeline.track.identity import versions
from pipeline.track.uri import sqlite_path, tracking_uri
from pipeline.units import seconds, size

_LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "ramfs")
_ENOUGH_BYTES = 5 * 2**30
CLOCKS_S = 5.0
_LOOKS = 5
_FAILED = "failed_nodes.json"


def run(cfg: Config, partition: str | None, nodes: int) -> list[Finding]:
    """Check this machine, and the cluster's settings if there is SLURM."""
    place = cfg.run.dir or cfg.run.root
    checks: list[Callable[[], Finding]] = [
        lambda: data(cfg),
        lambda: writable(place),
        lambda: shared(place, nodes),
        lambda: disk(place),
        gpus,
        lambda: tracker(cfg),
    ]
    found = [_guarded(check) for check in checks]
    return found + cluster(partition)


def cluster(partition: str | None) -> list[Finding]:
    """Check the cluster's settings, where there is a cluster."""
    if shutil.which("scontrol") is None:
        return [Finding("SLURM", "ok", "none here")]
    try:
        return requeueing(scontrol.config(), scontrol.partitions(), partition)
    except PipelineError as error:
        return [Finding("SLURM", "warning", str(error))]


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except (PipelineError, OSError, RuntimeError) as error:
        return Finding(getattr(check, "__name__", "check").strip("<>"), "failed", str(error).splitlines()[0])


def data(cfg: Config) -> Finding:
    """Check that this node sees the images."""
    if cfg.data.executor == "synthetic":
        return Finding("data", "ok", "synthetic")
    missing = [split for split in ("train", "val") if not (cfg.data.root and (cfg.data.root / split).is_dir())]
    if missing:
        return Finding(
            "data", "failed", f"{cfg.data.root}: no {' and no '.join(missing)} folder here; mount it, or set data.root"
        )
    return Finding("data", "ok", str(cfg.data.root))


def writable(place: Path) -> Finding:
    """Check that runs can be written."""
    above = existing(place)
    if not above.is_dir():
        return Finding("run directory", "failed", f"{above}: not a folder; choose another run.dir or run.root")
    if os.access(above, os.W_OK):
        return Finding("run directory", "ok", str(place))
    return Finding("run directory", "failed", f"{above}: not writable; choose another run.dir or run.root")


def existing(place: Path) -> Path:
    """Return a path, or the nearest folder above it that is there."""
    return next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())


def file_system(place: Path, mounts: str) -> str:
    """Return the type of the file system that a path is on, from the text of /proc/mounts."""
    rows = [line.split() for line in mounts.splitlines() if len(line.split()) > 2]
    path = existing(place).resolve()
    on = [(len(row[1]), row[2]) for row in rows if path.is_relative_to(row[1])]
    return max(on, default=(0, "unknown"))[1]


def shared(place: Path, nodes: int) -> Finding:
    """Check that runs lie where other nodes can see them."""
    kind = file_system(place, Path("/proc/mounts").read_text(encoding="utf-8"))
    if kind not in _LOCAL or nodes == 1:
        return Finding("file system", "ok", kind)
    said = f"{place} is on {kind}, which other nodes do not see; choose a run.root on NFS, Lustre or the like"
    return Finding("file system", "failed", said)


def disk(place: Path) -> Finding:
    """Check that there is room for checkpoints."""
    free = shutil.disk_usage(existing(place)).free
    if free >= _ENOUGH_BYTES:
        return Finding("disk", "ok", f"{size(free)} free")
    return Finding("disk", "warning", f"{place}: only {size(free)} free; a run keeps three checkpoints and more")


def gpus() -> Finding:
    """Check that each GPU computes."""
    import torch

    for index in range(torch.cuda.device_count()):
        ones = torch.ones(1024, 1024, device=torch.device("cuda", index))
        if float((ones @ ones).sum()) != 1024.0**3:
            return Finding("GPUs", "failed", f"GPU {index} of {socket.gethostname()} returned wrong results; exclude this node")
    return Finding("GPUs", "ok", f"{torch.cuda.device_count()}")


def tracker(cfg: Config) -> Finding:
    """Check that the tracking server answers, or that its database can be written."""
    if not cfg.track.enabled:
        return Finding("tracker", "ok", "off")
    uri = tracking_uri(cfg.track, cfg.run.root)
    database = sqlite_path(uri)
    if database is not None:
        good = os.access(existing(database.parent), os.W_OK)
        return Finding("tracker", "ok" if good else "failed", f"{redact(uri)}{'' if good else ': not writable'}")
    if not uri.startswith("http"):
        return Finding("tracker", "ok", f"{redact(uri)} (not asked)")
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
            return Finding("tracker", "ok", redact(uri))
    except OSError as error:
        said = f"{redact(uri)}: {error}; training goes on without it, and `pipeline sync` brings the runs there later"
        return Finding("tracker", "warning", said)


def requeueing(config: Mapping[str, str], there: Mapping[str, Mapping[str, str]], partition: str | None) -> list[Finding]:
    """Check the cluster's settings that bring jobs back. Source: slurm.conf(5)."""
    found = []
    if config.get("JobRequeue") != "1":
        found.append(
            Finding(
                "JobRequeue", "warning", "0: SLURM itself does not requeue after a lost node; submit with --requeue (we do)"
            )
        )
    else:
        found.append(Finding("JobRequeue", "ok", "1"))
    mode = config.get("PreemptMode", "OFF")
    preempts = config.get("PreemptType", "").removeprefix("preempt/") not in ("", "none", "(null)")
    if preempts and "REQUEUE" not in mode:
        found.append(Finding("PreemptMode", "warning", f"{mode}: a preempted job does not come back; ask for REQUEUE"))
    if preempts and "preempt_send_user_signal" not in config.get("SlurmctldParameters", ""):
        said = "not set: a preemption comes as SIGTERM, with GraceTime to save"
        found.append(Finding("preempt_send_user_signal", "warning", said))
    for name, row in there.items():
        if partition in (None, name) and preempts and row.get("GraceTime") == "0":
            said = f"partition {name}: 0 s; a preempted job has KillWait ({config.get('KillWait', '?')}) to save"
            found.append(Finding("GraceTime", "warning", said))
    return found


def report(cfg: Config, folder: Path) -> None:
    """Write what this node of a job is like, for `compare` on the first one.

    The clock is read anew as long as writing takes so long that it could not be told from a clock that is wrong.

    Raises:
        UsageError: if this node does not see the run directory.
        TransientError: if it can't be written for a reason that may pass.
    """
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    about = {"node": node, "versions": versions(), "failed": unfit(cfg)}
    for _ in range(_LOOKS):
        start, took = time.time(), time.monotonic()
        # Beside the reports first: `compare` takes what it finds, and sets its time against the file's own.
        write_json(folder / f".{node}.json", about | {"time": start}, PATIENCE_S)
        if time.monotonic() - took < CLOCKS_S / 2:
            break
    (folder / f".{node}.json").replace(folder / f"{node}.json")


def unfit(cfg: Config) -> list[str]:
    """Return why this node can't train, if it can't."""
    return [one.said for one in map(_guarded, (lambda: data(cfg), gpus)) if one.state == "failed"]


def compare(folder: Path, expected: int, patience_s: float) -> None:
    """Wait for every node's report and compare them.

    Raises:
        UsageError: naming the nodes that see no data, or have other versions.
        TransientError: naming the nodes that are missing or have another time.
    """
    deadline = time.monotonic() + patience_s
    while len(list(folder.glob("[!.]*.json"))) < expected and time.monotonic() < deadline:
        time.sleep(0.1)
    paths = sorted(folder.glob("[!.]*.json"))
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    # Nodes start at different times; the file server's clock dates all their files, so the differences from it compare.
    clocks = [one["time"] - path.stat().st_mtime for one, path in zip(reports, paths, strict=True)]
    if len(reports) < expected:
        there = ", ".join(one["node"] for one in reports)
        raise TransientError(
            f"{expected - len(reports)} of {expected} nodes did not report in {folder} within {patience_s:g} s (only {there}); "
            "is it shared? A node that is late is waited for with launch.join_timeout_s"
        )
    if bad := problems(reports, clocks):
        write_json(folder.parents[1] / _FAILED, sorted(bad), PATIENCE_S)
        named = "; ".join(f"node {node}: {said}" for node, said in bad.items())
        kind = UsageError if problems(reports, [0.0] * len(reports)) else TransientError  # clocks are set right by themselves
        raise kind(f"{named}; exclude them with python -m launch resubmit --exclude-failed RUN_DIR")
    (folder.parents[1] / _FAILED).unlink(missing_ok=True)  # of an earlier job, whose nodes may be fit again


def problems(reports: Sequence[Mapping[str, Any]], clocks: Sequence[float]) -> dict[str, str]:
    """Return what is wrong with which node, if their clocks show `clocks` at one moment; what most nodes have is right."""
    bad = {}
    kinds = [json.dumps(one["versions"], sort_keys=True) for one in reports]
    usual = max(kinds, key=kinds.count, default="")
    right = _usual(clocks)
    for one, kind, clock in zip(reports, kinds, clocks, strict=True):
        if one["failed"]:
            bad[one["node"]] = "; ".join(one["failed"])
        elif kind != usual:
            theirs, ours = json.loads(kind), json.loads(usual)
            other = [f"{name} {theirs.get(name)}, not {ours[name]}" for name in ours if theirs.get(name) != ours[name]]
            bad[one["node"]] = f"has {', '.join(other)}"
        elif not right <= clock <= right + CLOCKS_S:
            way = "ahead of" if clock > right else "behind"
            bad[one["node"]] = f"its clock is {seconds(abs(clock - right))} {way} the others'"
    return bad


def _usual(clocks: Sequence[float]) -> float:
    """Return the earliest of the largest group of clocks that agree; of equally large ones, that of the earlier group."""
    return max(sorted(clocks), key=lambda one: sum(one <= other <= one + CLOCKS_S for other in clocks), default=0.0)


def failed_nodes(folder: Folder) -> list[str]:
    """Return the nodes that the last job of a run found unfit."""
    try:
        return list(json.loads((folder.path / _FAILED).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []
