import json
from pathlib import Path

import pytest

from pipeline.__main__ import main


@pytest.fixture
def root(write, tmp_path):
    write("base", [0.70], config={"optim.lr": 0.1})
    write("new", [0.65], config={"optim.lr": 0.2})
    return tmp_path / "runs"


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code


def test_a_regression_ends_with_one_and_one_line(root, capsys):
    condition = ["--fail-if", "val/top1 < baseline - 0.3%"]
    assert run("compare", "base", "new", "--root", root, *condition) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: --fail-if 'val/top1 < baseline - 0.3%' holds for optim.lr=0.2: val/top1 = 0.65")
    assert said.err.count("\n") == 1 and "val/top1 against steps" in said.out
    assert run("compare", "new", "base", "--root", root, *condition) == 0


def test_bad_input_ends_with_two_and_one_line(root, capsys):
    for wrong in (["nobody"], ["base", "--fail-if", "x y"], ["base", "--metric", "z"], ["base", "--baseline", "z"], []):
        assert run("compare", *wrong, "--root", root, "--source", "journal") == 2
    assert run("compare", "base", "new", "--root", root, "--fail-if", "") == 2
    assert run("compare", "a" * 300, "--root", root, "--source", "journal") == 2
    assert run("compare", "", "--root", root, "--source", "journal") == 2
    assert run("compare", "base", "--root", root, "--json", "--csv") == 2
    assert run("compare", "base", "--root", root, "--target", "nan") == 2
    assert run("compare", "base", "--root", root, "--target", "inf") == 2
    assert run("compare", "--json", "tag:host=here", "base", "--root", root) == 2 and not Path("tag:host=here").exists()
    assert run("runs", "--root", root, "--json", "watch") == 2
    assert run("runs", "--root", root / "nowhere") == 2
    assert run("runs", "--root", root / "nowhere", "watch") == 2
    assert run("runs", "--root", root, "--where", "x") == 2
    assert run("ui", "--root", root) == 2
    assert all(
        line.startswith(("error: ", "Error: ", "Usage: ", "Try ")) or not line for line in capsys.readouterr().err.splitlines()
    )


def test_json_csv_and_html_go_where_they_are_asked_to(root, tmp_path, capsys):
    files = [tmp_path / name for name in ("c.json", "c.csv", "c.html")]
    assert run("compare", root, "--json", files[0], "--csv", files[1], "--html", files[2]) == 0
    told = capsys.readouterr()
    assert told.out == "" and told.err.splitlines() == [f"wrote {files[i]}" for i in (2, 0, 1)]
    assert [r["name"] for r in json.loads(files[0].read_text())["runs"]] == ["base", "new"]
    assert len(files[1].read_text().splitlines()) == 3 and files[2].stat().st_size > 5000
    assert run("compare", root, "--json") == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "val/top1"


def test_a_listing_of_nothing_says_where_it_looked(root, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("runs", "--root", tmp_path / "empty") == run("runs", "--root", root, "--where", "val/top1>0.99") == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [f"no run in {tmp_path / 'empty'}", f"no run that fulfils every --where in {root}"]


def test_runs_are_listed_and_watched(root, tmp_path, capsys):
    assert run("runs", "--root", root, "--where", "val/top1>0.66", "--json") == 0
    assert [r["name"] for r in json.loads(capsys.readouterr().out)] == ["base"]
    assert run("runs", "--root", root, "--json", tmp_path / "runs.json") == 0
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 2
    capsys.readouterr()
    for words in (["--root", root, "watch"], ["watch", "--root", root]):
        assert run("runs", *words) == 0
        assert capsys.readouterr().out == "no run is training here\n"


def test_hostile_names_do_not_reach_the_terminal(root, write, capsys):
    for name in ("base", "new"):
        journal = root / name / "journal.jsonl"
        hostile = journal.read_text().replace(f'"name": "{name}"', f'"name": "{name}\\u001b[2J\\nx"')
        journal.write_text(hostile.replace('"optim.lr"', '"optim\\u009b.lr"'))
    for command in (["compare", root], ["runs", "--root", root], ["compare", root, "--fail-if", "val/top1 < baseline"]):
        run(*command)
    run("compare", "nobody", "--root", root)
    told = capsys.readouterr()
    assert "base\\x1b[2J" in told.out and "new\\x1b[2J" in told.err
    assert all(line.isprintable() for line in (told.out + told.err).split("\n"))
