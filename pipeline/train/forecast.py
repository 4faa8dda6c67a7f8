"""What a configuration will do, before it is started: steps, learning rate, resolution, memory, time.

No data is opened and no process group is formed.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import units
from pipeline.config import Config, Plan, make_plan
from pipeline.data.resolution import resolution
from pipeline.errors import UsageError
from pipeline.files import write_atomically
from pipeline.model import weights, zoo
from pipeline.recipe.schedule import learning_rate
from pipeline.train.precision import resolve

# Training images, validation images, classes.
IMAGENET = (1_281_167, 50_000, 1000)
CIFAR10 = (50_000, 10_000, 10)
_MOMENTS = {"sgd": 1, "sgdw": 1, "lars": 1, "adamw": 2, "lamb": 2}
_POINTS, _COLUMNS, _ROWS = 1009, 63, 8  # 16 points a column


@dataclass(frozen=True)
class Question:
    """What to forecast for: processes, the data set's sizes, and the speed of the whole if it is known."""

    world: int = 1
    images: int = IMAGENET[0]
    classes: int = IMAGENET[2]
    images_per_s: float | None = None


@dataclass(frozen=True)
class Forecast:
    """The answer; memory in bytes for each process, times in hours; the curves are (step, value)."""

    plan: Plan
    images_seen: int
    parameters: int
    memory: dict[str, int]
    hours: float | None
    gpu_hours: float | None
    lr: list[tuple[int, float]]
    resolution: list[tuple[int, int]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def forecast(cfg: Config, question: Question) -> Forecast:
    """Work out what the configuration will do.

    Raises:
        ConfigError, WorldError: if it can't be trained in this world.
        UsageError: if the speed is no number.
    """
    zoo.check(cfg.model)
    zoo.check_sides(cfg)
    if question.images_per_s is not None and not math.isfinite(question.images_per_s):
        raise UsageError(f"--img-s: must be a number of images a second, not {question.images_per_s}")
    plan = make_plan(
        cfg, world_size=question.world, train_images=question.images, val_images=IMAGENET[1], classes=question.classes
    )
    lr, side = learning_rate(cfg.schedule, plan), resolution(cfg, plan)
    places = sorted({round(i * (plan.total_steps - 1) / (_POINTS - 1)) for i in range(_POINTS)})
    epochs = range(-(-plan.total_steps // plan.steps_per_epoch))
    sides = [(epoch, side(epoch)) for epoch in epochs if epoch == 0 or side(epoch) != side(epoch - 1)]
    seen = plan.total_steps * plan.global_batch
    hours = seen / question.images_per_s / 3600 if question.images_per_s else None
    with torch.device("meta"):
        model = zoo.build(cfg.model, question.classes)
    return Forecast(
        plan=plan,
        images_seen=seen,
        parameters=weights.count_parameters(model),
        memory=memory(cfg, model),
        hours=hours,
        gpu_hours=hours * question.world if hours is not None else None,
        lr=[(step, lr(step)) for step in places],
        resolution=sides,
    )


def memory(cfg: Config, model: nn.Module) -> dict[str, int]:
    """Return an estimate of the bytes that a process needs, from a model on the meta device.

    Counted are weights, gradients, the optimiser's state, the average, and what every layer without children returns for a
    micro-batch at full resolution; not what libraries take for themselves.
    """
    numbers = sum(p.numel() for p in model.parameters())
    wide = 8 if cfg.train.precision == "fp64" else 4
    narrow = {"bf16": 2, "fp16": 2}.get(resolve(cfg.train, torch.device("cpu")), wide)
    if cfg.train.precision == "auto":
        narrow = 2  # what a GPU is going to use
    held = numbers * wide
    parts = {"weights": held, "gradients": held, "optimizer": held * _MOMENTS[cfg.optim.name]}
    parts["average"] = held if cfg.ema.keep is not None else 0
    parts["activations"] = _activations(model, cfg.batch.micro, cfg.data.resolution) * narrow
    return parts | {"total": sum(parts.values())}


def _activations(model: nn.Module, batch: int, side: int) -> int:
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if not list(m.children())]
    with torch.device("meta"), torch.no_grad():
        model(torch.empty(2, 3, side, side))
    for hook in hooks:
        hook.remove()
    return total * batch // 2


def render(found: Forecast, cfg: Config) -> str:
    """Return the forecast for a terminal, with a small plot of the learning rate."""
    plan, total = found.plan, found.memory["total"]
    shown = "   ".join(f"{name} {units.size(n)}" for name, n in found.memory.items() if n and name != "total")
    split = f"{plan.world_size} x {plan.accumulation} x {plan.micro_batch}"
    rows = {
        "steps": f"{plan.total_steps:,} ({plan.steps_per_epoch:,} an epoch), {plan.global_batch} images each = {split}",
        "images seen": f"{found.images_seen:,}",
        "warm-up": units.count(plan.warmup_steps, "step") if plan.warmup_steps else "none of its own",
        "peak rate": f"{max(rate for _, rate in found.lr):.4g}",
        "resolution": ", ".join(f"{side} px from epoch {epoch}" for epoch, side in found.resolution),
        "parameters": f"{found.parameters / 1e6:.2f} M",
        "memory": f"about {units.size(total)} a process ({shown})",
    }
    if found.hours is not None:
        rows["time"] = f"{found.hours:.1f} hours, {found.gpu_hours:.1f} GPU-hours"
    width = max(map(len, rows))
    return "\n".join([*(f"{name:<{width}}   {value}" for name, value in rows.items()), "", _plot(found)])


def _plot(found: Forecast) -> str:
    """Return the learning rate over time as rows of characters, a column the most of its time."""
    rates = [rate for _, rate in found.lr]
    top, wide = max(rates) or 1.0, max(1, len(rates) // _COLUMNS)
    heights = [round(8 * _ROWS * max(rates[at : at + wide]) / top) for at in range(0, len(rates), wide)]
    lines = []
    for row in reversed(range(_ROWS)):
        cells = "".join(" ▁▂▃▄▅▆▇█"[min(8, max(0, height - 8 * row))] for height in heights)
        lines.append(f"{top * (row + 1) / _ROWS:>9.3g} |{cells}".rstrip())
    return "\n".join([*lines, f"{'rate':>9} +{'-' * len(heights)} {found.plan.total_steps:,} steps"])


def draw(found: Forecast, path: Path) -> None:
    """Draw learning rate and resolution over time as PNG.

    Raises:
        UsageError: if the file can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, and no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    rate, side = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    per_epoch = found.plan.steps_per_epoch
    rate.plot([step / per_epoch for step, _ in found.lr], [value for _, value in found.lr])
    rate.set(ylabel="learning rate")
    ends = [*found.resolution, (found.plan.total_steps / per_epoch, found.resolution[-1][1])]
    side.step([epoch for epoch, _ in ends], [pixels for _, pixels in ends], where="post")
    side.set(xlabel="epoch", ylabel="resolution (px)")
    write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=110))
