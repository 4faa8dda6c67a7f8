"""What a file of weights brings along to its evaluation, and what belongs to the data it was trained on."""

from pathlib import Path

import pytest
import torch

from pipeline.config import load, to_yaml
from pipeline.errors import CheckpointError, PipelineError
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


@pytest.mark.parametrize(
    ("about", "part"),
    [
        ({"class_names": "[1"}, "class_names in its header is no JSON"),
        ({"class_names": "[1]"}, "class_names is no list of names"),
        ({"config": "[]", "class_names": "null"}, "w.safetensors"),
    ],
)
def test_forged_headers_are_one_line(about: dict[str, str], part: str, tmp_path: Path) -> None:
    weights.save(torch.nn.Linear(1, 1), tmp_path / "w.safetensors", about)
    with pytest.raises(PipelineError) as caught:
        read(Request(tmp_path / "w.safetensors", tmp_path))
    assert part in str(caught.value) and "w.safetensors" in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("config", 3), ("class_names", {"a": 1})])
def test_forged_checkpoints_are_one_line(field: str, value: object, tmp_path: Path) -> None:
    torch.save({"format": 1, "model": {"weight": torch.zeros(1)}, field: value}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=f"w.pt: {field} is no "):
        read(Request(tmp_path / "w.pt", tmp_path))
