from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.track import mapping


def test_params_are_the_config_and_the_plan_as_text():
    record = {"config": {"optim.lr": 0.5, "run.dir": None, "flag": True, "mean": [0.5, 1], "name": "a"}, "plan": {"steps": 7}}
    assert mapping.params(record) == {
        "optim.lr": "0.5",
        "run.dir": "null",
        "flag": "true",
        "mean": "[0.5, 1]",
        "name": "a",
        "plan.steps": "7",
    }


def test_long_params_are_cut():
    assert mapping.params({"config": {"a": "x" * 9000}, "plan": {}}) == {"a": "x" * 6000}


def test_changes_are_tags_of_what_is_there_with_another_value():
    assert mapping.changes({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == {"changed.b": "3"}


def test_tags_have_the_commit_under_mlflows_own_name_and_the_step_of_a_resume():
    record = {"uid": "u", "tags": {"git.commit": "c0ffee", "n": 2}, "resumed_from_step": 0}
    found = mapping.tags(record, Path("/runs/a"))
    assert found == {
        "git.commit": "c0ffee",
        "n": "2",
        "run.uid": "u",
        "run.dir": "/runs/a",
        "mlflow.source.git.commit": "c0ffee",
        "resumed_from_step": "0",
    }
    assert "resumed_from_step" not in mapping.tags(record | {"resumed_from_step": None}, Path("a"))


@pytest.mark.parametrize(("text", "taken"), [("val/top1", "val/top1"), ("a,b", "a_b"), ("../a//b/", "a/b"), ("/", "_")])
def test_names(text, taken):
    assert mapping.name(text) == taken


@settings(deadline=None)
@given(st.text(max_size=300))
def test_mlflow_takes_every_name(text):
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(mapping.name(text))
