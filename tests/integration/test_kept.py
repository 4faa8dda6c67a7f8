"""What a tracked run of several processes keeps, in its directory and in MLflow."""

import csv
import json
import socket
import warnings

from PIL import Image

from pipeline.compare.figures import measure
from pipeline.compare.read import read_journal
from pipeline.config import load
from pipeline.data.loader import eval_batch, open_dataset
from pipeline.track.cursor import Cursor
from pipeline.track.shipper import sync
from pipeline.world import World


def test_a_run_keeps_what_it_was_made_of_and_what_came_out(trainer, uri, tmp_path):
    from mlflow import MlflowClient

    model = ["track.model=true", "track.register=digits"]
    extra = [
        *model,
        "track.enabled=true",
        "track.pictures=true",
        f"track.uri={uri}",
        "track.tags.group=kept",
        "track.experiment=kept",
    ]
    trainer.run("train.epochs=1", "schedule.warmup=4st", "train.log_every=10", f"run.dir={tmp_path / 'run'}", *extra, world=2)
    run_dir = tmp_path / "run"

    with (run_dir / "evaluation" / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    run = read_journal(run_dir)
    hits = sum(round(float(row["top1"]) * int(row["images"])) for row in rows)
    assert sum(int(row["images"]) for row in rows) == 360
    assert hits / 360 == run.curves["val/top1"].values[-1]  # the matrix of two processes counts what the metric counts
    for name in ("pictures/first_batch.png", "pictures/curves.png", "evaluation/confusion.png", "evaluation/worst.png"):
        with Image.open(run_dir / name) as picture:
            assert min(picture.size) > 50
    assert json.loads((run_dir / "environment.json").read_text())["packages"]["torch"]
    assert json.loads((run_dir / "plan.json").read_text())["world_size"] == 2

    assert run.tags["group"] == "kept"
    assert "system/node0/cpu" in run.curves and "time/val_s" in run.curves
    found = measure(run, "val/top1", target=0.0)
    assert 0 < found.target.seconds <= found.seconds
    assert found.device_hours > 0 and abs(found.device_hours - 2 * found.seconds / 3600) < 1e-9

    client = MlflowClient(tracking_uri=uri)
    there = client.get_run(Cursor.load(run_dir).run_id)
    assert there.info.status == "FINISHED" and there.data.tags["group"] == "kept"
    inputs = {i.tags[0].value: i.dataset for i in there.inputs.dataset_inputs}
    assert json.loads(inputs["training"].profile) == {"num_rows": 1437, "num_classes": 10}
    assert json.loads(inputs["validation"].source)["uri"].endswith("digits/val")
    assert inputs["training"].digest != inputs["validation"].digest
    files = {
        f.path for folder in ("config", "pictures", "evaluation") for f in client.list_artifacts(there.info.run_id, folder)
    }
    assert {"config/environment.json", "config/plan.json", "pictures/first_batch.png", "evaluation/worst.png"} <= files

    champion = client.get_model_version_by_alias("digits", "champion")
    assert champion.run_id == there.info.run_id
    assert float(champion.tags["val_top1"]) == run.curves["summary/val_top1"].values[-1]
    for name in ("model.safetensors", "best.safetensors"):
        assert f"weights/{name}" in {f.path for f in client.list_artifacts(there.info.run_id, "weights")}
    data = open_dataset(load(run_dir / "config.yaml"), World()).val
    batch = eval_batch(load(run_dir / "config.yaml"), World(), data, range(len(data)))
    place = client.download_artifacts(there.info.run_id, "model", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow's own modules and loaders warn of
        import mlflow.pyfunc

        logits = mlflow.pyfunc.load_model(place).predict(batch.images.contiguous().float().numpy())
    assert (logits.argmax(1) == batch.labels.numpy()).mean() == run.curves["val/top1"].values[-1]


def test_a_run_whose_server_is_down_ends_well_and_is_brought_there_later(trainer, uri, tmp_path):
    from mlflow import MlflowClient

    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    short = ("train.epochs=1", "schedule.warmup=4st", "train.log_every=10")
    said = trainer.run(*short, f"run.dir={tmp_path / 'run'}", "track.enabled=true", f"track.uri={nobody}")
    assert said.count("training goes on and the journal keeps everything") == 1
    assert f"incomplete; later: python -m pipeline sync {tmp_path / 'run'}" in said
    run = read_journal(tmp_path / "run")
    assert run.status == "FINISHED" and 0 < run.curves["summary/tracking_wait"].values[-1] < 1
    found = sync(tmp_path / "run", uri, "later")
    there = MlflowClient(tracking_uri=uri).get_run(found.run_id)
    assert there.info.status == "FINISHED" and there.data.metrics["val/top1"] == run.curves["val/top1"].values[-1]
