import json
import time
from pathlib import Path
from typing import Any

import pytest

from launch import preflight
from launch.snapshot import Folder
from pipeline.config import load
from pipeline.errors import TransientError, UsageError
from pipeline.findings import render


def test_a_machine_that_is_fit(digits: Path, tmp_path: Path) -> None:
    found = preflight.run(load(None, [f"data.root={digits}", f"run.root={tmp_path / 'runs'}"]), None, 1)
    assert not [one for one in found if one.state == "failed"], render(found)
    assert {"data", "run directory", "file system", "disk", "GPUs", "tracker"} <= {one.check for one in found}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    cfg = load(None, [f"data.root={tmp_path}", "run.root=/proc/runs", "track.uri=http://127.0.0.1:9"])
    found = {one.check: one for one in preflight.run(cfg, None, 1)}
    assert "no train and no val folder" in found["data"].said
    assert found["tracker"].state == "warning" and "goes on without it" in found["tracker"].said


def test_the_file_system() -> None:
    mounts = "x / ext4 rw\nhost:/x /proc nfs4 rw\n"
    assert preflight.file_system(Path("/proc/a/b"), mounts) == "nfs4"
    assert preflight.file_system(Path("/usr/runs"), mounts) == "ext4"


def test_settings_that_bring_jobs_back() -> None:
    good = {"JobRequeue": "1", "PreemptType": "preempt/qos", "PreemptMode": "GANG,REQUEUE", "KillWait": "30 sec"}
    send = {"SlurmctldParameters": "preempt_send_user_signal"}
    there = {"low": {"GraceTime": "60"}, "rude": {"GraceTime": "0"}}
    assert [one.check for one in preflight.requeueing(good | send, there, "low")] == ["JobRequeue"]
    assert [one.check for one in preflight.requeueing(good, there, None)] == [
        "JobRequeue",
        "preempt_send_user_signal",
        "GraceTime",
    ]
    bad = {"JobRequeue": "0", "PreemptType": "preempt/qos", "PreemptMode": "CANCEL"}
    assert [one.check for one in preflight.requeueing(bad | send, {}, None)] == ["JobRequeue", "PreemptMode"]


def write(folder: Path, node: str, **changed: object) -> None:
    one = {"node": node, "time": time.time(), "versions": {"torch": "1"}, "failed": []} | changed
    (folder / f"{node}.json").write_text(json.dumps(one))


def test_unfit_nodes_are_named_and_kept(tmp_path: Path) -> None:
    nodes = tmp_path / "launch" / "nodes" / "1-0"
    nodes.mkdir(parents=True)
    for node in ("a", "b", "c"):
        write(nodes, node)
    preflight.compare(nodes, 3, 1)
    write(nodes, "d", versions={"torch": "2"})
    write(nodes, "e", failed=["no data"])
    write(nodes, "f", time=time.time() + 100)
    with pytest.raises(UsageError, match=r"node d: has torch 2, not 1; node e: no data; node f: its clock is .* ahead"):
        preflight.compare(nodes, 6, 1)
    assert preflight.failed_nodes(Folder(tmp_path)) == ["d", "e", "f"]
    for node in ("d", "e", "f"):
        (nodes / f"{node}.json").unlink()
    preflight.compare(nodes, 3, 1)
    assert preflight.failed_nodes(Folder(tmp_path)) == []


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_file_is_no_place_for_runs(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    found = preflight.writable(tmp_path / "file" / below)
    assert found.state == "failed" and "file: not a folder" in found.said


def test_a_node_that_does_not_see_the_run_directory(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with pytest.raises(TransientError, match=r"1 of 2 nodes did not report in .* \(only a\)"):
        preflight.compare(tmp_path, 2, patience_s=0.2)


def test_a_clock_alone_is_trouble_that_may_pass(tmp_path: Path) -> None:
    nodes = tmp_path / "launch" / "nodes" / "1-0"
    nodes.mkdir(parents=True)
    write(nodes, "a")
    write(nodes, "b", time=time.time() - 6)
    with pytest.raises(TransientError, match="node a: its clock is 6.0s ahead of the others'"):
        preflight.compare(nodes, 2, 1)


def test_a_node_that_stands_still_while_it_reports_has_no_wrong_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = tmp_path / "launch" / "nodes" / "1-0"
    real, stalls = preflight.write_json, [6.0]

    def slow(path: Path, value: Any, wait_s: float = 0.0) -> None:
        if stalls:  # the clocks go on, the process does not
            stall = stalls.pop()
            value["time"] -= stall
            monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + stall)
        real(path, value, wait_s)

    monkeypatch.setattr(preflight, "write_json", slow)
    monkeypatch.setenv("SLURMD_NODENAME", "a")
    preflight.report(load(None, ["data.executor=synthetic"]), nodes)
    found = json.loads((nodes / "a.json").read_text())
    assert abs(found["time"] - (nodes / "a.json").stat().st_mtime) < 1 and len(list(nodes.iterdir())) == 1


@pytest.mark.parametrize(
    ("clocks", "bad"),
    [((0, 9), {"1": "ahead of"}), ((9, 9, 0), {"2": "behind"}), ((0, 4, 9), {"2": "ahead of"}), ((0, 4, 5), {})],
)
def test_clocks_that_differ(clocks: tuple[float, ...], bad: dict[str, str]) -> None:
    reports = [{"node": str(n), "versions": {}, "failed": []} for n in range(len(clocks))]
    found = preflight.problems(reports, clocks)
    assert {node: said for node, said in bad.items() if said in found.get(node, "")} == bad and found.keys() == bad.keys()
