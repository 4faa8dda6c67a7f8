"""What a run achieved and what it cost, and in what two runs differ: figures made from what was recorded."""

import math
import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.compare.read import Curve, RunData
from pipeline.config import Kind, kind
from pipeline.errors import UsageError
from pipeline.track.mapping import SWEEP

SEED = "seed"
_LONGEST = 60  # characters of a group's name
_LOWER = re.compile(r"(loss|error|seconds|_s|wait|hours|_wh|_gb)$")
_SPEED = re.compile(r"(per|_mb)_s$")
_RESULT = re.compile(r"^(val|train)/(?!(lr|epoch)$)")
"""Metrics that have a best value; rate and epoch are set, not reached."""
_COMMIT_LENGTH = 12
_PACKAGE = re.compile(r"^package\.")
_CODE = re.compile(r"^git\.")
# Tags that differ from run to run without saying anything about what was computed.
_NOT_TELLING = re.compile(
    r"^(mlflow\.|precision$|run\.|config\.digest$|command$|resumed_from_step$|status\.|changed\.|world_size$|sweep\.)"
)


@dataclass(frozen=True)
class Reached:
    """When a metric first was as good as a target: optimiser steps, active seconds, hours summed over devices."""

    steps: int
    seconds: float
    device_hours: float


@dataclass(frozen=True)
class Figures:
    """One run in numbers.

    `last` holds each metric, `best` those of training and validation and the one compared by, whose best is at `best_step`.
    `images_per_s` and `data_wait` (a fraction) are medians over the points of the curves. None: not recorded.
    """

    steps: int
    total_steps: int | None
    epochs: float | None
    last: dict[str, float]
    best: dict[str, float]
    best_step: int | None
    target: Reached | None
    seconds: float | None
    device_hours: float | None
    images_per_s: float | None
    data_wait: float | None

    def value(self, name: str) -> float | None:
        """Return a figure by name: a metric's last value, `best:METRIC`, `target:seconds`, `seconds`, ...; None if missing.

        A target that was never reached took infinitely long.
        """
        kind, _, rest = name.partition(":")
        if kind == "best" and rest:
            return self.best.get(rest)
        if kind == "target" and rest in Reached.__dataclass_fields__:
            return math.inf if self.target is None else float(getattr(self.target, rest))
        found = self.last.get(name, asdict(self).get(name))
        return float(found) if isinstance(found, int | float) else None


def lower_is_better(metric: str) -> bool:
    """Tell from a metric's name which way is better."""
    return _LOWER.search(metric) is not None and _SPEED.search(metric) is None


def measure(run: RunData, metric: str, target: float | None = None) -> Figures:
    """Return the figures of a run; `metric` is the one that best, and `target`, are about."""
    place = _best_place(run.curves.get(metric), metric)
    steps = run.step
    seconds = float(run.seconds(np.array([float(steps)]), ended=True)[0])
    total = run.plan.get("total_steps")
    per_epoch = run.plan.get("steps_per_epoch")
    return Figures(
        steps=steps,
        total_steps=int(total) if total is not None else None,
        epochs=steps / float(per_epoch) if per_epoch else None,
        last={key: float(curve.values[-1]) for key, curve in run.curves.items()},
        best={k: _best(curve, k) for k, curve in run.curves.items() if _RESULT.match(k) or k == metric},
        best_step=None if place is None else int(run.curves[metric].steps[place]),
        target=None if target is None else _reached(run, metric, target),
        seconds=None if math.isnan(seconds) else seconds,
        device_hours=None if math.isnan(seconds) else run.device_hours(steps, ended=True),
        images_per_s=_median(run.curves.get("perf/images_per_s")),
        data_wait=_median(run.curves.get("perf/data_wait")),
    )


def _best_place(curve: Curve | None, metric: str) -> int | None:
    if curve is None or np.isnan(curve.values).all():
        return None
    return int(np.nanargmin(curve.values) if lower_is_better(metric) else np.nanargmax(curve.values))


def _best(curve: Curve, metric: str) -> float:
    place = _best_place(curve, metric)
    return math.nan if place is None else float(curve.values[place])


def _median(curve: Curve | None) -> float | None:
    return None if curve is None else float(np.median(curve.values))


def _reached(run: RunData, metric: str, target: float) -> Reached | None:
    curve = run.curves.get(metric)
    if curve is None:
        return None
    good = curve.values <= target if lower_is_better(metric) else curve.values >= target
    if not good.any():
        return None
    step = curve.steps[good.argmax()]
    return Reached(int(step), float(run.seconds(np.array([step]))[0]), run.device_hours(step))


def differences(runs: Sequence[RunData]) -> dict[str, dict[str, list[str]]]:
    """Return what is not the same in all runs, as {"config" | "code" | "environment": {key: a text for each run}}."""
    tags = [_telling(run) for run in runs]
    if not all(any(map(_PACKAGE.match, one)) for one in tags):  # one that recorded no package has not none installed
        tags = [{key: text for key, text in one.items() if not _PACKAGE.match(key)} for one in tags]
    facts = _facts(runs)
    return {
        "config": _differing(
            [dict(run.config) | fact for run, fact in zip(runs, facts, strict=True)], lambda key: not key.startswith("run.")
        ),
        "code": _differing(tags, lambda key: bool(_CODE.match(key))),
        "environment": _differing(
            [t | {"world_size": r.plan.get("world_size")} for t, r in zip(tags, runs, strict=True)],
            lambda key: not _CODE.match(key),
        ),
    }


def _telling(run: RunData) -> dict[str, str]:
    """Return the tags that say something and are not in the configuration anyway; commits cut to what git shows."""
    found = {k: v for k, v in run.tags.items() if not _NOT_TELLING.match(k) and f"track.tags.{k}" not in run.config}
    return found | ({"git.commit": found["git.commit"][:_COMMIT_LENGTH]} if "git.commit" in found else {})


def _differing(maps: Sequence[Mapping[str, Any]], wanted: Any) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for one in maps for key in one if wanted(key))
    rows = {key: [_text(one.get(key)) for one in maps] for key in keys}
    return {key: texts for key, texts in rows.items() if len(set(texts)) > 1}


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "-", True: "true", False: "false"}[value]
    if value == "":
        return '""'  # which is not the same as missing
    return repr(value) if isinstance(value, float) else str(value)  # all its digits: 0.9999998 is not 1


def group_names(runs: Sequence[RunData], by: str | None) -> list[str]:
    """Return for each run the group it is pooled in: by a config key or tag, else runs that differ in their seed only.

    Raises:
        UsageError: if no run has the key.
    """
    if by is not None:
        found = [_named(run, by) for run in runs]
        if all(value is None for value in found):
            raise UsageError(f"--group-by {by}: no run has it; name a config key (optim.lr) or a tag")
        return [_text(value) for value in found]
    telling = _differing(_decisive(runs), lambda key: True)
    own = [str(run.config.get("run.name") or run.name) for run in runs]
    if not telling:
        return [_common(own, [run.tags.get(SWEEP) for run in runs])] * len(runs)
    return _short([", ".join(f"{key}={texts[i]}" for key, texts in telling.items()) for i in range(len(runs))], own)


def _decisive(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return for each run what its figures come from: what is learned and measured, but for the seed."""
    facts = _facts(runs)
    known = [{k: v for k, v in run.config.items() if k != SEED and kind(k) is not Kind.RUNNING} for run in runs]
    if all("data.validation" in fact for fact in facts):
        known = [{k: v for k, v in one.items() if k != "data.root"} for one in known]  # the same data may lie elsewhere
    return [one | fact for one, fact in zip(known, facts, strict=True)]


def _facts(runs: Sequence[RunData]) -> list[dict[str, str]]:
    """Return what all of the runs have recorded beyond their configuration: the data's digests, the precision in effect."""
    found = [
        {f"data.{context}": digest[:8] for context, digest in run.datasets.items()}
        | ({"precision": run.tags["precision"]} if "precision" in run.tags else {})
        for run in runs
    ]
    shared = set.intersection(*map(set, found)) if found else set()
    return [{key: text for key, text in one.items() if key in shared} for one in found]


def _common(names: Sequence[str], sweeps: Sequence[str | None]) -> str:
    """Return one name for runs that are one group: that of all, of their sweep, or what their names begin with."""
    for every in (names, sweeps):
        if len(set(every)) == 1 and every[0]:
            return every[0]
    return os.path.commonprefix(list(names)).rstrip("-_. ") or "all runs"


def _short(described: Sequence[str], named: Sequence[str]) -> list[str]:
    """Return a short name for each description, the same for the same: the description cut, or `named`, or cut and numbered."""
    different = len(set(described))
    cut = [text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..." for text in described]
    for names in (cut, named):
        if len(set(names)) == len(set(zip(names, described, strict=True))) == different:
            return list(names)
    numbers: dict[str, int] = {}
    for text in described:
        numbers.setdefault(text, len(numbers) + 1)
    numbered = [f"{numbers[text]}: {text}" for text in described]
    return [text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..." for text in numbered]


def _named(run: RunData, key: str) -> Any:
    for place in (run.config, run.tags):
        if key in place:
            return place[key]
    return run.plan.get(key.removeprefix("plan."))
