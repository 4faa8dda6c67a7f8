"""What a run tells: points in the journal, a progress bar or log lines, and the summary at the end.

Only rank 0 reports; the others have `Silent`.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from pipeline import units
from pipeline.data.loader import Batch
from pipeline.model import weights
from pipeline.track.journal import Journal
from pipeline.train import conformance, outcome
from pipeline.train.machines import Machines
from pipeline.train.metrics import Sums, score
from pipeline.train.state import State
from pipeline.world import World


def say(text: str) -> None:
    """Print, and do not die of a reader that has gone (`| head`): a training is worth more than its log."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    except OSError:  # the log's disk is full
        return


def warn_of_trouble(error: Exception) -> None:
    """Say that what has failed is tried again."""
    say(f"warning: {str(error).partition(';')[0]}; trying again")


class Silent:
    """The listener of the ranks that do not report; it takes part in what all ranks do together."""

    def __init__(self, machines: Machines | None = None) -> None:
        self._gather = (machines or Machines(World(), None)).gather

    def look(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Return the batches."""
        return batches

    def on_step(self, state: State, step: int, sums: Sums) -> None:
        """Do nothing."""

    def on_log(self, state: State, step: int, window: Sums) -> None:
        """Do nothing."""

    def on_eval(self, state: State) -> None:
        """Tell how busy this node was."""
        self._gather()

    def close(self) -> None:
        """Do nothing."""


class Reporter(Silent):
    """Writes the journal, and shows progress: a bar on a terminal, aligned lines in a log file."""

    def __init__(self, state: State, journal: Journal, machines: Machines, first_batch: Path | None = None) -> None:
        super().__init__(machines)
        self._classes, self._first_batch = state.dataset.classes, first_batch
        self._journal = journal
        self._before = state.clock.copy()
        self._start = state.clock.copy()
        total = state.plan.total_steps
        shown = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=state.step, unit="step", dynamic_ncols=True) if shown else None
        self._width = len(str(total))

    def look(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Return the batches; draw the first of a new run."""
        if self._first_batch is None:
            return batches
        first = next(batches)
        try:
            outcome.keep_first_batch(first, self._classes, self._first_batch)
        except Exception as error:
            say(f"warning: {self._first_batch}: not drawn: {type(error).__name__}: {error}")
        return chain([first], batches)

    def on_step(self, state: State, step: int, sums: Sums) -> None:
        """Move the bar."""
        if self._bar is not None:
            rates = state.clock.since(self._start).rates()
            self._bar.set_postfix_str(
                f"loss {sums.means()['loss']:.3f}, {rates['images_per_s']:.0f} img/s, wait {rates['data_wait']:.0%}",
                refresh=False,
            )
            self._bar.update(step - self._bar.n)

    def on_log(self, state: State, step: int, window: Sums) -> None:
        """Write a point of the training curves."""
        recent = state.clock.since(self._before)
        self._before = state.clock.copy()
        means, rates, lr = window.means(), recent.rates(), state.lr(step - 1)
        epoch = step / state.plan.steps_per_epoch
        self._journal.metrics(
            step,
            {f"train/{k}": v for k, v in means.items()}
            | {"train/lr": lr, "train/epoch": epoch, "time/train_s": state.clock.train_s, "time/active_s": state.clock.total_s}
            | {f"perf/{k}": v for k, v in rates.items()}
            | {"data/bad_images": state.dataset.bad_images()},
        )
        self._say(
            f"{self._place(step, state)}   loss {means['loss']:7.4f}   top1 {means['top1']:6.2%}   lr {lr:.2e}"
            f"   {rates['images_per_s']:7,.0f} img/s   wait {rates['data_wait']:4.0%}   left {self._left(state, step)}",
            also_on_terminal=False,
        )

    def on_eval(self, state: State) -> None:
        """Write a point of the validation curves."""
        val = state.val
        system, energy_j = self._gather()
        state.clock.energy_j += energy_j
        told = {f"val/{k}": v for k, v in val.items() if k not in ("step", "count")} | {"time/val_s": state.clock.total_s}
        self._journal.metrics(state.step, told | system)
        averaged = f"   averaged weights' top1 {val['ema_top1']:6.2%}" if "ema_top1" in val else ""
        self._say(
            f"{self._place(state.step, state)}   val loss {val['loss']:7.4f}   val top1 {val['top1']:6.2%}"
            f"   val top5 {val['top5']:6.2%}   {units.count(int(val['count']), 'image')}{averaged}"
        )
        self._compare(state)

    def _compare(self, state: State) -> None:
        """Say how the run does beside what its recipe is known to reach."""
        found = conformance.band(state.cfg, state.plan, state.step, score(state.val))
        if found is None:
            return
        edges = {"expect/low": found.low, "expect/high": found.high, "expect/inside": float(found.inside)}
        self._journal.metrics(state.step, edges)
        if not found.inside:
            self._journal.event("warning", step=state.step, text=str(found))
            self._say(f"warning: {found}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()

    def _place(self, step: int, state: State) -> str:
        plan = state.plan
        return f"epoch {step / plan.steps_per_epoch:6.2f}   step {step:{self._width}d}/{plan.total_steps}"

    def _left(self, state: State, step: int) -> str:
        done = state.clock.images - self._start.images
        spent = state.clock.since(self._start).total_s
        images = (state.plan.total_steps - step) * state.plan.global_batch
        return units.seconds(spent / max(done, 1) * images)

    def _say(self, line: str, also_on_terminal: bool = True) -> None:
        if self._bar is None:
            say(line)
        elif also_on_terminal:
            self._bar.write(line)


def summary(state: State) -> dict[str, float]:
    """Return the figures that a run is compared by; fractions, seconds, images a second."""
    clock, val, best = state.clock, state.val, state.best
    return {
        "val_top1": val["top1"],
        "val_top5": val["top5"],
        "val_loss": val["loss"],
        "best_top1": score(best),
        **({"val_ema_top1": val["ema_top1"]} if "ema_top1" in val else {}),
        "seconds": clock.total_s,
        "train_seconds": clock.train_s,
        "device_hours": clock.device_s / 3600,
        **({"energy_wh": clock.energy_j / 3600} if clock.energy_j else {}),
        **clock.rates(),
    }


def opening(state: State, run_dir: Path) -> str:
    """Return what a run says of itself before it starts."""
    cfg, plan, world = state.cfg, state.plan, state.world
    parameters = weights.count_parameters(state.model) / 1e6
    splits = (
        (plan.train_images, "training image", state.dataset.bad_train),
        (plan.val_images, "validation image", state.dataset.bad_val),
    )
    images = ", ".join(
        units.count(n, name) + (f" ({bad:,} bad, left out)" if (bad := known.count()) else "") for n, name, known in splits
    )
    split = f"{plan.global_batch} images a step = {world.size} x {plan.accumulation} x {plan.micro_batch}"
    lines = [
        f"{run_dir}",
        f"{cfg.model.name}, {parameters:.2f} M parameters, {plan.classes} classes, on {world.size} x {world.device.type}",
        f"{images}; {split}; {units.count(plan.total_steps, 'step')}, {plan.steps_per_epoch:,} an epoch",
    ]
    missed = conformance.never_compared(cfg, plan)
    if missed:
        lines.append(f"warning: expect.top1: nothing is evaluated after epoch {missed[0]} with eval.every={cfg.eval.every}")
    if state.step:
        lines.append(f"going on after step {state.step} (epoch {state.epoch:.2f})")
    return "\n".join(lines)


def table(found: Mapping[str, float], run_dir: Path, places: Mapping[str, str]) -> str:
    """Return the closing table of a run for people; `places` says where it is to be found elsewhere."""
    rows = {
        "top-1": f"{found['val_top1']:.2%}",
        "top-5": f"{found['val_top5']:.2%}",
        "best top-1": f"{found['best_top1']:.2%}",
        "time": f"{units.seconds(found['seconds'])} (training {units.seconds(found['train_seconds'])})",
        "speed": f"{found['images_per_s']:,.0f} img/s in training",
        "waiting for data": f"{found['data_wait']:.1%} of training",
        "run directory": str(run_dir),
        **places,
    }
    width = max(map(len, rows))
    return "\n".join(["", *(f"  {name:<{width}}   {value}" for name, value in rows.items())])
