"""Training that is really killed goes on as if nothing had happened."""

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

STEPS = ("train.epochs=24st", "schedule.warmup=4st", "train.checkpoint_every=5st", "eval.every=10st", "train.log_every=1")


def step_reached(step: int) -> Any:
    return lambda line: bool(re.search(rf"step\s+{step}/24 ", line))


def weights(run_dir: Path) -> dict[str, Any]:
    return load_file(run_dir / "model.safetensors")


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not a[name].equal(b[name])]
    assert not different


@pytest.fixture(scope="module")
def calm(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The uninterrupted run of each world size."""
    return {world: tmp_path_factory.mktemp(f"calm{world}") / "run" for world in (1, 2)}


def calm_weights(trainer: Any, calm: dict[int, Path], world: int) -> dict[str, Any]:
    if not (calm[world] / "model.safetensors").is_file():
        trainer.run(*STEPS, f"run.dir={calm[world]}", world=world)
    return weights(calm[world])


@pytest.mark.parametrize(("world", "at"), [(1, 3), (1, 13), (2, 12)])
def test_killed_and_started_again_ends_bit_identical(
    trainer: Any, calm: dict[int, Path], tmp_path: Path, world: int, at: int
) -> None:
    expected = calm_weights(trainer, calm, world)
    run_dir = tmp_path / "run"
    process = trainer.start(*STEPS, f"run.dir={run_dir}", world=world)
    trainer.until(process, step_reached(at))
    trainer.kill(process)
    output = trainer.run(*STEPS, f"run.dir={run_dir}", world=world)
    assert "going on after step" in output or at <= 5
    assert_same(weights(run_dir), expected)
    assert journal_points(run_dir) == journal_points(calm[world])


def journal_points(run_dir: Path) -> dict[tuple[str, int], float]:
    """The first value of every deterministic metric at every step."""
    points: dict[tuple[str, int], float] = {}
    for line in (run_dir / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "metrics":
            for name, value in record["values"].items():
                if name.startswith(("train/", "val/")):
                    points.setdefault((name, record["step"]), value)
    assert len({step for _, step in points}) == 24
    return points


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_where_it_is_and_asks_to_be_continued(
    trainer: Any, calm: dict[int, Path], tmp_path: Path, number: signal.Signals
) -> None:
    expected = calm_weights(trainer, calm, 1)
    run_dir = tmp_path / "run"
    process = trainer.start(*STEPS, f"run.dir={run_dir}")
    trainer.until(process, step_reached(7))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert f"signal {number.name}" in output and "Traceback" not in output
    (newest,) = sorted((run_dir / "checkpoints").glob("step-*.pt"))[-1:]
    stopped_at = int(newest.stem.removeprefix("step-"))
    assert stopped_at >= 7
    output = trainer.run(*STEPS, f"run.dir={run_dir}")
    assert f"going on after step {stopped_at}" in output
    assert_same(weights(run_dir), expected)


def test_one_rank_is_asked_and_all_stop_together(trainer: Any, calm: dict[int, Path], tmp_path: Path) -> None:
    expected = calm_weights(trainer, calm, 2)
    run_dir = tmp_path / "run"
    process = trainer.start(*STEPS, f"run.dir={run_dir}", world=2)
    trainer.until(process, step_reached(7))
    (run_dir / "STOP").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "stopped after step" in output
    assert set(re.findall(r"exitcode\s*: (\d+)", output)) == {"75"}
    (run_dir / "STOP").unlink()
    trainer.run(*STEPS, f"run.dir={run_dir}", world=2)
    assert_same(weights(run_dir), expected)


def test_a_run_goes_on_in_another_world(trainer: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = trainer.start(*STEPS, f"run.dir={run_dir}", world=2)
    trainer.until(process, step_reached(12))
    trainer.kill(process)
    output = trainer.run(*STEPS, f"run.dir={run_dir}")
    assert re.search(r"going on after step 1[05]", output)
    counts = Counter(json.loads(line)["kind"] for line in (run_dir / "journal.jsonl").read_text().splitlines())
    assert counts["run"] == 2


def test_a_finished_run_is_not_started_again(trainer: Any, tmp_path: Path) -> None:
    few = ("train.epochs=2st", "schedule.warmup=0st", f"run.dir={tmp_path / 'run'}")
    trainer.run(*few)
    kept = [tmp_path / "run" / "journal.jsonl", tmp_path / "run" / "checkpoints" / "best.pt"]
    before = [path.read_bytes() for path in kept]
    assert "finished already at step 2 (top1 " in trainer.run(*few)
    assert [path.read_bytes() for path in kept] == before


def test_a_run_killed_while_it_finishes_is_finished_by_the_next_start(trainer: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    few = ("train.epochs=2st", "schedule.warmup=0st", f"run.dir={run_dir}")
    trainer.run(*few)
    journal = run_dir / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    (end,) = [number for number, line in enumerate(lines) if '"FINISHED"' in line]
    journal.write_text("".join(lines[:end]))  # as if SIGKILL had come between the weights and the last line
    before = weights(run_dir)
    assert "going on after step 2" in trainer.run(*few)
    assert '"FINISHED"' in journal.read_text()
    assert_same(weights(run_dir), before)


SLOW_DISK = """
import os, time
sync = os.fsync
def slow(fd):
    if ".pt." in os.readlink(f"/proc/self/fd/{fd}"):
        time.sleep(4)
    sync(fd)
os.fsync = slow
"""


def test_ranks_wait_for_a_slow_save_before_they_leave(trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher ends all processes when it sees one go; and a scheduler's warning is followed by its SIGTERM."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW_DISK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "slow"))
    run_dir = tmp_path / "run"
    endless = (
        "train.epochs=9999st",
        "schedule.warmup=4st",
        "train.checkpoint_every=9999st",
        "eval.every=9999st",
        "train.log_every=1",
    )
    process = trainer.start(*endless, f"run.dir={run_dir}", world=2)
    trainer.until(process, lambda line: "step" in line and "loss" in line)
    for pid in workers(process.pid):
        os.kill(pid, signal.SIGUSR1)
    trainer.until(process, lambda line: "stopped after step" in line)
    process.wait()
    assert [p.suffix for p in (run_dir / "checkpoints").iterdir()] == [".pt"]
    assert '"SCHEDULED"' in (run_dir / "journal.jsonl").read_text().splitlines()[-1]


def workers(agent: int) -> list[int]:
    """The processes that torchrun has started."""
    stats = [p.read_text().rpartition(")")[2].split() + [p.parent.name] for p in Path("/proc").glob("[0-9]*/stat")]
    found = [int(fields[-1]) for fields in stats if int(fields[1]) == agent]
    return [pid for pid in found if b"pipeline" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_request_that_was_obeyed_does_not_stop_the_next_start(trainer: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = trainer.start(*STEPS, f"run.dir={run_dir}")
    trainer.until(process, step_reached(3))
    (run_dir / "STOP").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    (run_dir / "checkpoints" / ".step-000000009.pt.1.tmp").write_text("half")
    trainer.run(*STEPS, f"run.dir={run_dir}")
    assert not list(run_dir.rglob("*.tmp")) and not (run_dir / "STOP").exists()
