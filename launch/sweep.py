"""Sweeps: one training for each combination of values, here or as a SLURM array, grouped under a parent run in MLflow."""

import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field

from launch import agent, parent, requeue, slurm, snapshot
from launch.job import Task
from launch.snapshot import Folder
from pipeline import cpus, units
from pipeline.config import Config, Kind, as_tree, flat, kind, load
from pipeline.errors import ConfigError, UsageError
from pipeline.files import read_bytes
from pipeline.track.identity import TAGS, new_uid
from pipeline.track.journal import JOURNAL
from pipeline.track.lock import RunLock
from pipeline.track.mapping import MEMBER, SWEEP
from pipeline.track.runs import read_run
from pipeline.train import rundir
from pipeline.train.children import Children

How = Literal["grid", "zip"]
_RANGE = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})")
_ARRAY = re.compile(r"([0-9,:-]+)(?:%([1-9][0-9]{0,8}))?")
_PART = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18})(?::([1-9][0-9]{0,17}))?)?")
_MOST = 1000


@dataclass(frozen=True)
class Sweep:
    """A sweep: the configuration, what varies in each member, and the folder that the members' directories are in."""

    name: str
    config: Path
    fixed: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    folder: Path
    naming: str = "--name"
    """What the user would change for another folder."""
    _known: dict[int, Config] = field(default_factory=dict, compare=False, repr=False)

    def cfg(self, index: int) -> Config:
        """Return a member's configuration.

        Raises:
            ConfigError: if it can't be used.
        """
        if index not in self._known:  # reading takes a while for a thousand members, and several ask for each
            own = (f"run.name={self.name}-{index}", f"run.dir={self.run_dir(index)}")
            self._known[index] = load(self.config, (*self.fixed, *self.members[index], *own))
        return self._known[index]

    def run_dir(self, index: int) -> Path:
        """Return a member's run directory."""
        return self.folder / f"{index:03d}"


def values(text: str) -> list[str]:
    """Return the values that `0.1,0.5`, `0..4` or a single value stands for; a list in brackets is one value.

    Raises:
        UsageError: for a range of too many numbers, or of none.
    """
    if found := _RANGE.fullmatch(text):
        numbers = range(int(found[1]), int(found[2]) + 1)
        _check_size(int(found[2]) - int(found[1]) + 1)  # before there is a list of them
        return [str(n) for n in numbers]
    return re.split(r",(?![^\[{]*[\]}])", text)


def _check_size(n: int) -> None:
    if not 0 < n <= _MOST:
        raise UsageError(f"{max(n, 0)} members; a sweep has 1 to {_MOST}")


def members(arguments: Sequence[str], how: How) -> tuple[tuple[str, ...], ...]:
    """Return the overrides of each member: every combination, or the first values, then the second ones, ... (`zip`).

    Raises:
        UsageError: for no override, too many members, or lists of different lengths to zip.
    """
    pairs = [argument.partition("=")[::2] for argument in arguments]
    if bad := [key for key, value in pairs if not key or not value]:
        raise UsageError(f"{bad[0]!r} is not an override; write key=value,value such as optim.lr=0.1,0.5 or seed=0..4")
    lists = [[f"{key}={value}" for value in values(text)] for key, text in pairs]
    long = [one for one in lists if len(one) > 1]
    if how == "zip":
        if len({len(one) for one in long}) > 1:
            raise UsageError(f"--zip: the lists have {', '.join(str(len(one)) for one in long)} values; give as many of each")
        n = len(long[0]) if long else 1
        lists = [one if len(one) > 1 else one * n for one in lists]
    _check_size(len(lists) and (len(lists[0]) if how == "zip" else math.prod(map(len, lists))))
    return tuple(zip(*lists, strict=True) if how == "zip" else itertools.product(*lists))


def listed(path: Path) -> tuple[tuple[str, ...], ...]:
    """Return the members that a YAML file lists: each a mapping of dotted keys, or a list of `key=value`.

    Raises:
        ConfigError: if the file is no such list.
    """
    try:
        rows = yaml.safe_load(read_bytes(path).decode("utf-8"))
        if not isinstance(rows, list):
            raise TypeError("it is no list")
        found = tuple(_member(row) for row in rows)
    except (OSError, yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        what = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ConfigError(
            f"{path}: not a list of members ({what}); write lines such as - {{optim.lr: 0.1, seed: 3}}"
        ) from error
    if not 0 < len(found) <= _MOST:
        raise ConfigError(f"{path}: {len(found)} members; a sweep has 1 to {_MOST}")
    return found


def _member(row: Any) -> tuple[str, ...]:
    if isinstance(row, dict):
        return tuple(f"{key}={_plain(value)}" for key, value in row.items())
    if isinstance(row, list) and all(isinstance(one, str) for one in row):
        return tuple(row)
    raise TypeError(f"{row!r} is no member")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def make(config: Path, arguments: Sequence[str], name: str | None, how: How, rows: Path | None) -> Sweep:
    """Return the sweep that a command line describes; with a list file, the arguments are the same for all members.

    Raises:
        PipelineError: if it can't be read.
    """
    fixed = tuple(arguments) if rows else ()
    found = listed(rows) if rows else members(arguments, how)
    chosen = name or f"{config.stem}-sweep"
    root = load(config, (*fixed, *found[0])).run.root
    return Sweep(chosen, config, fixed, found, (root / chosen).absolute())


def seeds(text: str) -> tuple[list[int], int | None]:
    """Return the numbers of `0-4`, `1,3,7` or `0-9:3`, and after a `%` how many may run at a time, as sbatch's --array has it.

    Raises:
        UsageError: for anything else.
    """
    found = _ARRAY.fullmatch(text)
    parts = [_PART.fullmatch(part) for part in (found[1].split(",") if found else [])]
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1, int(part[3] or 1)) for part in parts if part]
    # One number more than there may be is enough to know.
    numbers = list(itertools.islice(itertools.chain.from_iterable(ranges), _MOST + 1))
    if found is None or None in parts or not 0 < len(set(numbers)) == len(numbers) <= _MOST:
        raise UsageError(f"--array: {text!r} names no runs; write 0-4, 1,3,7 or 0-9%2 (two at a time), at most {_MOST}")
    return numbers, int(found[2]) if found[2] else None


def of_seeds(config: Path, overrides: Sequence[str], name: str | None, numbers: Sequence[int]) -> Sweep:
    """Return the sweep of one training over seeds.

    Raises:
        PipelineError: if the configuration can't be used.
    """
    cfg = load(config, overrides)
    chosen = name or f"{cfg.run.name or config.stem}-array"
    members = tuple((f"seed={n}",) for n in numbers)
    return Sweep(chosen, config, tuple(overrides), members, (cfg.run.root / chosen).absolute(), "run.name")


def plan(sweep: Sweep) -> list[dict[str, Any]]:
    """Return a row for each member: what varies, its directory, and its status if it has run.

    Raises:
        ConfigError: if a member's configuration can't be used.
    """
    rows = []
    for index, overrides in enumerate(sweep.members):
        sweep.cfg(index)
        journal = sweep.run_dir(index) / JOURNAL
        status = read_run(sweep.run_dir(index)).status if journal.is_file() else "-"
        rows.append({"member": index, "overrides": list(overrides), "run_dir": str(sweep.run_dir(index)), "status": status})
    return rows


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of a sweep for people."""
    table = [("member", "status", "overrides", "directory")]
    for row in rows:
        place = slurm.shown(Path(row["run_dir"]))
        table.append((str(row["member"]), row["status"], " ".join(row["overrides"]), str(place)))
    widths = [max(len(line[i]) for line in table) for i in range(4)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table)


class Written(BaseModel):
    """What `sweep.json` says, as far as it is read again."""

    configs: Annotated[list[dict[str, Any]], Field(min_length=1)]


def remember(sweep: Sweep) -> None:
    """Write down what the sweep's members are, or check that they are those of the last time.

    Raises:
        UsageError: if the folder holds another sweep, or one with other configurations.
    """
    path, now = sweep.folder / "sweep.json", configurations(sweep)
    if path.is_file():
        try:
            before = Written.model_validate_json(path.read_bytes()).configs
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: does not say what its members were; choose another {sweep.naming}") from error
        if len(before) != len(now):
            raise UsageError(f"{sweep.folder}: holds another sweep, of {len(before)} members; choose another {sweep.naming}")
        if what := _differences(before, now):
            raise UsageError(f"{sweep.folder}: holds another sweep ({what}); choose another {sweep.naming}")
        return
    members = [list(one) for one in sweep.members]
    about = {"name": sweep.name, "config": str(sweep.config), "fixed": sweep.fixed, "members": members, "configs": now}
    snapshot.write_json(path, about)


def configurations(sweep: Sweep) -> list[dict[str, Any]]:
    """Return what decides over each member's result: the first one's keys, and of the others those that are not the same.

    Raises:
        ConfigError: if a member's configuration can't be used.
    """
    every = [flat(json.loads(json.dumps(as_tree(sweep.cfg(index))))) for index in range(len(sweep.members))]
    first, *others = [{key: value for key, value in one.items() if not _may_differ(key)} for one in every]
    missing = "(not there)"
    rest = [{k: one.get(k, missing) for k in first | one if one.get(k, missing) != first.get(k, missing)} for one in others]
    return [first, *rest]


def _may_differ(key: str) -> bool:
    """Return whether a key may change between two starts of a sweep: a list of bad images may be needed to go on at all."""
    return kind(key) is Kind.RUNNING or key == "data.quarantine"


def _differences(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    """Return how members differ from those that were written down: of the first one that does, a few keys."""
    for index, (old, new) in enumerate(zip(before, now, strict=True)):
        was, is_ = ({**one[0], **row} for one, row in ((before, old), (now, new)))
        keys = [key for key in was | is_ if was.get(key) != is_.get(key)]
        if keys:
            shown = ", ".join(f"{key} was {was.get(key)}, is {is_.get(key)}" for key in keys[:3])
            return f"member {index}: {shown}{', ...' if len(keys) > 3 else ''}"
    return ""


def unfinished(sweep: Sweep) -> list[int]:
    """Return the members that have not finished: all of a new sweep, the failed ones of an old one."""
    return [row["member"] for row in plan(sweep) if row["status"] != "FINISHED"]


def begin(sweep: Sweep, status: str) -> dict[str, str]:
    """Make the sweep's parent run and note its status; return the tags that make a run its child.

    Raises:
        PipelineError: if the folder can't be written.
    """
    cfg = sweep.cfg(0)
    return parent.begin(sweep.folder, sweep.name, cfg, sweep.members, status) if cfg.track.enabled else {SWEEP: sweep.name}


def run_here(sweep: Sweep, jobs: int, nproc: int | None) -> dict[int, int]:
    """Run the unfinished members on this machine, `jobs` at a time; return each one's exit code.

    Signals go on to the running members; those that were not started then count as stopped (75).
    """
    parent.directory(sweep.folder).mkdir(parents=True, exist_ok=True)
    with RunLock(parent.directory(sweep.folder)):
        tags = snapshot.tags() | begin(sweep, "RUNNING")
        children, codes = Children(), dict[int, int]()
        try:
            codes |= _run(sweep, children, tags, (jobs, nproc))
        finally:
            parent.settle(sweep.folder, children.signal, codes)
    return codes


def _run(sweep: Sweep, children: Children, tags: Mapping[str, str], how: tuple[int, int | None]) -> dict[int, int]:
    """Run the unfinished members, so many at a time with so many processes each; return each one's exit code."""
    jobs, nproc = how
    env = dict(os.environ)
    # Each member would take all cores for itself.
    env.setdefault("OMP_NUM_THREADS", str(max(1, cpus.available() // (jobs * agent.processes(nproc)))))

    def one(index: int) -> int:
        run_dir = sweep.run_dir(index)
        run_dir.mkdir(parents=True, exist_ok=True)
        overrides = [*sweep.fixed, *sweep.members[index], f"run.name={sweep.name}-{index}", f"run.dir={run_dir}"]
        command = [sys.executable, "-m", "launch", "local", str(sweep.config), *overrides]
        command += ["--nproc-per-node", str(agent.processes(nproc))]
        own = {TAGS: json.dumps(dict(tags) | {MEMBER: str(index)})}
        return children.run(command, sweep.folder / f"{index:03d}.log", env | own)

    wanted = unfinished(sweep)
    logs = slurm.shown(sweep.folder / "NNN.log")
    print(f"{units.count(len(wanted), 'member')}, {jobs} at a time; each prints into {logs}", file=sys.stderr, flush=True)
    with children.forwarding(), ThreadPoolExecutor(jobs) as pool:
        return dict(zip(wanted, pool.map(one, wanted), strict=True))


def submit(sweep: Sweep, request: slurm.Request, parallel: int) -> dict[str, Any]:
    """Submit the unfinished members as one SLURM array, `parallel` at a time; return the array.

    Raises:
        PipelineError: before anything is submitted, if a member can't work.
    """
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with slurm.alone(sweep.folder, sweep.folder):
        return _submit(sweep, request, parallel)


def _submit(sweep: Sweep, request: slurm.Request, parallel: int) -> dict[str, Any]:
    wanted = unfinished(sweep)
    if not wanted:
        parent.settle(sweep.folder)
        raise UsageError(f"{sweep.folder}: every member has finished; change the sweep, or choose another {sweep.naming}")
    slurm.refuse_expansion(sweep.folder)
    slurm.refuse_secrets(request.cfg)
    slurm.check(request.options)
    plans = {index: slurm.forecast(replace(request, cfg=sweep.cfg(index))) for index in wanted}
    folders = {index: Folder(sweep.run_dir(index).absolute()) for index in wanted}
    for folder in folders.values():
        slurm.refuse_a_second(folder)
    tags, array = begin(sweep, "SCHEDULED"), Folder(sweep.folder / f"array-{time.strftime('%Y%m%d-%H%M%S')}-{new_uid()[:6]}")
    array.jobs.mkdir(parents=True)
    snapshot.copy_code(array)
    for index, folder in folders.items():
        member = replace(request, cfg=sweep.cfg(index))
        rundir.choose(member.cfg)
        folder.path.mkdir(exist_ok=True)
        snapshot.take(member.cfg, folder.run_dir, plans[index].as_dict(), request.command)
        slurm.keep(member, folder, slurm.Submitted("", "", tags | {MEMBER: str(index)}))
    snapshot.write_json(array.run_dir / requeue.MEMBERS, [str(folder.run_dir) for folder in folders.values()])
    cfg = sweep.cfg(wanted[0])
    first = replace(request, cfg=cfg.model_copy(update={"run": cfg.run.model_copy(update={"name": sweep.name})}))
    executor = slurm.executor(first, array, parallel)
    jobs = slurm.call(lambda: executor.map_array(Task.__call__, [Task(folder.run_dir) for folder in folders.values()]))
    for job, index in zip(jobs, wanted, strict=True):
        sent = slurm.Submitted(str(job.job_id), str(array.jobs / f"{job.job_id}_0_log.out"), tags | {MEMBER: str(index)})
        slurm.keep(replace(request, cfg=sweep.cfg(index)), folders[index], sent)
    return {"sweep": sweep.name, "folder": str(sweep.folder), "job": str(jobs[0].job_id).partition("_")[0], "members": wanted}
