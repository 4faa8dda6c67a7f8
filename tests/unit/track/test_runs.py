import json
import math
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compare.read import read_journal
from pipeline.errors import UsageError
from pipeline.track.cursor import Cursor
from pipeline.track.curves import collect
from pipeline.track.journal import Journal, read
from pipeline.track.lock import RunLock
from pipeline.track.runs import RunInfo, as_json, as_table, list_runs, read_run

SUMMARY = {"val_top1": 0.98125, "val_top5": 0.9999, "images_per_s": 812.34, "data_wait": 0.0512, "seconds": 75.2}


def finish(directory, begin, uid, **changes):
    directory.mkdir(parents=True)
    with Journal(directory) as journal:
        begin(journal, uid=uid, **changes)
        for step in range(50):
            journal.metrics(step, {"train/loss": 1.0})
        journal.metrics(50, {f"summary/{key}": value for key, value in SUMMARY.items()})
        journal.event("status", status="FINISHED", reason=None)


def test_a_finished_run_is_told_whole(tmp_path, begin):
    finish(tmp_path / "a", begin, "u1", name="digits")
    Cursor("http://h", "e", "r1").save(tmp_path / "a")
    (run,) = list_runs(tmp_path)
    first, last = [r for r, _ in read(tmp_path / "a" / "journal.jsonl")][:: 50 + 2]
    kept = {"train/loss": 1.0} | {f"summary/{key}": value for key, value in SUMMARY.items()}
    told = {"last": kept, "config": first["config"], "tags": first["tags"]}
    assert run == RunInfo("digits", tmp_path / "a", "u1", "FINISHED", "r1", first["t"], last["t"], 50, 50, SUMMARY, **told)


def test_a_stopped_run_tells_the_step_that_it_saved(tmp_path, begin):
    (tmp_path / "a").mkdir()
    with Journal(tmp_path / "a") as journal:
        begin(journal, uid="u1")
        journal.metrics(40, {"train/loss": 1.0})
        journal.event("status", status="SCHEDULED", reason="stopped", step=47)
    (run,) = list_runs(tmp_path)
    assert (run.status, run.step) == ("SCHEDULED", 47)


def test_runs_are_found_at_and_below_a_root_oldest_first(tmp_path, begin):
    finish(tmp_path / "z", begin, "u1")
    finish(tmp_path / "sweep" / "b", begin, "u2")
    finish(tmp_path / "mlartifacts" / "c", begin, "u3")
    finish(tmp_path / "z" / "inner", begin, "u4")
    for uid, t in (("u1", 1000), ("u2", 2000)):
        path = next(run.run_dir for run in list_runs(tmp_path) if run.uid == uid) / "journal.jsonl"
        head, _, rest = path.read_text().partition("\n")
        path.write_text(json.dumps(json.loads(head) | {"t": t}) + "\n" + rest)
    assert [run.uid for run in list_runs(tmp_path)] == ["u1", "u2"]
    assert [run.uid for run in list_runs(tmp_path / "z")] == ["u1"]
    assert list_runs(tmp_path / "nothing") == []


HOLD = """
import sys
from pathlib import Path
from pipeline.track.lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.readline()
"""


def test_running_is_a_living_process_and_died_a_dead_one(tmp_path, begin, child):
    with Journal(tmp_path) as journal:
        begin(journal)
        journal.event("status", status="FAILED", reason="x")
        assert read_run(tmp_path).status == "FAILED"
        begin(journal)
    holder = child(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    assert read_run(tmp_path).status == "RUNNING"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert read_run(tmp_path).status == "DIED"


def test_a_run_that_died_before_its_first_line_is_listed_by_its_directory(tmp_path):
    Journal(tmp_path).close()
    (run,) = list_runs(tmp_path)
    assert (run.name, run.status, run.started, run.step, run.total_steps) == (tmp_path.name, "DIED", None, 0, None)
    assert as_table([run]).splitlines()[1].split()[:4] == [tmp_path.name, "DIED", "0/?", "-"]


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 99)),
        st.tuples(st.just("status"), st.sampled_from(["RUNNING", "FINISHED", "FAILED", "KILLED", "SCHEDULED"])),
        st.tuples(st.just("curve"), st.integers(1, 9)),
        st.tuples(st.just("summary"), st.integers(0, 9)),
        st.tuples(st.just("log"), st.just('"kind": "metrics"')),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(EVENTS)
def test_the_quick_listing_tells_what_the_whole_journal_says(events):
    expected, step, values = {"status": "RUNNING", "total_steps": None}, 0, 0.0
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal, RunLock(Path(folder)):
        for kind, value in events:
            if kind == "run":
                step = min(step, value)
                about = {"config": {}, "plan": {"total_steps": value}, "tags": {}, "resumed_from_step": step or None}
                journal.event("run", uid=str(value), name="n", **about)
                expected |= {"status": "RUNNING", "total_steps": value}
            elif kind == "status":
                journal.event("status", status=value)
                expected["status"] = value
            elif kind == "log":
                journal.event("log", text=value)
            else:
                step, values = step + value, values + 1
                journal.metrics(step, {"summary/x" if kind == "summary" else "train/loss": values})
        run = read_run(Path(folder))
        expected |= {"step": step, "last": {key: found[-1] for key, (_, found) in collect(journal.path).items()}}
        expected["summary"] = {"x": expected["last"]["summary/x"]} if "summary/x" in expected["last"] else {}
    assert {key: getattr(run, key) for key in expected} == expected


def test_the_table_is_aligned_and_has_percentages(tmp_path, begin):
    finish(tmp_path / "a", begin, "u1", name="a")
    finish(tmp_path / "long-directory", begin, "u2", name="a-long-name")
    heading, first, second = as_table(list_runs(tmp_path)).splitlines()
    assert first.split("  ")[-1].strip() == str(tmp_path / "a")
    for told in ("98.12 %", "99.99 %", "812.3", "5.1 %", "1m15s", "50/50", "FINISHED"):
        assert first.index(told) == second.index(told)
    assert heading.index("top-1") + len("top-1") == first.index("98.12 %") + len("98.12 %")
    assert as_table([]).split() == heading.split()


def test_json_is_strict_and_has_the_promised_keys(tmp_path, begin):
    finish(tmp_path / "a", begin, "u1")
    with Journal(tmp_path / "a") as journal:
        journal.metrics(51, {"summary/odd": math.nan})
    (row,) = json.loads(json.dumps(as_json(list_runs(tmp_path)), allow_nan=False))
    assert {"name", "run_dir", "status", "mlflow_run_id", "summary"} <= row.keys()
    assert row["summary"] == SUMMARY | {"odd": None}
    assert row["run_dir"] == str(tmp_path / "a")


def test_a_journal_that_cant_be_read_is_named(tmp_path):
    with pytest.raises(UsageError, match=f"{tmp_path}: can't read the run: No such file or directory"):
        read_run(tmp_path)
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        read_run(tmp_path)


FLAWED = [
    {"kind": "run"},
    {"kind": "run", "uid": "u", "name": "n", "config": [], "plan": {}, "tags": {}},
    {"kind": "run", "uid": "u", "name": "n", "config": {}, "plan": {"total_steps": "many"}, "tags": {}},
    {"kind": "status"},
    {"kind": "metrics", "step": "7", "values": {}},
    {"kind": "metrics", "step": 7, "values": {"a": "much"}},
    {"kind": "metrics", "step": 7, "values": {"a": 10**400}},
    {"kind": "metrics", "step": 7, "values": {"a": [1]}},
    {"kind": "log", "t": "now"},
]


@pytest.mark.parametrize("line", FLAWED)
def test_a_line_that_is_not_whole_is_named_and_hides_no_other_run(tmp_path, begin, line, caplog):
    finish(tmp_path / "good", begin, "u1")
    finish(tmp_path / "bad", begin, "u2")
    journal = tmp_path / "bad" / "journal.jsonl"
    with journal.open("a") as file:
        file.write(json.dumps({"t": 1.0} | line) + "\n")
    for explicit in (read_run, list_runs, read_journal):
        with pytest.raises(UsageError, match=rf"{journal}: line 54 is no whole '{line['kind']}' line: .*; leave the run out$"):
            explicit(tmp_path / "bad")
    for _ in range(2):
        assert [run.uid for run in list_runs(tmp_path)] == ["u1"]
    (message,) = caplog.messages
    assert message.startswith(f"passed over: {journal}: line 54") and "\n" not in message


def test_a_line_nested_without_end_is_passed_over(tmp_path, begin):
    finish(tmp_path / "a", begin, "u1")
    with (tmp_path / "a" / "journal.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")
    assert read_run(tmp_path / "a").uid == "u1"
