import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch import slurm, sweep
from launch.options import options
from pipeline.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1,0.5", ["0.1", "0.5"]),
        ("0..3", ["0", "1", "2", "3"]),
        ("7", ["7"]),
        ("[1, 1],[2, 2]", ["[1, 1]", "[2, 2]"]),
    ],
)
def test_values(text: str, expected: list[str]) -> None:
    assert sweep.values(text) == expected


def test_every_combination_or_pairs() -> None:
    asked = ["optim.lr=0.1,0.5", "seed=0..1", "model.name=resnet18"]
    assert sweep.members(asked, "grid") == tuple(
        (f"optim.lr={lr}", f"seed={seed}", "model.name=resnet18") for lr in ("0.1", "0.5") for seed in (0, 1)
    )
    assert sweep.members(asked, "zip") == tuple(
        (f"optim.lr={lr}", f"seed={seed}", "model.name=resnet18") for lr, seed in (("0.1", 0), ("0.5", 1))
    )
    with pytest.raises(UsageError, match="2, 3 values"):
        sweep.members(["optim.lr=1,2", "seed=0..2"], "zip")
    with pytest.raises(UsageError, match="not an override"):
        sweep.members(["seed"], "grid")
    with pytest.raises(UsageError, match="2000 members"):
        sweep.members(["seed=0..1999"], "grid")


@pytest.mark.parametrize(
    ("asked", "how"),
    [
        (["seed=0..99999999999"], "grid"),
        (["seed=0..99999999999"], "zip"),
        (["seed=0..999", "optim.lr=1,2"], "grid"),
        (["seed=4..0", "optim.lr=1,2"], "grid"),
        (["seed=4..0", "optim.lr=1,2"], "zip"),
        ([], "grid"),
        ([], "zip"),
    ],
)
def test_the_size_of_a_sweep_is_known_before_it_is_built(asked: list[str], how: sweep.How) -> None:
    with pytest.raises(UsageError, match="members; a sweep has 1 to 1000"):
        sweep.members(asked, how)


@pytest.mark.parametrize(
    ("text", "expected"), [("0-4", ([0, 1, 2, 3, 4], None)), ("1,3,7%2", ([1, 3, 7], 2)), ("0-9:3", ([0, 3, 6, 9], None))]
)
def test_the_numbers_of_an_array(text: str, expected: tuple[list[int], int | None]) -> None:
    assert sweep.seeds(text) == expected


@pytest.mark.parametrize("text", ["", "a", "4-0", "1,1", "0-4%0", "-1", "0-5000", "1,,2", "0-4:0", "٣", "0-99999999999"])
def test_what_is_no_array(text: str) -> None:
    with pytest.raises(UsageError, match="--array: .* write 0-4"):
        sweep.seeds(text)


def test_an_array_is_a_sweep_over_seeds(tmp_path: Path) -> None:
    found = sweep.of_seeds(Path("configs/demo.yaml"), [f"run.root={tmp_path}", "model.n_blocks=[1, 1]"], None, [3, 5])
    assert [found.cfg(n).seed for n in (0, 1)] == [3, 5] and found.cfg(1).model.n_blocks == (1, 1)
    assert found.folder == tmp_path / "demo-array" and found.cfg(1).run.dir == tmp_path / "demo-array" / "001"


def test_a_list_file(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- {optim.lr: 0.1, seed: 3, 'model.n_blocks': [1, 1]}\n- [optim.lr=0.2]\n")
    assert sweep.listed(path) == (("optim.lr=0.1", "seed=3", "model.n_blocks=[1, 1]"), ("optim.lr=0.2",))
    for text in (b"3\n", b"- [seed=1, 3]\n", b"- 3\n", b"\xff\xfe\x00", b"- {seed: 2024-99-99}\n", b"a: b\n"):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match="not a list of members") as caught:
            sweep.listed(path)
        assert len(str(caught.value).splitlines()) == 1
    for text, n in ((b"[]\n", 0), (b"- {seed: 1}\n" * 1001, 1001)):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=f"{n} members; a sweep has 1 to 1000"):
            sweep.listed(path)
    with pytest.raises(ConfigError, match="^/dev/zero: not a list of members .not a regular file.; write lines"):
        sweep.listed(Path("/dev/zero"))


def test_a_folder_holds_one_sweep(tmp_path: Path) -> None:
    config = Path("configs/demo.yaml")
    one = sweep.make(config, [f"run.root={tmp_path}", "seed=0..1"], None, "grid", None)
    assert one.folder == tmp_path / "demo-sweep" and one.cfg(1).seed == 1 and one.cfg(1).run.dir == one.run_dir(1)
    sweep.remember(one)
    sweep.remember(one)
    with pytest.raises(UsageError, match="another sweep"):
        sweep.remember(sweep.make(config, [f"run.root={tmp_path}", "seed=0..2"], None, "grid", None))
    with pytest.raises(ConfigError, match=r"did you mean optim.lr\?"):
        sweep.make(config, ["optim.lrr=1,2"], None, "grid", None)


def test_members_are_children_of_one_run_and_failed_ones_run_again(digits: Path, tmp_path: Path) -> None:
    config = Path("configs/demo.yaml")
    few = ["train.epochs=2st", "schedule.warmup=0st", f"run.root={tmp_path}", f"data.root={digits}"]
    found = sweep.make(config, [*few, "seed=0..1"], "two", "grid", None)
    (found.run_dir(1) / "in the way").mkdir(parents=True)
    assert sweep.run_here(found, 2, 1) == {0: 0, 1: 2}
    assert [row["status"] for row in sweep.plan(found)] == ["FINISHED", "-"]
    (found.run_dir(1) / "in the way").rmdir()
    assert sweep.run_here(found, 2, 1) == {1: 0}
    tags = [json.loads((found.run_dir(n) / "journal.jsonl").read_text().splitlines()[0])["tags"] for n in (0, 1)]
    assert len({one["mlflow.parentRunId"] for one in tags}) == 1 and {one["sweep"] for one in tags} == {"two"}


def test_a_folder_holds_one_configuration(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"

    def array(text: str, *more: str) -> sweep.Sweep:
        config.write_text(f"base: {Path('configs/demo.yaml').absolute()}\n{text}")
        return sweep.of_seeds(config, [f"run.root={tmp_path}", *more], None, [3, 5])

    sweep.remember(array("", "optim.lr=0.1"))
    sweep.remember(array("", "optim.lr=0.1", "data.threads=3", "launch.max_requeues=7", "data.quarantine=bad.tsv"))
    with pytest.raises(UsageError, match=r"member 0: optim.lr was 0.1, is 0.2\); choose another run.name"):
        sweep.remember(array("", "optim.lr=0.2"))
    with pytest.raises(UsageError, match=r"batch.global was \d+, is 64"):
        sweep.remember(array("batch: {global: 64}\n", "optim.lr=0.1"))
    with pytest.raises(UsageError, match="eval.batch"):
        sweep.remember(array("", "optim.lr=0.1", "eval.batch=7"))
    with pytest.raises(UsageError, match="member 1: seed was 5, is 6"):
        sweep.remember(sweep.of_seeds(config, [f"run.root={tmp_path}", "optim.lr=0.1"], None, [3, 6]))


def test_what_other_members_take_from_the_file_counts_too(tmp_path: Path) -> None:
    config, rows = tmp_path / "c.yaml", tmp_path / "list.yaml"
    rows.write_text("- {optim.lr: 0.1}\n- {seed: 3}\n")

    def listed(lr: float) -> sweep.Sweep:
        config.write_text(f"base: {Path('configs/demo.yaml').absolute()}\noptim: {{lr: {lr}}}\n")
        return sweep.make(config, [f"run.root={tmp_path}"], None, "grid", rows)

    sweep.remember(listed(0.5))
    with pytest.raises(UsageError, match="member 1: optim.lr was 0.5, is 0.6"):
        sweep.remember(listed(0.6))


def test_a_sweep_is_submitted_by_one_process_at_a_time(tmp_path: Path) -> None:
    config = Path("configs/demo.yaml")
    found = sweep.make(config, [f"run.root={tmp_path}", "seed=0..1"], None, "grid", None)
    request = slurm.request(found.cfg(0), options(None, {}), [])
    found.folder.mkdir()
    with slurm.alone(found.folder, found.folder), pytest.raises(UsageError, match="is submitting it"):
        sweep.submit(found, request, 1)


def test_slurm_must_not_expand_the_folder_of_a_sweep(tmp_path: Path) -> None:
    found = sweep.make(Path("configs/demo.yaml"), [f"run.root={tmp_path}/%j", "seed=0..1"], None, "grid", None)
    with pytest.raises(UsageError, match="SLURM would expand the %"):
        sweep.submit(found, slurm.request(found.cfg(0), options(None, {}), []), 1)


CHILD = """
import signal, sys, time
if len(sys.argv) > 1:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(int(sys.argv[1])))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("ends_with", "expected"), [(["75"], 75), (["3"], 3), ([], 75)])
def test_signals_reach_the_running_members_and_start_no_other(tmp_path: Path, ends_with: list[str], expected: int) -> None:
    children, log = sweep.Children(), tmp_path / "log"

    def stop() -> None:
        while not log.read_bytes().endswith(b"ready\n"):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    log.touch()
    stopper = threading.Thread(target=stop)
    stopper.start()
    with children.forwarding(), ThreadPoolExecutor(1) as pool:
        codes = list(pool.map(lambda _: children.run([sys.executable, "-c", CHILD, *ends_with], log, os.environ), range(3)))
    stopper.join()
    assert codes == [expected, 75, 75] and log.read_text() == "ready\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_member_that_was_killed_has_failed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert sweep.Children().run(command, tmp_path / "log", os.environ) == 128 + 9
