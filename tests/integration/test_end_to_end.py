"""A run from beginning to end as a user sees it: tracked once, listed, evaluated again from its files."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from pipeline.train.standalone import Request, evaluate_file

SHORT = ("train.epochs=20st", "schedule.warmup=4st", "train.checkpoint_every=5st", "eval.every=10st", "train.log_every=2")


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipeline", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_a_run_on_two_ranks_that_is_killed_is_one_run_everywhere(trainer: Any, digits: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    where = (f"run.dir={runs / 'one'}", "run.name=one", "track.enabled=true", "track.experiment=e2e")
    process = trainer.start(*SHORT, *where, world=2)
    trainer.until(process, lambda line: bool(re.search(r"step\s+14/20 ", line)))
    trainer.kill(process)
    (died,) = json.loads(cli("runs", "--root", runs, "--json").stdout)
    assert died["status"] == "DIED"
    output = trainer.run(*SHORT, *where, world=2)

    (run,) = json.loads(cli("runs", "--root", runs, "--json").stdout)
    assert (run["name"], run["status"], Path(run["run_dir"])) == ("one", "FINISHED", runs / "one")
    assert run["mlflow_run_id"] in output and str(runs / "one") in output

    import mlflow  # the view, read with MLflow's own client

    client = mlflow.MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("e2e")
    assert experiment is not None
    (seen,) = client.search_runs([experiment.experiment_id])
    assert seen.info.run_id == run["mlflow_run_id"] and seen.info.status == "FINISHED"
    assert seen.data.params["batch.global"] == "32" and seen.data.tags["world_size"] == "2"
    assert seen.data.metrics["summary/val_top1"] == pytest.approx(run["summary"]["val_top1"])
    steps = [point.step for point in client.get_metric_history(seen.info.run_id, "train/loss")]
    assert steps == list(range(2, 21, 2))
    assert [p.step for p in client.get_metric_history(seen.info.run_id, "val/top1")] == [10, 20]
    files = {f.path for folder in ("config", "weights") for f in client.list_artifacts(seen.info.run_id, folder)}
    kept = {f"config/{name}" for name in ("config.yaml", "environment.json", "plan.json")}
    assert files - {"config/code.diff"} == kept | {"weights/model.safetensors", "weights/best.safetensors"}

    printed = json.loads(cli("eval", runs / "one", digits, "--json").stdout)
    files = [runs / "one" / "model.safetensors", runs / "one" / "checkpoints" / "step-000000020.pt"]
    for found in (printed, *(evaluate_file(Request(path, digits)) for path in files)):
        assert found is not None
        assert found["count"] == 360
        assert found["top1"] == run["summary"]["val_top1"]
        assert found["loss"] == pytest.approx(run["summary"]["val_loss"], rel=1e-5)
    with safe_open(runs / "one" / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == [str(i) for i in range(10)]


def test_torchvisions_weights_are_evaluated_with_a_config(digits: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=10).state_dict(), tmp_path / "r18.pth")
    overrides = ("model.name=resnet18", "eval.resize=32", "eval.crop=32", "batch.micro=64")
    done = cli("eval", tmp_path / "r18.pth", digits, *overrides, "--config", "configs/base.yaml")
    assert done.returncode == 0 and "360 images" in done.stdout, done.stderr
    without = cli("eval", tmp_path / "r18.pth", digits)
    assert without.returncode == 2 and "--config" in without.stderr


@pytest.mark.parametrize(
    "overrides",
    [
        (
            "model.name=timm/resnet10t",
            "model.n_blocks=null",
            "model.n_channels=null",
            "model.block=null",
            "model.first_kernel_size=null",
        ),
        ("data.executor=reference", "train.channels_last=false"),
        ("data.executor=synthetic", "data.synthetic_train=128", "data.synthetic_val=33", "data.synthetic_classes=7"),
        ("train.compile=true", "batch.micro=16"),
        ("train.precision=bf16", "optim.nesterov=true"),
        ("schedule.name=constant", "train.deterministic=true", "seed=5"),
    ],
    ids=["timm", "reference", "synthetic", "compile", "bf16", "constant"],
)
def test_the_other_ways_to_train(trainer: Any, overrides: tuple[str, ...]) -> None:
    output = trainer.run("train.epochs=3st", "schedule.warmup=0st", *overrides)
    assert "top-1" in output and "waiting for data" in output


def test_a_terminal_gets_a_bar(trainer: Any) -> None:
    ours, theirs = pty.openpty()
    command = trainer.command("train.epochs=6st", "schedule.warmup=0st", "train.log_every=2")
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=os.environ | {"COLUMNS": "120"})
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait() == 0
    text = seen.decode()
    assert "6/6" in text and "img/s" in text and "wait" in text and "\r" in text
    assert "val top1" in text and "   left " not in text
