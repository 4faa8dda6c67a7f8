"""The paper's degradation experiment: what depth does to plain and to residual networks, drawn from finished runs.

Source: He et al. 2015, figure 6, tables 2 and 3 (https://arxiv.org/abs/1512.03385).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.load import loads
from pipeline.errors import DataError
from pipeline.files import write_atomically
from pipeline.model import zoo
from pipeline.track import journal

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Result:
    """What a run has shown: error in per cent by step, in training (with its augmentation) and on the validation images.

    `images` are how many of each the errors are counted over.
    """

    name: str
    depth: int
    shortcut: str | None
    train: Curve
    val: Curve
    images: tuple[int, int]

    @property
    def final(self) -> tuple[float, float]:
        """Errors at the end, in training and on the validation images, in per cent."""
        return self.train[-1][1], self.val[-1][1]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        train, val = self.final
        return {"name": self.name, "depth": self.depth, "shortcut": self.shortcut, "train_error": train, "val_error": val}


def read(out: Path, names: Sequence[str]) -> list[Result]:
    """Read the journals of the runs `out/NAME`.

    Raises:
        DataError: if a run has not been evaluated yet.
    """
    return [_read(out / name) for name in names]


def _read(run_dir: Path) -> Result:
    curves: dict[str, dict[int, float]] = {"train/top1": {}, "val/top1": {}}
    images = (0, 0)
    for record, _ in journal.read(run_dir / "journal.jsonl"):
        for key in curves.keys() & record.get("values", {}).keys():
            curves[key].setdefault(record["step"], 100 * (1 - record["values"][key]))
        if record["kind"] == "run":
            images = (record["plan"]["train_images"], record["plan"]["val_images"])
    if not all(curves.values()):
        raise DataError(f"{run_dir}: holds no finished run; train it first")
    spec = zoo.spec(loads((run_dir / "config.yaml").read_text(encoding="utf-8"), str(run_dir / "config.yaml")).model)
    layers = 2 if spec.bottlenecks is None else 3
    train, val = (sorted(curve.items()) for curve in curves.values())
    return Result(run_dir.name, layers * sum(spec.n_blocks) + 2, spec.shortcut, train, val, images)


def tables(results: Sequence[Result]) -> dict[str, list[list[str]]]:
    """Return two tables by title, header first: error by depth, and by shortcut option where there is more than one."""
    by_depth = [["layers", "plain: train", "plain: test", "residual: train", "residual: test"]]
    for depth in sorted({r.depth for r in results}):
        row = [str(depth)]
        for kind in (_plain(results), _main(results)):
            found = [r for r in kind if r.depth == depth]
            row += [f"{error:.2f}" for error in found[0].final] if found else ["-", "-"]
        by_depth.append(row)
    options = [["layers", "option", "train", "test"]]
    compared = {r.depth for r in results if r.shortcut not in (None, _usual(results))}
    for r in sorted(results, key=lambda r: (r.depth, r.shortcut or "")):
        if r.shortcut and r.depth in compared:
            options.append([str(r.depth), r.shortcut, *(f"{error:.2f}" for error in r.final)])
    return {"Error by depth, in per cent": by_depth, "Error by shortcut option, in per cent": options}


def _usual(results: Sequence[Result]) -> str | None:
    options = [r.shortcut for r in results if r.shortcut]
    return max(set(options), key=options.count) if options else None


def _plain(results: Sequence[Result]) -> list[Result]:
    return sorted((r for r in results if r.shortcut is None), key=lambda r: r.depth)


def _main(results: Sequence[Result]) -> list[Result]:
    return sorted((r for r in results if r.shortcut and r.shortcut == _usual(results)), key=lambda r: r.depth)


def seen(results: Sequence[Result]) -> list[str]:
    """Return how the errors change with depth; each network is one run, so that nothing is claimed of it."""
    said = []
    for kind, found in (("plain", _plain(results)), ("residual", _main(results))):
        if len(found) < 2:
            continue
        shallow, deep = found[0], found[-1]
        for what, a, b in zip(("training", "test"), shallow.final, deep.final, strict=True):
            change = "rises" if b > a else "falls" if b < a else "stays"
            error = f"the {what} error {change} from {a:.2f} to {b:.2f} %"
            said.append(f"{kind}: from {shallow.depth} to {deep.depth} layers {error} (one seed: no claim)")
    return [*said, "a difference needs several seeds of both: seed=1 with another --out, and so on"] if said else said


def write(results: Sequence[Result], out: Path) -> list[Path]:
    """Write `degradation.md`, and `degradation.png` with the curves and the tables; return the paths."""
    found = tables(results)
    text = "# Plain and residual networks by depth\n\n![error against steps](degradation.png)\n"
    for title, rows in found.items():
        text += f"\n## {title}\n\n{_markdown(rows)}\n"
    text += "\n## What is seen\n\n" + "\n".join(f"- {line}" for line in seen(results)) + "\n"
    write_atomically(out / "degradation.md", lambda p: p.write_text(text, encoding="utf-8"))
    write_atomically(out / "degradation.png", lambda p: _draw(results, found, p))
    return [out / "degradation.md", out / "degradation.png"]


def _markdown(rows: list[list[str]]) -> str:
    lines = [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in [lines[0], " | ".join("---" for _ in rows[0]), *lines[1:]])


def _draw(results: Sequence[Result], found: Mapping[str, list[list[str]]], path: Path) -> None:
    """Draw the paper's figure 6, plain networks left and residual ones right, over the two tables."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, and no global state
    from matplotlib.figure import Figure

    most = max(len(rows) for rows in found.values())
    figure = Figure(figsize=(11, 5.5 + 0.3 * most), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, height_ratios=[5, 0.3 * most])
    for axis, title, kind in ((axes[0][0], "plain", _plain(results)), (axes[0][1], "residual", _main(results))):
        for number, r in enumerate(kind):
            axis.plot(*zip(*r.train, strict=True), "--", color=f"C{number}", linewidth=1)
            axis.plot(*zip(*r.val, strict=True), color=f"C{number}", linewidth=2, label=f"{r.depth} layers")
        axis.set(title=title, xlabel="step", ylabel="error (%)", ylim=(0, 100))
        axis.legend(title="test; dashed: training")
    for axis, (title, rows) in zip(axes[1], found.items(), strict=True):
        axis.axis("off")
        axis.set_title(title)
        if rows[1:]:
            table = axis.table(
                rows[1:], colLabels=rows[0], bbox=(0, 1 - len(rows) / most, 1, len(rows) / most), cellLoc="center"
            )
            table.auto_set_font_size(False)
            table.set_fontsize(9)
    figure.savefig(path, format="png", dpi=110)
