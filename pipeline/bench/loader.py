"""Loaders against each other in one interleaved run: processor time, speed and memory of each."""

import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import IO

from tqdm import tqdm

from pipeline.bench.contestant import NEEDS, Task
from pipeline.bench.photos import write_photos
from pipeline.data.pack import Settings, pack
from pipeline.errors import UsageError

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_QUIET_S = 0.2
NAMES = (
    "torchvision-pil",
    "torchvision-pil-uint8",
    "timm",
    "webdataset",
    "ours-folder",
    "ours-pack",
    "ours-pack-352",
    "ours-dali",
)


@dataclass(frozen=True)
class Request:
    """What to measure: passes over so many images, each contestant in turn, `rounds` times."""

    images: int = 2000
    rounds: int = 3
    batch: int = 64
    workers: int = 2
    names: tuple[str, ...] = NAMES


@dataclass(frozen=True)
class Row:
    """What was measured of a contestant; `ratio` is its processor time as a multiple of the first one's."""

    name: str
    cpu_ms_per_image: float
    images_per_s: float
    ratio: float
    peak_rss_mb: float


@dataclass
class _Contestant:
    name: str
    process: subprocess.Popen[str]
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    rss_mb: float = 0.0


def measure(request: Request, folder: Path) -> tuple[list[Row], dict[str, str]]:
    """Measure all contestants on photographs made in `folder`; return their rows, and why others were skipped.

    Raises:
        UsageError: if a contestant is unknown, or one dies.
    """
    unknown = set(request.names) - set(NAMES)
    if unknown:
        raise UsageError(f"bench loader: no loader {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    skipped = {n: f"{NEEDS[n]} is not installed" for n in request.names if n in NEEDS and find_spec(NEEDS[n]) is None}
    roots = _prepare(request, folder)
    contestants: list[_Contestant] = []
    try:
        for name in request.names:
            if name not in skipped:
                task = Task(name, str(roots[_root_of(name)]), request.batch, request.workers)
                contestants.append(_Contestant(name, _start(task)))
        for contestant in contestants:
            _expect(contestant, "ready")
        order = [c for _ in range(request.rounds) for c in contestants]
        for contestant in tqdm(order, desc="measuring", unit="pass", disable=None, leave=False):
            _one_pass(contestant, request.images // request.batch)
    finally:
        for contestant in contestants:
            _stop(contestant.process)
    return _rows(contestants, request.images // request.batch * request.batch), skipped


def _root_of(name: str) -> str:
    return {"webdataset": "pack", "ours-pack": "pack", "ours-pack-352": "pack-352"}.get(name, "folder")


def _prepare(request: Request, folder: Path) -> dict[str, Path]:
    roots = {"folder": folder / "folder", "pack": folder / "pack", "pack-352": folder / "pack-352"}
    write_photos(roots["folder"], request.images)
    needed = {_root_of(name) for name in request.names}
    for name, short_side in (("pack", None), ("pack-352", 352)):
        if name in needed:
            settings = Settings(short_side=short_side, shard_images=256)
            pack(roots["folder"], roots[name], settings, folder / "cache", request.workers)
    return roots


def _start(task: Task) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "pipeline.bench.contestant", task.text()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as torchrun sets it; idle threads that spin would be counted
    )


def _expect(contestant: _Contestant, expected: str | None = None) -> str:
    line = _pipe(contestant.process.stdout).readline().strip()
    if not line or (expected is not None and line != expected):
        raise UsageError(f"bench loader: {contestant.name} failed: {line or 'its process ended'}; see its error above")
    return line


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _one_pass(contestant: _Contestant, batches: int) -> None:
    """Have one contestant load; what it prepares ahead counts as much at the end as it lacks at the start."""
    before = _quiet_cpu_s(contestant.process.pid)
    stdin = _pipe(contestant.process.stdin)
    stdin.write(f"{batches}\n")
    stdin.flush()
    contestant.wall_s.append(float(_expect(contestant)))
    contestant.cpu_s.append(_quiet_cpu_s(contestant.process.pid) - before)
    contestant.rss_mb = max(contestant.rss_mb, _peak_rss_mb(contestant.process.pid))


def _quiet_cpu_s(pid: int) -> float:
    """Return the processor time of a process and those below it, once it does not grow any more."""
    last = -1.0
    while (now := _cpu_s(pid)) > last + _TICK_S:
        last = now
        time.sleep(_QUIET_S)
    return now


def _family(pid: int) -> list[int]:
    family = [pid]
    for member in family:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            family += map(int, children.read_text().split())
    return family


def _cpu_s(pid: int) -> float:
    fields = [Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split() for member in _family(pid)]
    return sum(int(one[11]) + int(one[12]) for one in fields) * _TICK_S


def _peak_rss_mb(pid: int) -> float:
    status = [Path(f"/proc/{member}/status").read_text() for member in _family(pid)]
    return sum(int(text.partition("VmHWM:")[2].split()[0]) for text in status) / 1024


def _stop(process: subprocess.Popen[str]) -> None:
    family = _family(process.pid) if process.poll() is None else []
    process.kill()
    process.wait()
    for member in family[1:]:
        try:
            os.kill(member, 15)  # worker processes notice by themselves too, but later
        except ProcessLookupError:
            continue
    for pipe in (process.stdin, process.stdout):
        _pipe(pipe).close()


def _rows(contestants: list[_Contestant], images: int) -> list[Row]:
    rows: list[Row] = []
    for one in contestants:
        cpu_ms = median(one.cpu_s) / images * 1000
        first = rows[0].cpu_ms_per_image if rows else cpu_ms
        rows.append(Row(one.name, cpu_ms, images / median(one.wall_s), cpu_ms / first, one.rss_mb))
    return rows


def table(rows: list[Row], skipped: dict[str, str]) -> str:
    """Return the rows for people."""
    lines = ["loader                   CPU ms/image     img/s   ratio   peak RSS MB"]
    for row in rows:
        figures = f"{row.cpu_ms_per_image:12.2f}   {row.images_per_s:7.0f}   {row.ratio:5.2f}   {row.peak_rss_mb:11.0f}"
        lines.append(f"{row.name:<25}{figures}")
    return "\n".join([*lines, *(f"{name:<25}skipped: {why}" for name, why in skipped.items())])


def as_json(rows: list[Row]) -> list[dict[str, str | float]]:
    """Return the rows as plain values."""
    return [asdict(row) for row in rows]


def draw(rows: list[Row], path: Path) -> None:
    """Draw the processor times as a bar chart into a PNG file.

    Raises:
        UsageError: if it can't be written.
    """
    from matplotlib.figure import Figure

    from pipeline.files import write_atomically

    figure = Figure(figsize=(8, 0.5 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    names = [row.name for row in reversed(rows)]
    colours = ["tab:blue" if name.startswith("ours") else "tab:gray" for name in names]
    bars = axes.barh(names, [row.cpu_ms_per_image for row in reversed(rows)], color=colours)
    axes.bar_label(bars, [f"{row.cpu_ms_per_image:.2f} ({row.ratio:.2f}x)" for row in reversed(rows)], padding=3)
    axes.set_xlabel("CPU milliseconds per image")
    axes.margins(x=0.2)
    write_atomically(path, lambda new: figure.savefig(new, format="png", dpi=120))
