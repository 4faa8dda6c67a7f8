"""A comparison as one self-contained web page: tables and interactive curves, without a network."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.compare.read import Curve, RunData
from pipeline.compare.report import Report, as_json, finite
from pipeline.files import write_text

_DATA = "@DATA@"
_MOST_POINTS = 2000  # of a curve: more than a screen has columns


def write(report: Report, path: Path) -> None:
    """Write the page.

    Raises:
        UsageError: if the file can't be written.
    """
    # In a <script>, "</" would end it, wherever it stands.
    data = json.dumps(as_json(report) | {"curves": [_curves(run) for run in report.runs]}, allow_nan=False).replace(
        "<", "\\u003c"
    )
    page = files("pipeline.compare").joinpath("page.html").read_text(encoding="utf-8").replace(_DATA, data, 1)
    write_text(path, page)


def _curves(run: RunData) -> dict[str, dict[str, Any]]:
    """Return {metric: {"step": [...], "seconds": [...], "value": [...]}}, without the summary's single points."""
    return {
        key: _thinned(run, curve)
        for key, curve in run.curves.items()
        if len(curve.steps) > 1 and not key.startswith(("summary/", "time/"))
    }


def _thinned(run: RunData, curve: Curve) -> dict[str, Any]:
    keep = np.unique(np.linspace(0, len(curve.steps) - 1, min(len(curve.steps), _MOST_POINTS)).astype(int))
    steps, values = curve.steps[keep], curve.values[keep]
    found = {
        "step": steps.astype(int).tolist(),
        "seconds": np.round(run.seconds(steps), 3).tolist(),
        "value": [float(f"{value:.6g}") for value in values],
    }
    return finite(found)  # type: ignore[no-any-return]
