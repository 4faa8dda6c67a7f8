"""What a file of weights brings along to its evaluation, and what belongs to the data it was trained on."""

from pathlib import Path

import pytest
import torch

from pipeline.config import load, to_yaml
from pipeline.model import weights
from pipeline.train.standalone import Request, read


@pytest.mark.parametrize(
    ("data", "overrides", "used"),
    [
        ("trained", (), "bad.tsv"),
        ("other", (), None),
        ("staged", (), "bad.tsv"),
        ("other", ("data.quarantine=own.tsv",), "own.tsv"),
        ("trained", ("data.quarantine=null",), None),
    ],
)
def test_a_list_of_bad_images_is_of_the_data_it_was_given_with(
    data: str, overrides: tuple[str, ...], used: str | None, tmp_path: Path
) -> None:
    places = [f"data.root={tmp_path / 'trained'}", f"data.stage_from=file://{tmp_path / 'staged'}", f"data.stage_to={tmp_path}"]
    cfg = load(None, [*places, "data.quarantine=bad.tsv"])
    weights.save(torch.nn.Linear(1, 1), tmp_path / "w.safetensors", {"config": to_yaml(cfg)})
    found = read(Request(tmp_path / "w.safetensors", tmp_path / data, overrides)).cfg
    assert found.data.quarantine == (Path(used) if used else None)
