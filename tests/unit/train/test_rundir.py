from pathlib import Path

import pytest

from pipeline.config import Config, load
from pipeline.errors import ConfigError, UsageError
from pipeline.train import rundir


def cfg(*overrides: str) -> Config:
    return load(None, ["run.name=x", *overrides])


def test_new_runs_get_directories_of_their_own(tmp_path: Path) -> None:
    one, two = (rundir.prepare(c, rundir.choose(c)) for c in [cfg(f"run.root={tmp_path}")] * 2)
    assert one.path != two.path and one.uid != two.uid and one.fresh and one.path.parent == tmp_path
    shown = load(one.path / "config.yaml")
    assert shown.run.dir == one.path and shown.optim == cfg().optim


def test_a_run_is_found_by_the_end_of_its_directorys_name(tmp_path: Path) -> None:
    run = rundir.prepare(cfg(f"run.root={tmp_path}"), rundir.choose(cfg(f"run.root={tmp_path}")))
    assert run.uid.startswith(run.path.name[-6:]) and len(run.uid) == 32


def test_a_run_is_recognised_by_its_own_config_file(tmp_path: Path) -> None:
    first = rundir.prepare(cfg(f"run.dir={tmp_path}"), tmp_path)
    again = load(tmp_path / "config.yaml")
    found = rundir.prepare(again, rundir.choose(again))
    assert (found.uid, found.name, found.fresh) == (first.uid, "x", False)


@pytest.mark.parametrize(
    "harmless", ["track.enabled=false", "data.threads=9", "train.log_every=7", "dist.timeout_s=5", "eval.batch=3"]
)
def test_what_does_not_change_learning_may_differ(tmp_path: Path, harmless: str) -> None:
    rundir.prepare(cfg(f"run.dir={tmp_path}"), tmp_path)
    assert not rundir.prepare(cfg(f"run.dir={tmp_path}", harmless), tmp_path).fresh


@pytest.mark.parametrize("change", ["optim.lr=9", "seed=1", "model.name=resnet18", "data.flip=0.1", "train.epochs=91"])
def test_what_changes_learning_is_refused_by_name(tmp_path: Path, change: str) -> None:
    rundir.prepare(cfg(f"run.dir={tmp_path}"), tmp_path)
    changed = cfg(f"run.dir={tmp_path}", change)
    with pytest.raises(ConfigError, match=rf"{change.partition('=')[0]} was .* run.allow_changes=true"):
        rundir.prepare(changed, tmp_path)
    rundir.prepare(cfg(f"run.dir={tmp_path}", change, "run.allow_changes=true"), tmp_path)


def test_a_run_that_goes_on_without_its_list_of_bad_images_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rundir.prepare(cfg(f"run.dir={tmp_path}", "data.quarantine=bad.tsv"), tmp_path)
    rundir.prepare(cfg(f"run.dir={tmp_path}", "data.quarantine=bad.tsv"), tmp_path)
    assert capsys.readouterr().err == ""
    for other, said in (("null", "not set"), ("new.tsv", "new.tsv")):
        rundir.prepare(cfg(f"run.dir={tmp_path}", f"data.quarantine={other}"), tmp_path)
        assert f"warning: {tmp_path}: data.quarantine was bad.tsv, is {said}; what only" in capsys.readouterr().err


def test_directories_that_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"not empty \(it holds 'thesis.tex'\)"):
        rundir.choose(cfg(f"run.dir={tmp_path}"))
    with pytest.raises(UsageError, match="can't make the run directory"):
        rundir.choose(cfg(f"run.dir={tmp_path / 'thesis.tex' / 'run'}"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    with pytest.raises(UsageError, match="unreadable"):
        rundir.prepare(cfg(), tmp_path / "broken")


@pytest.mark.parametrize(
    "text", ["[1]", '{"uid": 3, "name": "x"}', '{"uid": "a", "name": null}', '{"uid": "../a", "name": "x"}', "\x00"]
)
def test_a_forged_run_json_is_one_line(tmp_path: Path, text: str) -> None:
    rundir.prepare(cfg(f"run.dir={tmp_path}"), tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match=r"run.json or config.yaml is unreadable .*; choose a new run.dir$") as caught:
        rundir.prepare(cfg(f"run.dir={tmp_path}"), tmp_path)
    assert "\n" not in str(caught.value)
