import math

import numpy as np
import pytest

from pipeline.compare.select import Place, find
from pipeline.compare.store import Store
from pipeline.errors import UsageError
from pipeline.track.shipper import sync


def test_mlflow_tells_the_same_as_the_journal(write, tmp_path, uri):
    directory = write("one", [0.5, math.inf, math.nan, 0.8], config={"name": "on", "sizes": [1, 2]}, tags={"group": "wide"})
    run_id = sync(directory, uri, "tests").run_id
    place = Place(tmp_path / "runs", uri, source="mlflow")
    (there,) = find(["one"], place)
    (here,) = find([str(directory)], Place(tmp_path / "runs"))
    assert (there.name, there.uid, there.status, there.worlds) == (here.name, here.uid, here.status, here.worlds)
    assert (there.config, there.plan) == (here.config, here.plan)
    assert there.tags["group"] == "wide"
    slow = Store(uri)
    slow._database = None  # as of a store that is a server
    (asked,) = slow.find("one")
    assert asked.curves.keys() == there.curves.keys()
    for key in ("val/top1", "val/loss", "train/loss", "time/active_s", "perf/data_wait"):
        for run in (there, asked):
            np.testing.assert_array_equal(run.curves[key].steps, here.curves[key].steps)
            np.testing.assert_array_equal(run.curves[key].values, here.curves[key].values)
    for text in (run_id, "one-uid", "tag:group=wide"):
        assert [run.uid for run in find([text], place)] == ["one-uid"]
    # journals come first, and without them MLflow is asked
    directory.joinpath("journal.jsonl").unlink()
    assert find(["one"], Place(tmp_path / "runs", uri))[0].source == f"{uri} {run_id}"


def test_what_mlflow_cant_tell_is_said_in_one_line(write, tmp_path, uri):
    sync(write("one", [0.5]), uri, "tests")
    with pytest.raises(UsageError, match="--experiment nowhere: no such experiment in sqlite.*; there are .*tests"):
        Store(uri, ["nowhere"])
    with pytest.raises(UsageError, match=r"nobody: no such run in sqlite:"):
        find(["nobody"], Place(tmp_path / "runs", uri, ("tests",), "mlflow"))
    with pytest.raises(UsageError, match="give the run's id"):
        find(["it's"], Place(tmp_path / "runs", uri, (), "mlflow"))
    with pytest.raises(UsageError, match=r"^http://\*\*\*@127.0.0.1:1: .*check the address"):
        Store("http://me:hidden@127.0.0.1:1")


def test_without_names_all_runs_of_an_experiment_are_meant_whether_here_or_in_mlflow(write, tmp_path, uri, monkeypatch):
    for name, experiment in (("away", "tests"), ("here", "tests"), ("other", "else"), ("untracked", "local")):
        directory = write(name, [0.5], config={"track.experiment": experiment})
        if name != "untracked":
            sync(directory, uri, experiment)
    tmp_path.joinpath("runs", "away", "journal.jsonl").unlink()
    monkeypatch.setattr("pipeline.compare.store._PAGE", 1)
    assert sorted(run.name for run in Store(uri).all()) == ["away", "here", "other"]

    def names(*experiments, source="auto"):
        return [run.name for run in find([], Place(tmp_path / "runs", uri, experiments, source))]

    assert names("tests") == ["here", "away"]
    assert names("tests", source="journal") == ["here"]
    assert sorted(names("tests", source="mlflow")) == ["away", "here"]
    assert names("local") == ["untracked"]
    with pytest.raises(UsageError, match="--experiment nowhere: no such experiment in .*there are .*else, local, .*tests"):
        names("nowhere")
    with pytest.raises(UsageError, match="--experiment nowhere: no such experiment in .*runs; there are else, local, tests"):
        names("tests", "nowhere", source="journal")
    with pytest.raises(UsageError, match="--experiment template: holds no run in .*; train something first"):
        names("template")


def test_a_store_that_somebody_names_has_to_be_there(write, tmp_path):
    write("one", [0.5])
    for uri, source in ((f"sqlite:///{tmp_path / 'no.db'}", "auto"), (None, "mlflow")):
        with pytest.raises(UsageError, match="no such database"):
            find(["nobody"], Place(tmp_path / "runs", uri, source=source))
    with pytest.raises(UsageError, match="nobody: no such run in .*runs; there are one"):
        find(["nobody"], Place(tmp_path / "runs"))


def test_directories_mean_their_runs_in_mlflow_too(write, tmp_path, uri):
    for name in ("here", "later"):
        write(name, [0.4, 0.6])
    sync(tmp_path / "runs" / "here", uri, "tests")
    place = Place(tmp_path / "runs", uri, source="mlflow")
    for text in (tmp_path / "runs" / "here", tmp_path / "runs"):
        (run,) = find([str(text)], place)
        assert run.source == uri or uri in run.source
    with pytest.raises(UsageError, match=r"later: none of its runs is in .*pipeline sync"):
        find([str(tmp_path / "runs" / "later")], place)
