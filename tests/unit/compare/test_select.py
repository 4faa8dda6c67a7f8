import pytest

from pipeline.compare.report import Wanted, make
from pipeline.compare.select import Place, find
from pipeline.errors import UsageError
from pipeline.track.shipper import sync


def names(runs):
    return [run.name for run in runs]


def test_runs_are_found_by_directory_folder_name_id_and_tag(write, tmp_path):
    write("one", [0.5], tags={"group": "wide"})
    write("two", [0.5], tags={"group": "wide"})
    write("three", [0.5], config={"track.experiment": "other"})
    root = tmp_path / "runs"
    place = Place(root)
    assert names(find([str(root / "two")], place)) == ["two"]
    assert names(find(["two", "one-ui", "two"], place)) == ["two", "one"]
    assert sorted(names(find([str(root)], place))) == ["one", "three", "two"]
    assert sorted(names(find(["tag:group=wide"], place))) == ["one", "two"]
    assert names(find([], Place(root, experiments=("other",)))) == ["three"]


def test_a_folder_that_happens_to_be_called_like_a_run_does_not_hide_it(write, tmp_path, monkeypatch):
    write("one", [0.5])
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path / "runs")
    (tmp_path / "one").mkdir()
    assert names(find(["one"], place)) == ["one"]
    with pytest.raises(UsageError, match="one: holds no run"):
        find(["./one"], place)
    assert names(find(["runs"], place)) == ["one"]
    write("inside", [0.5]).rename(tmp_path / "one" / "two")
    assert names(find(["one"], place)) == ["one"] and names(find(["one/"], place)) == ["inside"]


def test_a_run_that_is_not_there(write, tmp_path):
    write("one", [0.5])
    with pytest.raises(UsageError, match=r"nobody: no such run in .*runs; there are one"):
        find(["nobody"], Place(tmp_path / "runs", source="journal"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no run"):
        find([str(tmp_path / "empty")], Place(tmp_path / "runs"))


def test_a_sweep_is_its_members_in_their_order(sweep, write, tmp_path):
    place = Place(tmp_path / "runs", source="journal")
    for text in (str(sweep), "tag:sweep=rates", "rates", str(sweep / "parent"), "parent-uid"):
        found = find([text], place)
        assert [run.tags["sweep.member"] for run in found] == list("012345"), text
    found = make(find([str(sweep)], place), Wanted())
    assert (found.baseline, found.groups) == ("optim.lr=0.1", ["optim.lr=0.1"] * 3 + ["optim.lr=0.2"] * 3)
    assert list(found.differences["config"]) == ["seed", "optim.lr"] and not found.differences["environment"]
    assert [claim.verdict for claim in found.claims] == ["better"]
    write("alone", [0.5])
    assert names(find([], Place(tmp_path / "runs", experiments=("default",)))).count("rates") == 0


def test_a_sweep_in_mlflow_is_its_members(sweep, tmp_path, uri):
    for directory in (sweep / "parent", *(sweep / f"{i:03d}" for i in (3, 0))):
        sync(directory, uri, "tests")
    place = Place(tmp_path / "runs", uri, source="mlflow")
    for text in ("tag:sweep=rates", "rates", "parent-uid", str(sweep)):
        assert [run.tags["sweep.member"] for run in find([text], place)] == ["0", "3"], text
    assert len(find([], Place(tmp_path / "runs", uri, ("tests",), "mlflow"))) == 2
