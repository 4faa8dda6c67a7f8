"""The degradation experiment at its smallest: really trained, really drawn."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import ConfigError, DataError, TrainingError
from pipeline.experiment import degradation, sweep
from pipeline.experiment.degradation import Result

SMALL = ("train.epochs=1", "data.resolution=8", "eval.resize=8", "eval.crop=8", "batch.global=480", "batch.micro=480")


def test_the_shipped_experiment_is_sound() -> None:
    found = sweep.read(Path("configs/experiments/degradation.yaml"))
    assert {name.split("-")[0] for name in found.runs} == {"plain", "residual"} and len(found.runs) == 10


def test_runs_are_trained_read_and_drawn(digits: Path, tmp_path: Path) -> None:
    file = Path("configs/experiments/degradation.yaml")
    whole = sweep.read(file)
    few = sweep.Sweep(whole.config, {name: whole.runs[name] for name in ("plain-8", "residual-8")})
    said: list[str] = []
    keys = (*SMALL, "train.log_every=1", f"data.root={digits}")
    sweep.carry_out(few, tmp_path, keys, said.append)
    assert sorted(said) == ["plain-8: done", "residual-8: done"]
    plain, residual = degradation.read(tmp_path, list(few.runs))
    assert (plain.depth, plain.shortcut, residual.depth, residual.shortcut) == (8, None, 8, "A")
    assert plain.images == (1437, 360)
    assert [step for step, _ in plain.train] == [1, 2] and 0 <= plain.final[1] <= 100
    deeper = [
        Result("p20", 20, None, plain.train, [(2, 99.0)], plain.images),
        Result("r20B", 20, "B", plain.train, [(2, 1.0)], plain.images),
    ]
    results = [plain, residual, Result("r20", 20, "A", plain.train, [(2, 0.5)], plain.images), *deeper]
    table, options = degradation.tables(results).values()
    assert [row[0] for row in table[1:]] == ["8", "20"] and table[2][2] == "99.00" and table[2][4] == "0.50"
    assert [row[1] for row in options[1:]] == ["A", "B"]
    markdown, png = degradation.write(results, tmp_path)
    assert "| 20 | A |" in markdown.read_text() and "one seed: no claim" in markdown.read_text()
    with Image.open(png) as image:
        assert image.width > 1000


def test_one_seed_claims_nothing() -> None:
    def result(depth: int, train: float, val: float) -> Result:
        return Result(str(depth), depth, None, [(1, train)], [(1, val)], (1000, 400))

    assert degradation.seen([result(8, 50.0, 20.0), result(20, 60.0, 10.0)]) == [
        "plain: from 8 to 20 layers the training error rises from 50.00 to 60.00 % (one seed: no claim)",
        "plain: from 8 to 20 layers the test error falls from 20.00 to 10.00 % (one seed: no claim)",
        "a difference needs several seeds of both: seed=1 with another --out, and so on",
    ]
    assert degradation.seen([result(8, 50.0, 20.0)]) == []


def test_bad_files_and_failed_runs_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    with pytest.raises(ConfigError, match="can't read the experiment"):
        sweep.read(file)
    file.write_text("runs: 3\n")
    with pytest.raises(ConfigError, match="must have `config:`"):
        sweep.read(file)
    (tmp_path / "base.yaml").write_text("train: {epochs: 1}\n")
    file.write_text("config: base.yaml\nruns: {a: [optim.lrr=3]}\n")
    with pytest.raises(ConfigError, match="runs: a: command line: optim.lrr: unknown key; did you mean optim.lr"):
        sweep.read(file)
    with pytest.raises(ConfigError, match="^/dev/zero: can't read the experiment: not a regular file"):
        sweep.read(Path("/dev/zero"))
    broken = sweep.Sweep(tmp_path / "missing.yaml", {"a": ()})
    with pytest.raises(TrainingError, match="a: ended with exit code 2"):
        sweep.carry_out(broken, tmp_path / "out", (), lambda line: None)
    (tmp_path / "out" / "a").mkdir()
    (tmp_path / "out" / "a" / "journal.jsonl").touch()
    with pytest.raises(DataError, match="holds no finished run"):
        degradation.read(tmp_path / "out", ["a"])
