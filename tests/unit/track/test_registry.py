import json

import pytest

from pipeline.track.journal import Journal
from pipeline.track.registry import register
from pipeline.track.shipper import sync


@pytest.fixture
def finish(tmp_path, begin, uri):
    """Ship a run with a model that has reached an accuracy; again and again if wanted."""

    def ship(uid, accuracy, times=1):
        run_dir = tmp_path / uid
        (run_dir / "mlflow_model").mkdir(parents=True)
        (run_dir / "mlflow_model" / "MLmodel").write_text(json.dumps({"flavors": {}, "uid": uid}))
        with Journal(run_dir) as journal:
            begin(journal, uid=uid)
            journal.event("model", path="mlflow_model", register="digits", metric="val_top1", value=accuracy)
        for _ in range(times):
            (run_dir / "mlflow.json").unlink(missing_ok=True)
            run_id = sync(run_dir, uri, "tests").run_id
        return run_id

    return ship


def test_the_champion_is_the_best_and_each_run_has_one_version(finish, stored):
    client = stored.client
    first = finish("a", 0.7, times=2)
    assert client.get_model_version_by_alias("digits", "champion").run_id == first
    finish("b", 0.6)
    assert client.get_model_version_by_alias("digits", "champion").run_id == first
    best = finish("c", 0.8)
    assert client.get_model_version_by_alias("digits", "champion").run_id == best
    finish("d", 0.8)
    assert client.get_model_version_by_alias("digits", "champion").run_id == best
    versions = client.search_model_versions("name='digits'")
    assert len(versions) == 4 and {v.tags["val_top1"] for v in versions} == {"0.7", "0.6", "0.8"}
    assert [f.path for f in client.list_artifacts(best, "model")] == ["model/MLmodel"]


class Slow:
    """A client of a registry of which one call fails."""

    def __init__(self, client, call, code):
        self._client, self._call, self._code = client, call, code

    def __getattr__(self, name):
        from mlflow.exceptions import MlflowException

        def fail(*_):
            raise MlflowException("timed out", error_code=self._code)

        return fail if name == self._call else getattr(self._client, name)


@pytest.mark.parametrize("call", ["get_model_version_by_alias", "create_registered_model"])
def test_a_registry_that_does_not_answer_makes_no_champion(finish, stored, call):
    best, worse = finish("a", 0.7), finish("b", 0.1)
    slow = Slow(stored.client, call, "TEMPORARILY_UNAVAILABLE")
    with pytest.raises(Exception, match="timed out"):
        register(slow, worse, "digits", {"val_top1": 0.1})
    assert stored.client.get_model_version_by_alias("digits", "champion").run_id == best


def test_a_champion_that_tells_no_metric_keeps_its_alias(finish, stored, caplog):
    client = stored.client
    best = finish("a", 0.7)
    champion = client.get_model_version_by_alias("digits", "champion")
    client.delete_model_version_tag("digits", champion.version, "val_top1")
    finish("b", 0.1)
    assert client.get_model_version_by_alias("digits", "champion").run_id == best
    assert "digits: version 1 stays the champion" in caplog.text
