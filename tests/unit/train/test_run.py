"""What is kept at the end of a run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.model import weights
from pipeline.train import package, run
from pipeline.train.rundir import CHECKPOINTS, RunDir
from tests.unit.train.test_engine import fit, made


def test_the_averaged_network_is_what_is_kept_and_exported(tmp_path: Path) -> None:
    state = made("ema.half_life=9", "eval.every=2st")
    fit(state, tmp_path / CHECKPOINTS)
    place = RunDir(tmp_path, "uid", "name", fresh=True)
    (best,) = (tmp_path / CHECKPOINTS).glob("best-0*.pt")
    saved = torch.load(best, weights_only=True)
    run._keep_best(state, place, {})
    kept = load_file(place.best_weights)
    assert all(kept[name].equal(tensor) for name, tensor in saved["ema"].items())
    assert not all(kept[name].equal(tensor) for name, tensor in saved["model"].items())
    about = weights.load_metadata(place.best_weights)
    assert (
        float(about["val_top1"]) == state.best["ema_top1"] and json.loads(about["step"]) == state.best["step"] == saved["step"]
    )
    assert state.ema is not None
    exported = package._classifier(state).model.state_dict()
    assert all(exported[name].equal(tensor) for name, tensor in state.ema.model.state_dict().items())


def test_a_damaged_best_costs_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = made()
    fit(state, tmp_path / CHECKPOINTS)
    (tmp_path / CHECKPOINTS / "best.pt").write_bytes(b"PK")
    run._keep_best(state, RunDir(tmp_path, "uid", "name", fresh=True), {})
    assert "best.pt: truncated, damaged or not a checkpoint; kept as best.pt.damaged" in capsys.readouterr().out
    assert not (tmp_path / "best.safetensors").exists()
