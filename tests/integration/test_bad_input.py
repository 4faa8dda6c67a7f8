"""What a user can get wrong: one line that names the thing and the remedy, and nothing left behind."""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.__main__ import main

Run = Callable[..., tuple[int, str, str]]
FEW = ("train.epochs=2st", "schedule.warmup=0st")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture
def own_digits(digits: Path, tmp_path: Path) -> Path:
    """A copy of the digits that a test may damage; a few of each class are enough."""
    root = tmp_path / "own"
    for path in digits.glob("*/*/*"):
        if int(path.stem) < 400:
            target = root / path.relative_to(digits)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return root


def train_arguments(trainer: Any, *overrides: object) -> list[str]:
    return trainer.command(*map(str, (*FEW, *overrides)))[3:]


def one_line(code: int, err: str, *parts: str, expect: int = 2) -> None:
    assert code == expect, err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    for part in parts:
        assert part in lines[0], (part, lines[0])


def no_root(root: Path) -> Path:
    return root / "missing"


def empty_root(root: Path) -> Path:
    shutil.rmtree(root)
    root.mkdir()
    return root


def empty_class(root: Path) -> Path:
    for path in (root / "train" / "3").iterdir():
        path.unlink()
    return root


def other_classes(root: Path) -> Path:
    (root / "val" / "9").rename(root / "val" / "nine")
    return root


def unreadable_header(root: Path) -> Path:
    next((root / "train" / "3").iterdir()).write_text("not an image")
    return root


def cut_short(root: Path) -> Path:
    for path in (root / "train").glob("*/*"):
        path.write_bytes(path.read_bytes()[:-400])
    return root


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (no_root, ["data.root", "missing", "is not a folder"]),
        (empty_root, ["data.root", "is empty", "train/<class>"]),
        (empty_class, ["own/train", "no image (3)"]),
        (other_classes, ["nine", "classes only in"]),
        (unreadable_header, ["own/train", "3/", "remove"]),
    ],
)
def test_data_that_cannot_be_used(
    run: Run, trainer: Any, own_digits: Path, damage: Callable[[Path], Path], parts: list[str]
) -> None:
    root = damage(own_digits)
    code, _, err = run(*train_arguments(trainer, f"data.root={root}"))
    one_line(code, err, *parts)
    assert not (trainer.tmp / "runs").exists()


@pytest.mark.parametrize("executor", ["dali", "reference"])
def test_an_image_cut_short_is_named_while_training(run: Run, trainer: Any, own_digits: Path, executor: str) -> None:
    root = cut_short(own_digits)
    code, _, err = run(*train_arguments(trainer, f"data.root={root}", f"data.executor={executor}"))
    one_line(code, err, str(root / "train"), ".jpeg", "remove")


def test_an_image_cut_short_ends_every_rank(trainer: Any, own_digits: Path) -> None:
    root = cut_short(own_digits)
    output = trainer.run(*FEW, f"data.root={root}", world=2, expect=1)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert 1 <= len(errors) <= 2 and all(f"{root / 'train'}: " in line and ".jpeg" in line for line in errors), errors
    codes = {int(code) for code in re.findall(r"exitcode\s*: (-?\d+) ", output)}
    assert 2 in codes and codes <= {2, -signal.SIGTERM}  # who was not first may be ended by torchrun


def test_a_world_that_does_not_divide_the_work_says_so_once(trainer: Any) -> None:
    output = trainer.run(*FEW, world=3, expect=1)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "4 micro-batches" in line and "start 1, 2 or 4 of them" in line
    assert not (trainer.tmp / "runs").exists()


def test_a_port_in_use_is_named(trainer: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        done = subprocess.run(trainer.command(*FEW), env=os.environ | place, capture_output=True, text=True, check=False)
    one_line(done.returncode, done.stderr, f"127.0.0.1:{port}", "in use", "--master-port")


def test_a_peer_that_does_not_come_is_not_waited_for_longer_than_allowed(trainer: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = trainer.command(*FEW, "dist.timeout_s=2")
    done = subprocess.run(command, env=os.environ | place, capture_output=True, text=True, check=False, timeout=60)
    one_line(done.returncode, done.stderr, f"127.0.0.1:{port}", "rank 0 of 2", expect=69)


@pytest.mark.parametrize("where", ["/proc/run", "{file}/run"])
def test_a_run_directory_that_cannot_be_written(run: Run, trainer: Any, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    place = where.format(file=tmp_path / "file")
    code, _, err = run(*train_arguments(trainer, f"run.dir={place}"))
    one_line(code, err, place, "run.dir")


def test_checkpoints_that_are_all_truncated(run: Run, trainer: Any, digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert run(*train_arguments(trainer, f"run.dir={run_dir}"))[0] == 0
    (path,) = (run_dir / "checkpoints").glob("step-*.pt")  # the best is another name of the same file
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.97)])
    one_line(*run("eval", path, digits)[::2], str(path))
    for _ in range(2):
        code, out, err = run(*train_arguments(trainer, f"run.dir={run_dir}"))
        one_line(code, err, "every checkpoint is damaged", f"{path.name}.damaged", "new run.dir")
    assert (run_dir / "checkpoints" / f"{path.name}.damaged").is_file()


def test_a_checkpoint_of_another_model(run: Run, trainer: Any, digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert run(*train_arguments(trainer, f"run.dir={run_dir}"))[0] == 0
    other = ("model.n_blocks=[2, 1]", "run.allow_changes=true", "train.epochs=3st")
    code, _, err = run(*train_arguments(trainer, f"run.dir={run_dir}", *other))
    one_line(code, err, "step-000000002.pt", "made for another model", "model.")
    code, _, err = run("eval", run_dir / "checkpoints" / "best.pt", digits, "model.n_channels=[8, 32]")
    one_line(code, err, "best.pt", "made for another model")


def test_a_directory_in_use_is_not_shared(run: Run, trainer: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = trainer.start("train.epochs=9999st", "train.log_every=1", f"run.dir={run_dir}")
    trainer.until(process, lambda line: "step" in line and "loss" in line)
    code, _, err = run(*train_arguments(trainer, "train.epochs=9999st", "train.log_every=1", f"run.dir={run_dir}"))
    one_line(code, err, str(run_dir), "in use", f"pid {process.pid}")


def test_a_loss_that_explodes_is_noticed(run: Run, trainer: Any, tmp_path: Path) -> None:
    code, _, err = run(*train_arguments(trainer, "optim.lr=1e30", "optim.lr_per=null", "train.epochs=6st"))
    one_line(code, err, "not finite", "optim.lr", expect=70)


def test_a_wrong_config_is_refused_before_anything_is_written(run: Run, trainer: Any) -> None:
    code, _, err = run(*train_arguments(trainer, "optim.lrr=1", "batch.micro=0", "optm.lr=2"))
    assert code == 2 and len(err.splitlines()) == 3 and "did you mean optim.lr?" in err and "Traceback" not in err
    assert not (trainer.tmp / "runs").exists()


def test_a_traceback_is_shown_on_request(run: Run, trainer: Any) -> None:
    code, _, err = run(*train_arguments(trainer, "data.root=/nowhere"), "--traceback")
    assert code == 2 and "Traceback" in err and "/nowhere" in err


@pytest.mark.parametrize("arguments", [["nonsense"], ["train"], ["eval", "x"], ["config", "show", "no/such.yaml"], ["sync"]])
def test_wrong_command_lines_exit_with_2(run: Run, arguments: list[str]) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and err and "Traceback" not in err


def test_a_damaged_checkpoint(run: Run, trainer: Any, digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert run(*train_arguments(trainer, f"run.dir={run_dir}"))[0] == 0
    (path,) = (run_dir / "checkpoints").glob("step-*.pt")
    data = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["model"]["fc.weight"].numpy().tobytes()
    data[data.index(weight)] ^= 1
    path.write_bytes(data)
    longer = ("train.epochs=4st", "run.allow_changes=true")
    one_line(*run(*train_arguments(trainer, f"run.dir={run_dir}", *longer))[::2], str(path.parent), path.name, "damaged")


def test_a_damaged_checkpoint_is_passed_over(run: Run, trainer: Any, tmp_path: Path) -> None:
    arguments = train_arguments(trainer, f"run.dir={tmp_path / 'run'}", "train.checkpoint_every=1st", "train.epochs=3st")
    assert run(*arguments)[0] == 0
    journal, path = tmp_path / "run" / "journal.jsonl", tmp_path / "run" / "checkpoints" / "step-000000003.pt"
    journal.write_text("".join(line for line in journal.read_text().splitlines(True) if "FINISHED" not in line))
    final = load_file(tmp_path / "run" / "model.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    code, out, err = run(*arguments)
    assert code == 0 and "going on after step 2" in out, err
    (line,) = [line for line in out.splitlines() if f"warning: {path}: " in line]
    assert line.endswith("kept as step-000000003.pt.damaged")
    again = load_file(tmp_path / "run" / "model.safetensors")
    assert all(again[name].equal(tensor) for name, tensor in final.items())


def test_a_run_is_not_continued_on_other_classes(run: Run, trainer: Any, own_digits: Path, tmp_path: Path) -> None:
    arguments = (f"data.root={own_digits}", f"run.dir={tmp_path / 'run'}", "run.allow_changes=true")
    assert run(*train_arguments(trainer, *arguments))[0] == 0
    for split in ("train", "val"):
        (own_digits / split / "0").rename(own_digits / split / "zero")
    code, _, err = run(*train_arguments(trainer, *arguments, "train.epochs=4st"))
    one_line(code, err, "other classes", "zero")


def test_a_run_is_not_shortened_below_what_is_done(run: Run, trainer: Any, tmp_path: Path) -> None:
    assert run(*train_arguments(trainer, f"run.dir={tmp_path / 'run'}"))[0] == 0
    shorter = ("train.epochs=1st", f"run.dir={tmp_path / 'run'}", "run.allow_changes=true")
    code, _, err = run(*train_arguments(trainer, *shorter))
    one_line(code, err, "step 2", "raise train.epochs")


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_pixels_that_executors_read_differently_are_refused(run: Run, trainer: Any, own_digits: Path, mode: str) -> None:
    Image.new(mode, (20, 20)).save(own_digits / "train" / "3" / "deep.tiff")
    code, _, err = run(*train_arguments(trainer, f"data.root={own_digits}"))
    one_line(code, err, "deep.tiff", "convert it to 8 bits")


def test_a_tracking_address_that_is_none(run: Run, trainer: Any) -> None:
    code, _, err = run(*train_arguments(trainer, "track.enabled=true", "track.uri=foo"))
    one_line(code, err, "track.uri", "foo")
    assert not (trainer.tmp / "runs").exists()


def test_no_password_is_written_anywhere(trainer: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    address = "track.uri=http://bob:s3cr3tpw@127.0.0.1:9"
    output = trainer.run(*FEW, f"run.dir={run_dir}", "track.enabled=true", address, "track.drain_s=1")
    assert "s3cr3tpw" not in output and "sync" in output
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"s3cr3tpw" in path.read_bytes()]


def test_rank_0_may_take_longer_than_the_time_out_to_index(
    trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow").mkdir()
    slow = "import time, pipeline.data.index as i\nb = i.build\ni.build = lambda *a, **k: time.sleep(4) or b(*a, **k)\n"
    (tmp_path / "slow" / "sitecustomize.py").write_text(slow)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'slow'}:{Path.cwd()}")
    trainer.run(*FEW, "dist.timeout_s=3", f"data.cache={tmp_path / 'cache'}", world=2)


def test_a_reader_that_goes_does_not_stop_the_training(trainer: Any, tmp_path: Path) -> None:
    process = trainer.start(*FEW, "train.log_every=1", f"run.dir={tmp_path / 'run'}")
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
