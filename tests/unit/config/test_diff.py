from pathlib import Path

from pipeline.config import load
from pipeline.config.diff import diff, render


def test_only_what_differs_is_shown() -> None:
    a = load(None, ["run.name=a", "optim.lr=0.5"])
    b = load(None, ["run.name=b", "optim.lr=0.25", "mix.mixup=0.2", "optim.nesterov=true"])
    found = diff(a, b)
    assert found == {"mix.mixup": (0.0, 0.2), "optim.lr": (0.5, 0.25), "optim.nesterov": (False, True)}
    assert [line.split() for line in render(found, ("A", "B")).splitlines()[1:]] == [
        ["mix.mixup", "0.0", "0.2"],
        ["optim.lr", "0.5", "0.25"],
        ["optim.nesterov", "false", "true"],
    ]
    assert render(diff(a, a), ("A", "A")) == "A and A are the same"


def test_bands_of_a_base_are_replaced_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("expect: {images: 9, top1: {5: [0.1, 0.2]}}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nexpect: {top1: {9: [0.3, 0.4]}}\n")
    assert load(tmp_path / "b.yaml").expect.top1 == {9: (0.3, 0.4)}
    assert load(tmp_path / "b.yaml").expect.images == 9
